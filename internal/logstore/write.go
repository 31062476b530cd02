// SPDX-License-Identifier: Apache-2.0

package logstore

import (
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/clock"
)

// write runs one write: counted as running for Stalled, alone, and refused after
// the first failure. The failure is announced after the locks are free.
func (s *Store) write(fn func() error) error {
	defer s.running.begin(s.clock)()
	err := s.exclusive(fn)
	if f := s.failed.Load(); f != nil && s.halt != nil {
		s.halted.Do(func() { s.halt(*f) })
	}
	return err
}

func (s *Store) exclusive(fn func() error) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if f := s.failed.Load(); f != nil {
		return *f
	}
	s.mu.RLock()
	closed := s.closed
	s.mu.RUnlock()
	if closed {
		return s.errClosed()
	}
	return fn()
}

// commit makes one transaction durable. Any error is final: whether the data is on
// the disk is unknown from then on, and a second fsync may succeed without it.
func (s *Store) commit(op string, fn func() error) (err error) {
	begin := time.Now()
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
		if err != nil {
			err = s.fail(op, err)
			return
		}
		took := time.Since(begin)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.writes.Count++
		s.writes.Total += took
		s.writes.Last = took
		s.writes.Max = max(s.writes.Max, took)
	}()
	if s.fault != nil {
		if err := s.fault.Before(op); err != nil {
			return err
		}
	}
	return fn()
}

// fail records the first failure; from now on every write is refused with it.
func (s *Store) fail(op string, cause error) error {
	err := fmt.Errorf("log store %s stopped: %s: %w; nothing is written any more: check the disk, then start the node again", s.path, op, cause)
	if s.failed.CompareAndSwap(nil, &err) {
		s.logger.Error("log store stopped", "path", s.path, "op", op, "error", cause)
	}
	return *s.failed.Load()
}

// StoreLog stores one entry.
func (s *Store) StoreLog(log *raft.Log) error { return s.StoreLogs([]*raft.Log{log}) }

// StoreLogs makes the entries durable. Gaps and overwrites are allowed.
func (s *Store) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	return s.write(func() error { return s.store(logs) })
}

// store is called with writing held.
func (s *Store) store(logs []*raft.Log) error {
	if err := s.checkBase(logs); err != nil {
		return s.fail(OpStore, err)
	}
	// The time is read in this call and published before the entries can be read
	// from anywhere, so nobody can see an entry with the time of its predecessor
	// at that index. If the write fails the times are too late, which is safe.
	now := s.clock.Now()
	s.mu.Lock()
	eachRun(logs, func(first, last uint64) { s.times.stored(first, last, now) })
	s.mu.Unlock()

	if err := s.commit(OpStore, func() error { return s.disk.store(logs) }); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	eachRun(logs, func(first, last uint64) { s.stored = s.stored.Add(first, last) })
	for _, l := range logs {
		s.tail.add(l)
		if l.Index > s.joint {
			s.joint = 0 // raft has cleared the conflict above it, if there was one
		}
	}
	s.writes.Entries += uint64(len(logs))
	return nil
}

// eachRun calls fn for each run of consecutive indexes.
func eachRun(logs []*raft.Log, fn func(first, last uint64)) {
	for i := 0; i < len(logs); {
		j := i + 1
		for j < len(logs) && logs[j].Index == logs[j-1].Index+1 {
			j++
		}
		fn(logs[i].Index, logs[j-1].Index)
		i = j
	}
}

// Base tells the store which snapshot this node stands on: the entry of that
// index and term, and all before it, count as committed here. The newest call
// holds, also if its index is lower.
func (s *Store) Base(index, term uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.base, s.baseTerm = index, term
}

// checkBase refuses an entry that contradicts the snapshot this node stands on.
// Terms rise along a log, so an entry at or below the snapshot's index cannot have
// a higher term than the snapshot, unless the snapshot never was part of the
// cluster's history: raft.Restore makes one on the leader alone, and if that leader
// is lost before it has replicated it, the cluster goes on without. Storing the
// entry would leave this node with another state than its peers, silently.
func (s *Store) checkBase(logs []*raft.Log) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, l := range logs {
		if l.Index <= s.base && l.Term > s.baseTerm {
			return fmt.Errorf("%w: entry %d of term %d contradicts this node's snapshot at index %d of term %d: a backup was restored here that the cluster did not take over; move this node's data directory away and let the node join again", hastate.ErrPrecondition, l.Index, l.Term, s.base, s.baseTerm)
		}
	}
	return nil
}

// DeleteRange removes the entries from first to last, both included, in chunks. A
// crash between two chunks leaves a contiguous log: a range that reaches the end of
// the log is removed from the top, any other from the bottom.
func (s *Store) DeleteRange(first, last uint64) error {
	s.mu.RLock()
	// Entries that are stored while this runs are not in the range, whatever last is.
	last = min(last, s.stored.Last())
	s.mu.RUnlock()
	for done := false; !done; {
		err := s.write(func() (err error) {
			done, err = s.deleteSome(first, last)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// deleteSome removes one chunk of first..last. It is called with writing held.
func (s *Store) deleteSome(first, last uint64) (done bool, err error) {
	s.mu.RLock()
	lo, hi := s.stored.Clamp(first, last)
	low, high := s.stored.First(), s.stored.Last()
	if lo <= hi && hi < high && hi == s.joint {
		hi--
	}
	s.mu.RUnlock()
	if lo > hi {
		return true, nil
	}
	from, to := lo, hi
	switch {
	case hi == high: // a suffix, or everything
		from = max(lo, hi-min(hi, s.disk.chunk()-1))
	case lo == low: // a prefix
		to = lo + min(hi-lo, s.disk.chunk()-1)
	}
	if err := s.commit(OpDelete, func() error { return s.disk.remove(from, to) }); err != nil {
		return true, err
	}
	now := s.clock.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.stored.Count()
	s.stored = s.stored.Remove(from, to)
	s.writes.Removals += before - s.stored.Count()
	s.tail.remove(from, to)
	s.forget(from, to, low, high, max(hi, last), now)
	return from == lo && to == hi, nil
}

// forget drops the times of what was deleted. A prefix keeps them: compaction does
// not change when its entries were stored. Called with mu held.
func (s *Store) forget(from, to, low, high, upTo uint64, now clock.Instant) {
	switch {
	case len(s.stored) == 0:
		// All is gone. If it was compaction, a group may still ask for an entry of
		// it: a fixed time lets its lease come to an end, and now is an upper bound.
		s.times.reset(max(upTo, s.times.last()), now)
	case to >= high:
		s.times.cut(from)
	case from > low: // a hole; raft makes none
		s.times.cut(from)
		s.times.stored(to+1, high, now)
	}
}

// ForgetDivergent makes the log agree with a received snapshot whose last entry has
// this index and term. To be called when the snapshot is durable and before raft
// goes on; doing it twice does no harm.
//
// If the log has that very entry, all before it agree (Log Matching) and nothing is
// done. Otherwise no entry up to index can be trusted: raft only trims them down to
// TrailingLogs and would send the rest on to others if it became leader, so they
// are deleted. Entries above index stay, because raft still counts them as its last
// log and has to find them to clear them when the leader's entries conflict. For
// the same reason there must be an entry at index with the snapshot's term, or every
// append after the snapshot is refused and the snapshot is sent for ever
// (hashicorp/raft#697). It is a no-op that nobody can receive, because the entry
// before it is gone, and that is never applied, because it lies in the snapshot. Right
// after the install raft compacts up to it and, with a long tail above, including it;
// DeleteRange leaves it as long as the tail is that of before the snapshot.
func (s *Store) ForgetDivergent(index, term uint64) error {
	s.mu.RLock()
	have, last := s.stored.Contains(index), s.stored.Last()
	s.mu.RUnlock()
	if have {
		var l raft.Log
		if err := s.GetLog(index, &l); err != nil {
			return fmt.Errorf("compare log with snapshot at %d: %w", index, err)
		}
		if l.Term == term {
			s.join(index)
			return nil
		}
	}
	s.logger.Warn("the log does not have the entry that a received snapshot ends with: dropping what the snapshot covers",
		"index", index, "term", term, "last", last)
	if err := s.DeleteRange(1, index); err != nil {
		return fmt.Errorf("drop log up to snapshot at %d: %w", index, err)
	}
	if last < index {
		return nil
	}
	if err := s.StoreLog(&raft.Log{Index: index, Term: term, Type: raft.LogNoop}); err != nil {
		return fmt.Errorf("mark snapshot at %d in the log: %w", index, err)
	}
	s.join(index)
	return nil
}

// join keeps the entry at index from compaction.
func (s *Store) join(index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.joint = index
}
