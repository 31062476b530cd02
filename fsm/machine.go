// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	bolt "go.etcd.io/bbolt"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/clock"
)

// Defaults of Options.
const (
	DefaultFlushBytes    = 32 << 20
	DefaultFlushInterval = 2 * time.Second
	DefaultRingEvents    = 64 << 10
	DefaultRingBytes     = 64 << 20
)

// stallFactor: when the active layer has this many times FlushBytes and a flush
// is still running, Apply waits for it.
const stallFactor = 4

// Options of Open.
type Options struct {
	// Path of the state file. Its directory must exist.
	Path string
	// Clock is what an Expiry counts on if it is given none; nil: clock.Boot. The
	// Machine itself reads no clock.
	Clock  clock.Clock
	Logger *slog.Logger
	// Halt is called when the node must not go on: the log has a command that
	// this program does not know, or the state file failed. It should end the
	// process; if it returns, the Machine does nothing any more. nil: panic.
	Halt func(error)

	// FlushBytes and FlushInterval: changes are written to the file when there
	// are so many bytes of them, or after so long.
	FlushBytes    int
	FlushInterval time.Duration
	// RingEvents and RingBytes bound what is kept for watchers.
	RingEvents int
	RingBytes  int

	// commit stands in for bolt's Commit in tests.
	commit func(*bolt.DB, *bolt.Tx) error
}

func (o *Options) fill() error {
	if o.Path == "" {
		return fmt.Errorf("open state: %w: no path is given", hastate.ErrInvalid)
	}
	if o.FlushBytes < 0 || o.FlushInterval < 0 || o.RingEvents < 0 || o.RingBytes < 0 {
		return fmt.Errorf("open state: %w: a size or interval is negative", hastate.ErrInvalid)
	}
	if o.Clock == nil {
		o.Clock = clock.Boot{}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Halt == nil {
		o.Halt = func(err error) { panic(err) }
	}
	if o.commit == nil {
		o.commit = func(_ *bolt.DB, tx *bolt.Tx) error { return tx.Commit() }
	}
	setDefault(&o.FlushBytes, DefaultFlushBytes)
	setDefault(&o.FlushInterval, DefaultFlushInterval)
	setDefault(&o.RingEvents, DefaultRingEvents)
	setDefault(&o.RingBytes, DefaultRingBytes)
	return nil
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Machine is the replicated state machine of one node. Raft calls Apply,
// ApplyBatch, Snapshot and Restore from one goroutine; all other methods may be
// called from any.
type Machine struct {
	opts Options
	ring *ring

	// ctx ends when Close begins. Close waits for tasks: the flusher, and the
	// closing of files that were replaced.
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	close  sync.Once
	// closeErr is written once, by the first Close.
	closeErr error

	// kick wakes the flusher early. It has room for one.
	kick chan struct{}

	// flushing is held while the state file is written or replaced. It is taken
	// before mu.
	flushing sync.Mutex

	// mu guards all fields below. It is held for writing while one log entry is
	// applied.
	mu      sync.RWMutex
	db      *bolt.DB
	active  *layer
	sealed  *layer // nil unless a flush is under way.
	state   *state
	applied uint64 // All entries up to here that concern the state are in it.
	term    uint64 // Term of that entry.
	flushed uint64 // The file includes all entries up to here.
	tally   tally  // Of the records of the file.
	// configuration is raft's, encoded; its entry has configurationIndex.
	configuration      []byte
	configurationIndex uint64
	// applyTx is the read transaction of the entry that is being applied.
	applyTx *bolt.Tx
	expiry  *Expiry
	failed  error // Why the Machine was halted, or nil.

	changed  broadcast // A group, instance or member changed, or was renewed.
	progress broadcast // applied, flushed or failed changed.
}

var (
	_ raft.BatchingFSM        = (*Machine)(nil)
	_ raft.ConfigurationStore = (*Machine)(nil)
)

// Open opens the state file, or makes an empty one, and starts the flusher.
func Open(opts Options) (*Machine, error) {
	if err := opts.fill(); err != nil {
		return nil, err
	}
	if info, err := os.Stat(filepath.Dir(opts.Path)); err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("open state: %w: %s is not a directory", hastate.ErrInvalid, filepath.Dir(opts.Path))
	}
	_, err := os.Stat(opts.Path)
	if errors.Is(err, fs.ErrNotExist) {
		err = createFile(opts.Path)
	}
	if err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	found, err := inspectFile(opts.Path)
	if err != nil {
		return nil, err
	}
	db, err := openFile(opts.Path)
	if err != nil {
		return nil, err
	}
	// Only the holder of the file's lock may remove what a restore left behind.
	if err := removeStale(restorePath(opts.Path)); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	m := &Machine{opts: opts, kick: make(chan struct{}, 1), ring: newRing(opts.RingEvents, opts.RingBytes)}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.adopt(db, found)
	m.ring.reset(m.state.revision)
	m.tasks.Go(m.runFlusher)
	return m, nil
}

// adopt makes the contents of a file the state. m.mu is held, or m is new.
func (m *Machine) adopt(db *bolt.DB, c contents) {
	m.db, m.active, m.sealed = db, newLayer(), nil
	m.state = newState(m)
	m.state.clusterID, m.state.revision = c.meta.clusterID, c.meta.revision
	m.state.counts, m.state.clients, m.state.answeredBytes = c.counts, c.clients, c.answeredBytes
	m.applied, m.term, m.flushed = c.meta.applied, c.meta.term, c.meta.applied
	m.configuration, m.configurationIndex = c.meta.configuration, c.meta.configurationIndex
	m.tally = c.meta.tally
}

// Close flushes and closes. The streams that were begun must be closed first.
func (m *Machine) Close() error {
	m.close.Do(func() {
		m.cancel()
		m.progress.wake()
		m.ring.close()
		err := m.flush()
		m.tasks.Wait()
		m.flushing.Lock()
		defer m.flushing.Unlock()
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.failed == nil {
			m.failed = fmt.Errorf("state machine: %w", hastate.ErrClosed)
		}
		m.changed.wake()
		m.closeErr = errors.Join(err, m.db.Close())
	})
	return m.closeErr
}

// halt stops the Machine for good. It must not be called with mu held.
func (m *Machine) halt(err error) error {
	m.mu.Lock()
	first := m.failed == nil
	if first {
		m.failed = err
	}
	m.mu.Unlock()
	m.progress.wake()
	if first {
		m.opts.Logger.Error("the state machine stops", "error", err)
		m.opts.Halt(err)
	}
	return err
}

// broadcast tells any number of waiters that something has happened.
type broadcast struct {
	mu sync.Mutex
	// ch is closed by the next wake; nil if nobody waits.
	ch chan struct{}
}

// wait returns a channel that the next wake closes. Get it, then look, then
// wait on it.
func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) wake() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}
