// SPDX-License-Identifier: Apache-2.0

package seglog

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/raft"
)

// TestLog_HoldsWhatItWasGiven compares a log with a dumb model, over many segments, and
// after each reopening.
func TestLog_HoldsWhatItWasGiven(t *testing.T) {
	rnd := seeded(t)
	dir, m := filepath.Join(t.TempDir(), "log"), newModel()
	l := open(t, dir)
	for i := range 800 {
		m.step(t, l, rnd)
		if i%50 == 49 {
			if got, want := dump(t, l), m.dump(); got != want {
				t.Fatalf("after %d steps:\n%s\nwant:\n%s", i, got, want)
			}
		}
		if i%100 == 99 {
			shut(t, l)
			l = open(t, dir)
			if got, want := dump(t, l), m.dump(); got != want {
				t.Fatalf("after %d steps and reopening:\n%s\nwant:\n%s", i, got, want)
			}
		}
	}
	l.mu.RLock()
	newest := l.segments[len(l.segments)-1].number
	l.mu.RUnlock()
	if newest < 10 {
		t.Errorf("only %d segments were used: the test shows little", newest)
	}
}

func TestLog_CompactionFreesSegments(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	l := open(t, dir)
	for i := range uint64(400) {
		if err := l.Store([]*raft.Log{{Index: i + 1, Term: 1, Data: make([]byte, 8000)}}); err != nil {
			t.Fatal(err)
		}
		if i > 20 {
			if err := l.Delete(1, i-20); err != nil {
				t.Fatal(err)
			}
		}
	}
	shut(t, l)
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	// 21 entries of 8 KB lie in at most five files of 64 KiB; one is ahead, one is being freed.
	if len(files) > 7 {
		t.Errorf("%d files are left", len(files))
	}
}

// TestLog_ASegmentThatCannotBeRemoved is the first to go when it can: a later one that
// goes before it would leave a gap, and the log could not be opened any more.
func TestLog_ASegmentThatCannotBeRemoved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	l := open(t, dir)
	for i := range uint64(40) {
		if err := l.Store([]*raft.Log{{Index: i + 1, Term: 1, Data: make([]byte, 8000)}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.tidy(); err != nil { // there is a spare, so that none is made of what is dead
		t.Fatal(err)
	}
	l.preparing.Lock() // nothing is removed meanwhile
	if err := l.Delete(1, 35); err != nil {
		t.Fatal(err)
	}
	if len(l.dead) < 2 {
		t.Fatalf("%d segments are dead", len(l.dead))
	}
	first := filepath.Join(dir, fileName(l.dead[0].number))
	aside := filepath.Join(t.TempDir(), "aside")
	if err := errors.Join(os.Rename(first, aside), os.MkdirAll(filepath.Join(first, "full"), 0o700)); err != nil {
		t.Fatal(err)
	}
	l.preparing.Unlock()
	for range 3 {
		if err := l.tidy(); err == nil {
			t.Error("a folder that is not empty was removed")
		}
	}
	l.preparing.Lock() // the file that is aside is not gone
	err := errors.Join(os.RemoveAll(first), os.Rename(aside, first))
	l.preparing.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	shut(t, l)
	if l, err := Open(Options{Dir: dir}); err != nil {
		t.Error(err)
	} else {
		shut(t, l)
	}
}

func TestLog_AnAppendLargerThanASegment(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	l := open(t, dir)
	m := newModel()
	for i := range uint64(3) {
		e := &raft.Log{Index: i + 1, Term: 1, Data: make([]byte, 5*minSegmentBytes)}
		m.entries[e.Index] = e
		if err := l.Store([]*raft.Log{e}); err != nil {
			t.Fatal(err)
		}
	}
	shut(t, l)
	l = open(t, dir)
	if dump(t, l) != m.dump() {
		t.Error("it is not what was stored")
	}
}

func TestLog_IsLocked(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	open(t, dir)
	if l, err := Open(Options{Dir: dir}); !errors.Is(err, ErrLocked) {
		t.Fatalf("a second process would get it: %v, %v", l, err)
	}
}

func TestLog_Refuses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	l := open(t, dir)
	for name, err := range map[string]error{
		"index 0":         l.Store([]*raft.Log{{Index: 0}}),
		"the index above": l.Store([]*raft.Log{{Index: math.MaxUint64}}),
		"a long value":    l.SetValues([]string{"a"}, [][]byte{make([]byte, MaxValueBytes+1)}),
		"many values":     l.SetValues(strings.Split("abcdefghijklmnopqrst", ""), make([][]byte, 20)),
	} {
		if err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	if got := dump(t, l); got != "" {
		t.Errorf("something was kept: %s", got)
	}
	var e raft.Log
	if err := l.Entry(1, &e); err != raft.ErrLogNotFound { //nolint:errorlint // raft compares so
		t.Errorf("Entry of none: %v", err)
	}
	shut(t, l)
	for name, err := range map[string]error{
		"Store": l.Store([]*raft.Log{{Index: 1}}), "SetValues": l.SetValues([]string{"a"}, [][]byte{nil}), "Entry": l.Entry(1, &e),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
}

// TestLog_ReadersBesideCompaction: an entry that goes while it is read is not found, and
// never another one, though its file is written to again.
func TestLog_ReadersBesideCompaction(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	l := open(t, dir)
	var (
		wg   sync.WaitGroup
		stop = make(chan struct{})
	)
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				stored := l.Stored()
				index := stored.First()
				var e raft.Log
				err := l.Entry(index, &e)
				if errors.Is(err, raft.ErrLogNotFound) {
					continue
				}
				if err != nil || e.Index != index || len(e.Data) != 5000 || e.Data[0] != byte(index) {
					t.Errorf("entry %d: %d, %v", index, e.Index, err)
					return
				}
			}
		})
	}
	for i := range uint64(2000) {
		data := make([]byte, 5000)
		data[0] = byte(i + 1)
		if err := l.Store([]*raft.Log{{Index: i + 1, Term: 1, Data: data}}); err != nil {
			t.Fatal(err)
		}
		if i > 5 {
			if err := l.Delete(1, i-5); err != nil {
				t.Fatal(err)
			}
		}
	}
	close(stop)
	wg.Wait()
}
