// SPDX-License-Identifier: Apache-2.0

package logstore

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/internal/indexes"
)

// DefaultCacheBytes bounds the cache of the newest entries.
const DefaultCacheBytes = 32 << 20

// Fault breaks writes in tests. Before is called in every write, after it counts
// as running and before anything is written; it may block, as a stalled disk does.
// An error is treated like one of the disk.
type Fault interface {
	Before(op string) error
}

// The operations that a Fault sees.
const (
	OpStore  = "STORE"
	OpDelete = "DELETE"
	OpSet    = "SET"
)

// Options of a Store.
type Options struct {
	// Path of the file, or of the folder of segments. It is made if it does not exist;
	// the directory that it is in must exist.
	Path string
	// Kind of the log; empty is Bolt.
	Kind Kind
	// SegmentBytes is the size of new segments; 0 is the default of package seglog.
	SegmentBytes int64
	// Clock that StoredAt and Stalled use; nil is the machine's CLOCK_BOOTTIME.
	Clock clock.Clock
	// CacheBytes bounds the cache of the newest entries; 0 is DefaultCacheBytes.
	CacheBytes int64
	Logger     *slog.Logger
	// Fault is for tests; nil breaks nothing.
	Fault Fault
	// Halt is called once, after the first write that failed, on the goroutine of
	// that write, which may be raft's main loop: it must not wait for raft. It is
	// to cut the node off from its peers at once and to end the process: raft
	// panics when it cannot store a term, and this store takes no more writes.
	Halt func(error)
}

// Store is the Raft log and the stable store. All methods are safe for concurrent
// use.
type Store struct {
	path    string
	clock   clock.Clock
	logger  *slog.Logger
	fault   Fault
	halt    func(error)
	halted  sync.Once
	running running
	disk    backend

	// writing is held for the whole of a write, so that the order of the writes on
	// disk is the order in which stored, times and tail change.
	writing sync.Mutex
	// vote is the term of a vote that waits for its candidate. Guarded by writing.
	vote []byte

	// failed is the error of the first failed write; it is never cleared.
	failed atomic.Pointer[error]

	mu sync.RWMutex
	// stored are the indexes on disk. Guarded by mu.
	stored indexes.Set
	// times knows when entries were stored. Guarded by mu.
	times times
	// tail caches the newest entries. Guarded by mu.
	tail tail
	// base and baseTerm are the newest snapshot of this node. Guarded by mu.
	base, baseTerm uint64
	// joint is the entry at which a received snapshot meets a log that goes on above
	// it; 0 if there is none. Compaction leaves it. Guarded by mu.
	joint uint64
	// closed is set by Close. Guarded by mu.
	closed bool
	// writes counts the durable writes and their duration. Guarded by mu.
	writes Writes
}

var (
	_ raft.LogStore    = (*Store)(nil)
	_ raft.StableStore = (*Store)(nil)
)

// Open opens or makes the file, takes its lock and checks it. Every entry in it
// counts as stored now: nobody knows how much older it is.
func Open(opts Options) (*Store, error) {
	if opts.Path == "" {
		return nil, fmt.Errorf("%w: the log store needs a path", hastate.ErrInvalid)
	}
	s := &Store{path: opts.Path, clock: opts.Clock, logger: opts.Logger, fault: opts.Fault, halt: opts.Halt}
	if s.clock == nil {
		s.clock = clock.Boot{}
	}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	s.tail.limit = opts.CacheBytes
	if s.tail.limit <= 0 {
		s.tail.limit = DefaultCacheBytes
	}
	s.times.max = maxSpans
	var err error
	if s.disk, err = openBackend(opts); err != nil {
		return nil, err
	}
	s.stored = s.disk.stored()
	// Read last: a time before the check would be as safe, since the lease waits
	// count from it, but nothing is gained by an earlier one.
	s.times.reset(s.stored.Last(), s.clock.Now())
	s.logger.Info("log store opened", "path", s.path, "first", s.stored.First(), "last", s.stored.Last())
	return s, nil
}

// Path of the file, or of the folder of segments.
func (s *Store) Path() string { return s.path }

// Close waits for the running write and closes the file. Later calls do nothing.
func (s *Store) Close() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	was := s.closed
	s.closed = true
	s.mu.Unlock()
	if was {
		return nil
	}
	if err := s.disk.close(); err != nil {
		return fmt.Errorf("close log %s: %w", s.path, err)
	}
	return nil
}

// FirstIndex returns the lowest stored index, 0 if there is none.
func (s *Store) FirstIndex() (uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return 0, s.errClosed()
	}
	return s.stored.First(), nil
}

// LastIndex returns the highest stored index, 0 if there is none.
func (s *Store) LastIndex() (uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return 0, s.errClosed()
	}
	return s.stored.Last(), nil
}

func (s *Store) errClosed() error {
	return fmt.Errorf("log store %s: %w", s.path, hastate.ErrClosed)
}

// GetLog reads an entry, from the cache if it is there. The data of the entry is
// shared and must not be changed. Reading goes on after a failed write: what was
// durable still is, and raft panics when it cannot read an entry it knows of.
func (s *Store) GetLog(index uint64, out *raft.Log) error {
	s.mu.RLock()
	closed, hit, known := s.closed, s.tail.get(index, out), s.stored.Contains(index)
	s.mu.RUnlock()
	switch {
	case closed:
		return s.errClosed()
	case hit:
		return nil
	case !known:
		return raft.ErrLogNotFound // compared by ==, in raft
	}
	return s.read(index, out)
}

// read gets an entry from the disk and checks it.
func (s *Store) read(index uint64, out *raft.Log) error {
	err := s.disk.read(index, out)
	if errors.Is(err, raft.ErrLogNotFound) {
		return raft.ErrLogNotFound // deleted since we looked
	}
	if err != nil {
		return fmt.Errorf("read log entry %d of %s: %w", index, s.path, err)
	}
	return nil
}

// StoredAt returns an upper bound of the time at which this node first stored the
// entry that is at index now: the time of its StoreLogs, of the restart after it,
// or of the snapshot install that covered it, whichever is latest. An index that
// was never stored here counts as stored now. See times for why only an upper
// bound is safe.
func (s *Store) StoredAt(index uint64) clock.Instant {
	now := s.clock.Now()
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.times.at(index, now)
}

// SnapshotInstalled counts every entry up to index as stored now: this node has
// not seen when the entries that the snapshot stands for were proposed. It has to
// be called before the installed state can be seen, at a restart too if there is a
// snapshot, and with the index of the state, which may be above the snapshot's.
func (s *Store) SnapshotInstalled(index uint64) {
	now := s.clock.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.times.lift(index, now)
}

// Stalled is how long the oldest running write has been running, 0 if none is.
func (s *Store) Stalled() time.Duration { return s.running.oldest(s.clock.Now()) }

// Writes counts durable writes.
type Writes struct {
	// Count of the writes that were made durable, and the sum, the longest and the
	// newest of their durations, waiting for the disk included.
	Count             uint64
	Total, Max, Last  time.Duration
	Entries, Removals uint64 // entries stored and deleted
}

// Stats of a store.
type Stats struct {
	First, Last  uint64
	Entries      uint64
	CacheEntries int
	CacheBytes   int64
	Spans        int // of the memory of StoredAt
	Writes       Writes
}

// Stats returns the counters.
func (s *Store) Stats() Stats {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return Stats{
		First: s.stored.First(), Last: s.stored.Last(), Entries: s.stored.Count(),
		CacheEntries: s.tail.len(), CacheBytes: s.tail.bytes, Spans: len(s.times.spans), Writes: s.writes,
	}
}
