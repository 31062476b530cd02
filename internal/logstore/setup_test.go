// SPDX-License-Identifier: Apache-2.0

package logstore

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"github.com/hastate/hastate/internal/clock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a store on a clock that stands until it is moved.
type bench struct {
	*Store
	t     testing.TB
	opts  Options
	clock *clock.Fake
}

func open(t testing.TB, opts Options) *bench {
	t.Helper()
	if opts.SegmentBytes == 0 {
		opts.SegmentBytes = 64 << 10
	}
	b := &bench{t: t, opts: opts, clock: &clock.Fake{}}
	b.clock.Advance(time.Hour)
	if b.opts.Path == "" {
		b.opts.Path = filepath.Join(t.TempDir(), "log.db")
	}
	b.opts.Clock = b.clock
	s, err := Open(b.opts)
	if err != nil {
		t.Fatal(err)
	}
	b.Store = s
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// eachKind runs a test with both kinds of logs.
func eachKind(t *testing.T, test func(*testing.T, Kind)) {
	t.Helper()
	for _, kind := range Kinds {
		t.Run(string(kind), func(t *testing.T) { test(t, kind) })
	}
}

func (b *bench) reopen() {
	b.t.Helper()
	if err := b.Close(); err != nil {
		b.t.Fatal(err)
	}
	s, err := Open(b.opts)
	if err != nil {
		b.t.Fatal(err)
	}
	b.Store = s
}

// put stores first..last in one call.
func (b *bench) put(term, first, last uint64) {
	b.t.Helper()
	if err := b.StoreLogs(entries(term, first, last)); err != nil {
		b.t.Fatal(err)
	}
}

func entries(term, first, last uint64) []*raft.Log {
	var logs []*raft.Log
	for i := first; i <= last; i++ {
		logs = append(logs, entry(term, i))
	}
	return logs
}

func entry(term, index uint64) *raft.Log {
	return &raft.Log{Index: index, Term: term, Type: raft.LogCommand, Data: fmt.Appendf(nil, "entry %d of term %d", index, term)}
}

func (b *bench) del(first, last uint64) {
	b.t.Helper()
	if err := b.DeleteRange(first, last); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) tick() clock.Instant {
	b.clock.Advance(time.Second)
	return b.clock.Now()
}

func (b *bench) bounds(first, last uint64) {
	b.t.Helper()
	f, err := b.FirstIndex()
	if err != nil {
		b.t.Fatal(err)
	}
	l, err := b.LastIndex()
	if err != nil {
		b.t.Fatal(err)
	}
	if f != first || l != last {
		b.t.Fatalf("the log is %d..%d, want %d..%d", f, l, first, last)
	}
}

func (b *bench) storedAt(index uint64, want clock.Instant) {
	b.t.Helper()
	if got := b.StoredAt(index); got != want {
		b.t.Fatalf("entry %d counts as stored at %v, want %v", index, time.Duration(got), time.Duration(want))
	}
}

// script is a Fault whose behaviour tests set.
type script struct {
	mu     sync.Mutex
	before func(op string) error
}

func (s *script) set(f func(op string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = f
}

func (s *script) Before(op string) error {
	s.mu.Lock()
	f := s.before
	s.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(op)
}

// memoryDir is a directory in memory where there is one, for tests that write often
// and do not care for the disk.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "logstore") //nolint:usetesting // not on the disk: it is slow and busy
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
