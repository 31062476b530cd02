// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"
	bolt "go.etcd.io/bbolt"
)

// StateStream is the state file as it was at one log entry. Others go on
// writing while it is read; it must be closed.
type StateStream struct {
	// Index and Term are of the newest log entry that the state includes.
	Index, Term uint64
	Revision    uint64
	ClusterID   string
	// Size is exactly how many bytes WriteTo writes.
	Size int64

	tx       *bolt.Tx
	close    sync.Once
	closeErr error
}

// BeginStream flushes and returns the state file as it is then. It must be
// closed before the Machine is.
func (m *Machine) BeginStream() (*StateStream, error) {
	if err := m.flush(); err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.failed != nil {
		return nil, m.failed
	}
	tx, err := m.db.Begin(false)
	if err != nil {
		return nil, fmt.Errorf("stream the state: %w", err)
	}
	at, err := decodeMeta(tx.Bucket(bucketMeta).Get(keyMeta))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("stream the state: %w", err), tx.Rollback())
	}
	return &StateStream{
		Index: at.applied, Term: at.term, Revision: at.revision, ClusterID: at.clusterID,
		Size: tx.Size(), tx: tx,
	}, nil
}

// WriteTo writes the state file.
func (s *StateStream) WriteTo(w io.Writer) (int64, error) {
	n, err := s.tx.WriteTo(w)
	if err != nil {
		return n, fmt.Errorf("stream the state: %w", err)
	}
	if n != s.Size {
		return n, fmt.Errorf("stream the state: wrote %d bytes of %d", n, s.Size)
	}
	return n, nil
}

// Close lets go of the file.
func (s *StateStream) Close() error {
	s.close.Do(func() { s.closeErr = s.tx.Rollback() })
	return s.closeErr
}

// Snapshot returns at once; the work is done by Persist.
func (m *Machine) Snapshot() (raft.FSMSnapshot, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.failed != nil {
		return nil, m.failed
	}
	return &machineSnapshot{m: m, index: m.applied}, nil
}

// liveSink is a snapshot sink that keeps no copy: it serves the state file
// itself when a snapshot is asked for.
type liveSink interface {
	// Live is told that the state file includes an entry, on the disk.
	Live(index uint64) error
}

type machineSnapshot struct {
	m     *Machine
	index uint64
}

// Persist makes sure that the state file includes the snapshot. Raft forgets
// log entries afterwards, and starts from the state file after a restart: the
// data must be on the disk before the sink is closed.
func (s *machineSnapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.persist(sink); err != nil {
		return errors.Join(fmt.Errorf("persist snapshot at log entry %d: %w", s.index, err), sink.Cancel())
	}
	return sink.Close()
}

func (s *machineSnapshot) persist(sink raft.SnapshotSink) error {
	if err := s.m.flushTo(s.index); err != nil {
		return err
	}
	if live, isLive := sink.(liveSink); isLive {
		return live.Live(s.index)
	}
	stream, err := s.m.BeginStream()
	if err != nil {
		return err
	}
	_, err = stream.WriteTo(sink)
	return errors.Join(err, stream.Close())
}

// Release has nothing to let go of.
func (s *machineSnapshot) Release() {}
