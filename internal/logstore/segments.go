// SPDX-License-Identifier: Apache-2.0

package logstore

import (
	"errors"
	"fmt"
	"math"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/indexes"
	"github.com/hastate/hastate/internal/seglog"
)

// segments is the backend of package seglog.
type segments struct{ log *seglog.Log }

func openSegments(opts Options) (backend, error) {
	log, err := seglog.Open(seglog.Options{Dir: opts.Path, SegmentBytes: opts.SegmentBytes, Logger: opts.Logger})
	switch {
	case errors.Is(err, seglog.ErrDamaged):
		return nil, damaged(opts.Path, err)
	case errors.Is(err, seglog.ErrLocked):
		return nil, inUse(opts.Path)
	case err != nil:
		return nil, fmt.Errorf("open log: %w", err)
	}
	return &segments{log}, nil
}

func (s *segments) stored() indexes.Set                    { return s.log.Stored() }
func (s *segments) store(logs []*raft.Log) error           { return s.log.Store(logs) }
func (s *segments) remove(first, last uint64) error        { return s.log.Delete(first, last) }
func (s *segments) read(index uint64, out *raft.Log) error { return s.log.Entry(index, out) }
func (s *segments) close() error                           { return s.log.Close() }

// chunk: one record removes any number of entries.
func (s *segments) chunk() uint64 { return math.MaxUint64 }

func (s *segments) set(values []stableValue) error {
	names, data := make([]string, len(values)), make([][]byte, len(values))
	for i, v := range values {
		if len(v.key) > seglog.MaxValueBytes || len(v.value) > seglog.MaxValueBytes {
			return fmt.Errorf("%w: a stable value of %d bytes: at most %d are possible", hastate.ErrInvalid, len(v.value), seglog.MaxValueBytes)
		}
		names[i], data[i] = string(v.key), v.value
	}
	return s.log.SetValues(names, data)
}

func (s *segments) get(key []byte) ([]byte, error) {
	v, ok := s.log.Value(string(key))
	if !ok {
		return nil, errNoValue
	}
	return v, nil
}
