// SPDX-License-Identifier: Apache-2.0

package logstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// voteTerm and voteCandidate are the two halves of raft's vote.
var voteTerm, voteCandidate = stableKeys[1], stableKeys[2]

// Set makes a stable value durable. The one exception is the term of a vote, which raft
// sets right before the candidate: it waits for that, so that a vote costs one write and
// is there whole or not at all. A vote of which only the term was set was not given.
//
// The candidate comes first, for a log that has no write of both: a crash in between
// leaves the new candidate with the term of an older vote, for which nobody asks any
// more, because raft has made the new term durable before. The other way round it would
// leave the new term with an old candidate, and raft answers a second request of the
// candidate it voted for with yes, without a look at the logs.
func (s *Store) Set(key, value []byte) error {
	return s.write(func() error {
		values := []stableValue{{key, value}}
		switch {
		case bytes.Equal(key, voteTerm):
			s.vote = bytes.Clone(value)
			return nil
		case bytes.Equal(key, voteCandidate) && s.vote != nil:
			values = []stableValue{{key, value}, {voteTerm, s.vote}}
			s.vote = nil
		}
		return s.commit(OpSet, func() error { return s.disk.set(values) })
	})
}

// Get returns a stable value that is durable. The error for a key that was never set has
// the text "not found", which raft compares.
func (s *Store) Get(key []byte) ([]byte, error) {
	s.mu.RLock()
	closed := s.closed
	s.mu.RUnlock()
	if closed {
		return nil, s.errClosed()
	}
	value, err := s.disk.get(key)
	if errors.Is(err, errNoValue) {
		return nil, errNoValue
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", s.path, err)
	}
	return value, nil
}

// SetUint64 makes a stable number durable.
func (s *Store) SetUint64(key []byte, value uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, value))
}

// GetUint64 returns a stable number.
func (s *Store) GetUint64(key []byte) (uint64, error) {
	value, err := s.Get(key)
	if err != nil {
		return 0, err
	}
	if len(value) != 8 {
		return 0, fmt.Errorf("stable value %q of %s has %d bytes, not 8: it is no number", key, s.path, len(value))
	}
	return binary.BigEndian.Uint64(value), nil
}
