// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/hastate/hastate"
)

// Sink takes one snapshot in. Either Live is called on it, by the state machine's
// Persist, or an archive is written to it, by raft.
type Sink struct {
	store *Store
	id    string
	index uint64

	mu sync.Mutex
	// record is the snapshot that is being made. Guarded by mu.
	record record
	// live is set by Live. Guarded by mu.
	live bool
	// file is the archive being received, nil before the first Write. Guarded by mu.
	file *os.File
	// failed is the first error of a Write: what follows it is not written. Guarded
	// by mu.
	failed error
	// done is set by the first Close or Cancel, and result is what that Close
	// returned and every later one returns: raft calls Close after a state machine
	// that may have called it, and must not take a failure for success. Guarded by mu.
	done   bool
	result error
}

// ID is the one to open the snapshot by.
func (s *Sink) ID() string { return s.id }

// Index is the last log index that the snapshot is to cover.
func (s *Sink) Index() uint64 { return s.index }

// Live makes this a live snapshot. The state machine calls it when everything up to
// index that was handed to it is durable in the state file. index may be below the
// snapshot's: raft counts entries that are not handed to the state machine.
func (s *Sink) Live(index uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.done:
		return fmt.Errorf("snapshot %s: %w", s.record.ID, hastate.ErrClosed)
	case s.file != nil || s.failed != nil:
		return fmt.Errorf("%w: snapshot %s has been written to and cannot be live", hastate.ErrInvalid, s.record.ID)
	}
	s.live, s.record.Durable = true, index
	s.store.logger.Debug("live snapshot", "id", s.record.ID, "durable_index", index)
	return nil
}

// Write takes the next bytes of an archive.
func (s *Sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.done:
		return 0, fmt.Errorf("snapshot %s: %w", s.record.ID, hastate.ErrClosed)
	case s.live:
		return 0, fmt.Errorf("%w: snapshot %s is live and cannot be written to", hastate.ErrInvalid, s.record.ID)
	case s.failed != nil:
		return 0, s.failed
	}
	n, err := s.write(p)
	if err != nil {
		s.failed = fmt.Errorf("write snapshot %s: %w", s.record.ID, err)
	}
	return n, s.failed
}

// write is called with mu held.
func (s *Sink) write(p []byte) (n int, err error) {
	name := s.record.ID + dataSuffix
	if s.file == nil {
		if s.file, err = s.store.dir.create(name); err != nil {
			return 0, err
		}
	} else if err := s.store.dir.before(OpWrite, name); err != nil {
		return 0, err
	}
	n, err = s.file.Write(p)
	s.record.Size += int64(n)
	return n, err
}

// Cancel drops the snapshot. After Close it does nothing.
func (s *Sink) Cancel() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done {
		return nil
	}
	s.done = true
	s.result = fmt.Errorf("snapshot %s was cancelled: %w", s.record.ID, hastate.ErrClosed)
	return s.discard()
}

// discard removes the data that has been written. Called with mu held.
func (s *Sink) discard() error {
	if s.file == nil {
		return nil
	}
	_ = s.file.Close()
	if err := s.store.dir.remove(s.record.ID + dataSuffix + tmpSuffix); err != nil {
		return fmt.Errorf("cancel snapshot %s: %w", s.record.ID, err)
	}
	return nil
}

// Close makes the snapshot durable and visible. A received archive is checked
// first; if it is damaged nothing of it remains and the older snapshots stand.
func (s *Sink) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done {
		return s.result
	}
	s.done = true
	err := s.finish()
	if err != nil {
		err = fmt.Errorf("finish snapshot %s: %w", s.record.ID, err)
		s.store.logger.Error("snapshot not taken", "id", s.record.ID, "error", err)
	}
	s.result = err
	return err
}

// finish is called with mu held.
func (s *Sink) finish() error {
	switch {
	case s.failed != nil:
		return errors.Join(s.failed, s.discard())
	case s.live:
		return s.store.publish(s.record, nil)
	case s.file == nil:
		return fmt.Errorf("%w: neither was it written to nor was Live called", hastate.ErrInvalid)
	}
	if err := s.verify(); err != nil {
		return errors.Join(err, s.discard())
	}
	return s.store.publish(s.record, s.file)
}

// verify reads back what was received. Called with mu held.
func (s *Sink) verify() error {
	if _, err := s.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	info, err := Inspect(s.file)
	if err != nil {
		return err
	}
	h := info.Header
	// Every node raises the index of the state it streams to that of its snapshot,
	// so a lower one means that entries are missing in the state.
	if !h.GetBackup() && h.GetIndex() < s.record.Index {
		return fmt.Errorf("%w: the state goes to index %d, the snapshot to %d", hastate.ErrInvalid, h.GetIndex(), s.record.Index)
	}
	p := s.record.present(h)
	s.record.Installed, s.record.Received = true, true
	s.record.Backup = h.GetBackup()
	s.record.StateIndex, s.record.StateTerm = p.GetIndex(), p.GetTerm()
	return nil
}

// publish makes a snapshot durable: the data first if it was received, then the
// record, which is the moment from which a restart knows of it. Then the log is told
// and raft may see it. If telling the log fails the snapshot stays where it is,
// unseen: the next start finishes it (Pending), because by then the log may have
// been trimmed in its favour.
func (s *Store) publish(r record, data *os.File) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	if err := s.admit(&r); err != nil {
		if data != nil {
			_ = data.Close()
		}
		return errors.Join(err, s.dir.remove(r.ID+dataSuffix+tmpSuffix))
	}
	if data != nil {
		if err := s.dir.publish(data, r.ID+dataSuffix); err != nil {
			return errors.Join(err, s.dir.remove(r.ID+dataSuffix+tmpSuffix), s.dir.remove(r.ID+dataSuffix))
		}
	}
	if err := r.save(s.dir); err != nil {
		return errors.Join(err, s.dir.remove(r.ID+metaSuffix), s.dir.remove(r.ID+dataSuffix))
	}
	if data != nil {
		if err := s.announce(&r); err != nil {
			s.mu.Lock()
			s.broken = fmt.Errorf("%w: restart the node to finish snapshot %s", err, r.ID)
			s.mu.Unlock()
			return err
		}
	}
	s.add(&r)
	index, _ := r.reach()
	s.logger.Info("snapshot taken", "id", r.ID, "index", r.Index, "term", r.Term, "received", r.Received, "state_index", index)
	return nil
}

// admit gives a snapshot its place in the order, unless it may not be published.
func (s *Store) admit(r *record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	// The state here holds everything up to its live snapshots, which vouch for it. A
	// received state that goes less far must not replace it; the sender's will have
	// grown past that when it is asked again.
	reach, _ := r.reach()
	for _, o := range s.records {
		if r.Received && !o.Received && o.Index > reach {
			return fmt.Errorf("%w: the state goes to index %d, this node's to %d already", hastate.ErrPrecondition, reach, o.Index)
		}
	}
	s.order++
	r.Order = s.order
	return nil
}
