// SPDX-License-Identifier: Apache-2.0

package logstore

import (
	"bytes"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/wait"
)

func TestAnEmptyStoreHasNoEntries(t *testing.T) { eachKind(t, testAnEmptyStoreHasNoEntries) }

func testAnEmptyStoreHasNoEntries(t *testing.T, kind Kind) {
	t.Helper()
	b := open(t, Options{Kind: kind})
	b.bounds(0, 0)
	var l raft.Log
	if err := b.GetLog(1, &l); err != raft.ErrLogNotFound { //nolint:errorlint // raft compares it by ==
		t.Fatalf("got %v", err)
	}
	if _, err := b.GetUint64([]byte("CurrentTerm")); err == nil || err.Error() != "not found" {
		t.Fatalf("raft compares the text of this error: %v", err)
	}
	b.del(0, 100)
}

func TestStableValuesSurviveARestart(t *testing.T) { eachKind(t, testStableValuesSurviveARestart) }

func testStableValuesSurviveARestart(t *testing.T, kind Kind) {
	t.Helper()
	b := open(t, Options{Kind: kind})
	if err := errors.Join(b.SetUint64([]byte("CurrentTerm"), 7), b.Set([]byte("LastVoteCand"), []byte("n1"))); err != nil {
		t.Fatal(err)
	}
	b.reopen()
	if v, err := b.GetUint64([]byte("CurrentTerm")); v != 7 || err != nil {
		t.Fatal(v, err)
	}
	if v, err := b.Get([]byte("LastVoteCand")); string(v) != "n1" || err != nil {
		t.Fatal(v, err)
	}
	if _, err := b.GetUint64([]byte("LastVoteCand")); err == nil {
		t.Fatal("a value that is no number was read as one")
	}
}

func TestEveryFieldOfAnEntryIsKept(t *testing.T) { eachKind(t, testEveryFieldOfAnEntryIsKept) }

func testEveryFieldOfAnEntryIsKept(t *testing.T, kind Kind) {
	t.Helper()
	b := open(t, Options{Kind: kind, CacheBytes: 1})
	want := raft.Log{Index: 3, Term: 2, Type: raft.LogConfiguration, Data: []byte("d"), Extensions: []byte("x"), AppendedAt: time.Unix(1700000000, 5).UTC()}
	if err := b.StoreLog(&want); err != nil {
		t.Fatal(err)
	}
	b.reopen()
	var got raft.Log
	if err := b.GetLog(3, &got); err != nil {
		t.Fatal(err)
	}
	if got.Index != want.Index || got.Term != want.Term || got.Type != want.Type || !bytes.Equal(got.Data, want.Data) ||
		!bytes.Equal(got.Extensions, want.Extensions) || !got.AppendedAt.Equal(want.AppendedAt) {
		t.Fatalf("got %+v, want %+v", got, want)
	}
}

func TestACompactionIsMadeInChunksThatLeaveAContiguousLog(t *testing.T) {
	f := &script{}
	b := open(t, Options{Fault: f})
	for i := uint64(1); i < 2000; i += 100 {
		b.put(1, i, i+99)
	}
	b.bounds(1, 2000)
	chunks := 0
	f.set(func(string) error {
		chunks++
		if first, _ := b.FirstIndex(); first != uint64(1+deleteChunk*(chunks-1)) {
			t.Errorf("chunk %d begins with first index %d", chunks, first)
		}
		return nil
	})
	b.del(1, 1500)
	b.bounds(1501, 2000)
	if chunks != 3 {
		t.Errorf("%d chunks", chunks)
	}
	// Everything at once goes from the top, so that a crash leaves no gap.
	f.set(func(string) error {
		if first, _ := b.FirstIndex(); first != 1501 {
			t.Errorf("the bottom went first: %d", first)
		}
		return nil
	})
	b.put(1, 2001, 2600)
	b.del(0, 5000)
	b.bounds(0, 0)
	b.reopen()
	b.bounds(0, 0)
	if n := b.Stats().Entries; n != 0 {
		t.Errorf("%d entries left", n)
	}
}

// TestAStoreAnswersLikeAMap compares stores with a large and with no cache to a
// map, over appends, gaps, overwrites, truncations, compactions and restarts.
func TestAStoreAnswersLikeAMap(t *testing.T) { eachKind(t, testAStoreAnswersLikeAMap) }

func testAStoreAnswersLikeAMap(t *testing.T, kind Kind) {
	t.Helper()
	rapid.Check(t, func(rt *rapid.T) {
		var stores []*bench
		for _, cache := range []int64{1 << 20, 1, 3 * (entryOverhead + 20)} {
			stores = append(stores, open(t, Options{Kind: kind, CacheBytes: cache, Path: filepath.Join(memoryDir(t), "log.db")}))
		}
		defer func() {
			for _, b := range stores {
				_ = b.Close()
			}
		}()
		model := map[uint64]raft.Log{}
		term := uint64(1)
		index := rapid.Uint64Range(1, 40)
		rt.Repeat(map[string]func(*rapid.T){
			"store": func(rt *rapid.T) {
				first := index.Draw(rt, "first")
				logs := entries(term, first, first+rapid.Uint64Range(0, 6).Draw(rt, "more"))
				term++
				for _, b := range stores {
					if err := b.StoreLogs(logs); err != nil {
						rt.Fatal(err)
					}
				}
				for _, l := range logs {
					model[l.Index] = *l
				}
			},
			"delete": func(rt *rapid.T) {
				first, last := index.Draw(rt, "first"), index.Draw(rt, "last")
				for _, b := range stores {
					if err := b.DeleteRange(first, last); err != nil {
						rt.Fatal(err)
					}
				}
				maps.DeleteFunc(model, func(i uint64, _ raft.Log) bool { return first <= i && i <= last })
			},
			"restart": func(*rapid.T) {
				for _, b := range stores {
					b.reopen()
				}
			},
			"": func(rt *rapid.T) {
				for _, b := range stores {
					sameAsMap(rt, b, model)
				}
			},
		})
	})
}

func sameAsMap(rt *rapid.T, b *bench, model map[uint64]raft.Log) {
	var first, last uint64
	if keys := slices.Sorted(maps.Keys(model)); len(keys) > 0 {
		first, last = keys[0], keys[len(keys)-1]
	}
	b.bounds(first, last)
	st := b.Stats()
	if st.Entries != uint64(len(model)) {
		rt.Fatalf("%d entries, want %d", st.Entries, len(model))
	}
	if st.CacheBytes > b.tail.limit {
		rt.Fatalf("the cache has %d bytes, the limit is %d", st.CacheBytes, b.tail.limit)
	}
	var sum int64
	for i := b.tail.head; i < len(b.tail.entries); i++ {
		sum += entryBytes(&b.tail.entries[i])
	}
	if sum != st.CacheBytes {
		rt.Fatalf("the cache counts %d bytes and has %d", st.CacheBytes, sum)
	}
	for i := uint64(0); i <= 50; i++ {
		var l raft.Log
		err := b.GetLog(i, &l)
		want, ok := model[i]
		switch {
		case !ok && err != raft.ErrLogNotFound: //nolint:errorlint // raft compares it by ==
			rt.Fatalf("entry %d: %v, want not found", i, err)
		case ok && (err != nil || l.Term != want.Term || l.Index != i || !bytes.Equal(l.Data, want.Data)):
			rt.Fatalf("entry %d: %+v %v, want %+v", i, l, err, want)
		}
	}
}

func TestAFailedWriteStopsTheStoreAndHaltsOnce(t *testing.T) {
	eachKind(t, testAFailedWriteStopsTheStoreAndHaltsOnce)
}

func testAFailedWriteStopsTheStoreAndHaltsOnce(t *testing.T, kind Kind) {
	t.Helper()
	for _, op := range []string{OpStore, OpDelete, OpSet} {
		t.Run(op, func(t *testing.T) {
			f := &script{}
			var halts []error
			b := open(t, Options{Kind: kind, Fault: f, Halt: func(err error) { halts = append(halts, err) }})
			b.put(1, 1, 3)
			f.set(func(got string) error {
				if got == op {
					return syscall.EIO
				}
				return nil
			})
			try := map[string]func() error{
				OpStore:  func() error { return b.StoreLog(entry(1, 4)) },
				OpDelete: func() error { return b.DeleteRange(1, 1) },
				OpSet:    func() error { return b.Set([]byte("k"), []byte("v")) },
			}
			if err := try[op](); !errors.Is(err, syscall.EIO) {
				t.Fatal(err)
			}
			f.set(nil) // the disk is well again; the store is not
			for name, again := range try {
				if err := again(); !errors.Is(err, syscall.EIO) {
					t.Errorf("%s after the failure: %v", name, err)
				}
			}
			if len(halts) != 1 || !errors.Is(halts[0], syscall.EIO) {
				t.Errorf("halted with %v", halts)
			}
			b.bounds(1, 3)
			var l raft.Log
			if err := b.GetLog(1, &l); err != nil {
				t.Errorf("what was durable cannot be read any more: %v", err)
			}
			b.reopen()
			b.put(1, 4, 4)
		})
	}
}

func TestAStalledWriteShowsItsAge(t *testing.T) { eachKind(t, testAStalledWriteShowsItsAge) }

func testAStalledWriteShowsItsAge(t *testing.T, kind Kind) {
	t.Helper()
	f := &script{}
	b := open(t, Options{Kind: kind, Fault: f})
	if d := b.Stalled(); d != 0 {
		t.Fatalf("stalled for %v with nothing running", d)
	}
	entered, release := make(chan struct{}), make(chan struct{})
	f.set(func(string) error { close(entered); <-release; f.set(nil); return nil })
	done := make(chan error, 2)
	go func() { done <- b.StoreLog(entry(1, 1)) }()
	<-entered
	b.clock.Advance(3 * time.Second)
	// A second write waits behind the first; the older one counts.
	go func() { done <- b.SetUint64([]byte("CurrentTerm"), 1) }()
	wait.Until(t, 10*time.Second, func() error {
		b.running.mu.Lock()
		defer b.running.mu.Unlock()
		if len(b.running.since) != 2 {
			return errors.New("the second write is not running")
		}
		return nil
	})
	b.clock.Advance(time.Second)
	if d := b.Stalled(); d != 4*time.Second {
		t.Errorf("stalled for %v, want 4s", d)
	}
	// Reads and lease decisions do not wait for the disk.
	b.bounds(0, 0)
	_ = b.StoredAt(1)
	close(release)
	if err := errors.Join(<-done, <-done); err != nil {
		t.Fatal(err)
	}
	if d := b.Stalled(); d != 0 {
		t.Errorf("stalled for %v after the writes", d)
	}
}

func TestAClosedStoreRefuses(t *testing.T) { eachKind(t, testAClosedStoreRefuses) }

func testAClosedStoreRefuses(t *testing.T, kind Kind) {
	t.Helper()
	b := open(t, Options{Kind: kind})
	b.put(1, 1, 1)
	if err := errors.Join(b.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}
	var l raft.Log
	_, first := b.FirstIndex()
	_, last := b.LastIndex()
	_, get := b.Get([]byte("k"))
	for i, err := range []error{b.StoreLog(entry(1, 2)), b.DeleteRange(1, 1), b.Set(nil, nil), b.GetLog(1, &l), first, last, get} {
		if !errors.Is(err, hastate.ErrClosed) {
			t.Errorf("call %d: %v", i, err)
		}
	}
	if _, err := Open(Options{}); !errors.Is(err, hastate.ErrInvalid) {
		t.Errorf("open without a path: %v", err)
	}
}

func TestWritesAreCounted(t *testing.T) { eachKind(t, testWritesAreCounted) }

func testWritesAreCounted(t *testing.T, kind Kind) {
	t.Helper()
	b := open(t, Options{Kind: kind})
	b.put(1, 1, 10)
	b.del(1, 4)
	w := b.Stats().Writes
	if w.Count != 2 || w.Entries != 10 || w.Removals != 4 || w.Total <= 0 || w.Max > w.Total || w.Last <= 0 {
		t.Errorf("%+v", w)
	}
}
