// SPDX-License-Identifier: Apache-2.0

package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"

	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// Set makes a stable value durable.
func (s *Store) Set(key, value []byte) error {
	return s.write(func() error {
		return s.commit(OpSet, func() error { return s.db.Set(key, sealValue(key, value)) })
	})
}

// Get returns a stable value. The error for a key that was never set has the text
// "not found", which raft compares.
func (s *Store) Get(key []byte) ([]byte, error) {
	s.mu.RLock()
	closed := s.closed
	s.mu.RUnlock()
	if closed {
		return nil, s.errClosed()
	}
	stored, err := s.db.Get(key)
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return nil, raftboltdb.ErrKeyNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("read stable value %q of %s: %w", key, s.path, err)
	}
	value, err := unsealValue(key, stored)
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
