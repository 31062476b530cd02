// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/wait"
)

// unsynced is how many pages of a file the kernel has not written to the disk.
func unsynced(t *testing.T, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Cachestat_t
	err = unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &st, 0)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM) {
		t.Skip("the kernel does not say which pages of a file are unsynced (before 6.5)")
	}
	if err != nil {
		t.Fatal(err)
	}
	return st.Dirty + st.Writeback
}

// TestFlushIsOnTheDisk guards the fsync of the flush: after it the kernel has
// nothing of the file left to write.
func TestFlushIsOnTheDisk(t *testing.T) {
	dir := t.TempDir()
	// A file written without a sync shows that the check can fail.
	control := filepath.Join(dir, "control")
	if err := os.WriteFile(control, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if unsynced(t, control) == 0 {
		t.Skip("this file system has no unsynced pages to tell of")
	}
	path := filepath.Join(dir, "state.db")
	m := open(t, quiet(path))
	defer func() { closeMachine(t, m) }()
	for i := range 20 {
		must(t, m, put("g", fmt.Sprint(i), string(make([]byte, 4096))))
	}
	flush(t, m)
	if n := unsynced(t, path); n != 0 {
		t.Errorf("after a flush %d pages of the state file are not on the disk", n)
	}
}

// TestWhatIsOpenedIsOnTheDisk: a process that was killed in a flush leaves a file that
// can be read and is not on the disk. What is read counts as flushed from then on, and
// the log is truncated in favour of it, so it has to be synced first.
func TestWhatIsOpenedIsOnTheDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	m := open(t, quiet(path))
	for i := range 20 {
		must(t, m, put("g", fmt.Sprint(i), string(make([]byte, 4096))))
	}
	flush(t, m)
	closeMachine(t, m)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, fileMode); err != nil { // as a killed process leaves it
		t.Fatal(err)
	}
	if unsynced(t, path) == 0 {
		t.Skip("this file system has no unsynced pages to tell of")
	}
	m = open(t, quiet(path))
	defer func() { closeMachine(t, m) }()
	if n := unsynced(t, path); n != 0 {
		t.Errorf("%d pages of the state file are not on the disk, and %d counts as flushed", n, m.Flushed())
	}
}

// TestFlushCommitsSynced guards the same where the kernel cannot be asked.
func TestFlushCommitsSynced(t *testing.T) {
	o := quiet(filepath.Join(t.TempDir(), "state.db"))
	commits := 0
	o.commit = func(db *bolt.DB, tx *bolt.Tx) error {
		commits++
		if db.NoSync || db.NoGrowSync {
			t.Errorf("a flush commits with NoSync %v, NoGrowSync %v", db.NoSync, db.NoGrowSync)
		}
		return tx.Commit()
	}
	m := open(t, o)
	must(t, m, put("g", "s", "v"))
	closeMachine(t, m)
	if commits != 1 {
		t.Errorf("%d commits, want 1", commits)
	}
}

// sink records what a snapshot does to it.
type sink struct {
	raft.SnapshotSink
	live                chan uint64
	closed, cancelled   bool
	flushedWhenLive     uint64
	m                   *Machine
	failLive, failClose error
}

func (s *sink) Live(index uint64) error {
	s.flushedWhenLive = s.m.Flushed()
	s.live <- index
	return s.failLive
}
func (s *sink) Close() error  { s.closed = true; return s.failClose }
func (s *sink) Cancel() error { s.cancelled = true; return nil }

// TestNothingCountsBeforeTheCommit holds a commit up: neither Flushed nor a
// snapshot may be ahead of it.
func TestNothingCountsBeforeTheCommit(t *testing.T) {
	o := quiet(filepath.Join(t.TempDir(), "state.db"))
	entered, release := make(chan struct{}), make(chan struct{})
	o.commit = func(_ *bolt.DB, tx *bolt.Tx) error {
		entered <- struct{}{}
		<-release
		return tx.Commit()
	}
	m := open(t, o)
	must(t, m, put("g", "s", "v"))
	snap, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{m: m, live: make(chan uint64, 1)}
	done := make(chan error, 1)
	go func() { done <- snap.Persist(s) }()
	<-entered
	if n := m.Flushed(); n != 0 {
		t.Errorf("flushed is %d during the commit", n)
	}
	select {
	case <-s.live:
		t.Error("the snapshot counted before the commit")
	default:
	}
	// Writing and reading go on meanwhile.
	must(t, m, put("g", "s", "w"))
	if x, _, _ := m.Session("g", "s"); string(x.GetValue()) != "w" {
		t.Errorf("read %q during a flush", x.GetValue())
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	snap.Release()
	if index := <-s.live; index != 1 || s.flushedWhenLive < 1 || !s.closed || s.cancelled {
		t.Errorf("live %d with %d flushed, closed %v", index, s.flushedWhenLive, s.closed)
	}
	go func() { <-entered }() // The flush of Close.
	closeMachine(t, m)
}

func TestFailedFlushIsFatal(t *testing.T) {
	o := quiet(filepath.Join(t.TempDir(), "state.db"))
	broken := errors.New("input/output error")
	commits := 0
	o.commit = func(_ *bolt.DB, tx *bolt.Tx) error {
		commits++
		return errors.Join(broken, tx.Rollback())
	}
	var halted []error
	o.Halt = func(err error) { halted = append(halted, err) }
	m := open(t, o)
	must(t, m, put("g", "s", "v"))
	snap, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{m: m, live: make(chan uint64, 1)}
	if err := snap.Persist(s); !errors.Is(err, broken) || !s.cancelled || s.closed || len(s.live) != 0 {
		t.Errorf("persist: %v, sink %+v", err, s)
	}
	if len(halted) != 1 || !errors.Is(halted[0], broken) {
		t.Errorf("halted with %v", halted)
	}
	for range 2 {
		if err := m.flush(); !errors.Is(err, broken) {
			t.Errorf("flush again: %v", err)
		}
	}
	if commits != 1 || m.Flushed() != 0 {
		t.Errorf("%d commits, flushed %d: a failed flush must not be tried again", commits, m.Flushed())
	}
	if err := m.Close(); !errors.Is(err, broken) {
		t.Errorf("close: %v", err)
	}
}

func TestFlushByBytesAndByTime(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"bytes": func(o *Options) { o.FlushBytes = 1 },
		"time":  func(o *Options) { o.FlushInterval = time.Millisecond },
	} {
		t.Run(name, func(t *testing.T) {
			o := quiet(filepath.Join(t.TempDir(), "state.db"))
			change(&o)
			m := open(t, o)
			defer func() { closeMachine(t, m) }()
			must(t, m, put("g", "s", "v"))
			wait.Until(t, 10*time.Second, func() error {
				if m.Flushed() != 1 {
					return errors.New("not flushed")
				}
				return nil
			})
		})
	}
}

// TestApplyWaitsForASlowDisk: memory is bounded when a flush does not end.
func TestApplyWaitsForASlowDisk(t *testing.T) {
	o := quiet(filepath.Join(t.TempDir(), "state.db"))
	o.FlushBytes = 4 << 10
	var held atomic.Bool
	held.Store(true)
	entered, release := make(chan struct{}, 1), make(chan struct{})
	o.commit = func(_ *bolt.DB, tx *bolt.Tx) error {
		if held.Load() {
			entered <- struct{}{}
			<-release
		}
		return tx.Commit()
	}
	m := open(t, o)
	const n = 100
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range n {
			m.Apply(logOf(t, uint64(i+1), put("g", fmt.Sprint(i), string(make([]byte, 1024)))))
		}
	}()
	<-entered
	wait.Until(t, 10*time.Second, func() error {
		m.mu.RLock()
		defer m.mu.RUnlock()
		if m.active.bytes < stallFactor*o.FlushBytes {
			return fmt.Errorf("%d bytes, at entry %d", m.active.bytes, m.applied)
		}
		return nil
	})
	select {
	case <-done:
		t.Fatal("everything was applied while the disk stood still")
	default:
	}
	m.mu.RLock()
	if m.active.bytes > (stallFactor+1)*o.FlushBytes {
		t.Errorf("%d bytes in memory with a flush size of %d", m.active.bytes, o.FlushBytes)
	}
	m.mu.RUnlock()
	held.Store(false)
	close(release)
	<-done
	closeMachine(t, m)
}

func TestWaitApplied(t *testing.T) {
	m := open(t, quiet(filepath.Join(t.TempDir(), "state.db")))
	ctx, cancel := context.WithCancel(context.Background())
	results := make(chan error, 1)
	go func() { results <- m.WaitApplied(ctx, 2) }()
	must(t, m, put("g", "s", "1"))
	must(t, m, put("g", "s", "2"))
	if err := <-results; err != nil {
		t.Errorf("wait: %v", err)
	}
	go func() { results <- m.WaitApplied(ctx, 3) }()
	cancel()
	if err := <-results; !errors.Is(err, context.Canceled) {
		t.Errorf("wait with an ended context: %v", err)
	}
	go func() { results <- m.WaitApplied(context.Background(), 3) }()
	closeMachine(t, m)
	if err := <-results; !errors.Is(err, hastate.ErrClosed) {
		t.Errorf("wait on a closed machine: %v", err)
	}
}
