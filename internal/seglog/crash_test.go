// SPDX-License-Identifier: Apache-2.0

package seglog

import (
	"bytes"
	"errors"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
)

// TestCrash_LeavesAllOrNothing makes, of the files before and after each append, those
// that a power cut in the middle leaves: any of the sectors that were being written, and
// not the others. The log must hold what it held before, or what it held after if every
// sector got there, and must go on from there.
func TestCrash_LeavesAllOrNothing(t *testing.T) {
	rnd := seeded(t)
	dir, m := filepath.Join(t.TempDir(), "log"), newModel()
	l := open(t, dir)
	kept, torn := 0, 0
	for range 120 {
		done := quiet(l)
		before, was := images(t, dir), m.dump()
		done()
		m.step(t, l, rnd)
		done = quiet(l)
		after, is := images(t, dir), m.dump()
		done()
		for range 3 {
			crashed, all := partly(rnd, before, after)
			got := survivors(t, crashed, rnd)
			switch {
			case all && got == is:
				kept++
			case !all && got == was:
				torn++
			default:
				t.Fatalf("all sectors got there: %t; the log holds\n%s\nbefore it was\n%s\nafter\n%s", all, got, was, is)
			}
		}
	}
	if kept == 0 || torn < 50 {
		t.Errorf("%d were whole and %d torn: the test shows little", kept, torn)
	}
}

// partly mixes two pictures of the folder, sector by sector. A file that was made
// meanwhile was empty before. If one has gone, for nothing lies in it any more, the
// append that said so was on the disk before that: there is nothing to mix.
func partly(rnd *rand.Rand, before, after map[string][]byte) (out map[string][]byte, all bool) {
	out, all = map[string][]byte{}, true
	chance := rnd.IntN(4) // of 3: none, some, most, all
	for name := range before {
		if _, there := after[name]; !there {
			chance = 3
		}
	}
	for name, b := range after {
		old, ok := before[name]
		if !ok || len(old) != len(b) {
			old = make([]byte, len(b)) // a file that was just made
		}
		mixed := bytes.Clone(b)
		for at := 0; at < len(b); at += sectorBytes {
			if !bytes.Equal(b[at:at+sectorBytes], old[at:at+sectorBytes]) && rnd.IntN(3) >= chance {
				copy(mixed[at:at+sectorBytes], old[at:at+sectorBytes])
				all = false
			}
		}
		out[name] = mixed
	}
	return out, all
}

// survivors opens the files and says what the log holds; it must be able to go on, and
// hold the same and more when it is opened again.
func survivors(t *testing.T, files map[string][]byte, rnd *rand.Rand) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "log")
	lay(t, dir, files)
	l := open(t, dir)
	held := dump(t, l)
	m := newModel()
	m.values["mark"] = []byte("x")
	if err := l.SetValues([]string{"mark"}, [][]byte{m.values["mark"]}); err != nil {
		t.Fatal(err)
	}
	for _, r := range l.Stored() {
		for i := r.First; i <= r.Last; i++ {
			e := &raft.Log{}
			if err := l.Entry(i, e); err != nil {
				t.Fatal(err)
			}
			m.entries[i] = e
		}
	}
	l.mu.RLock()
	maps.Copy(m.values, l.contents.values)
	l.mu.RUnlock()
	for range rnd.IntN(4) {
		m.step(t, l, rnd)
	}
	shut(t, l)
	l = open(t, dir)
	if got := dump(t, l); got != m.dump() {
		t.Fatalf("after it went on it holds\n%s\nwant\n%s", got, m.dump())
	}
	shut(t, l)
	return held
}

// TestDamage_IsRefused flips bits: the log must be refused, or hold what it held.
func TestDamage_IsRefused(t *testing.T) {
	rnd := seeded(t)
	dir, m := filepath.Join(t.TempDir(), "log"), newModel()
	l := open(t, dir)
	for range 300 {
		m.step(t, l, rnd)
	}
	shut(t, l)
	files, want := images(t, dir), m.dump()
	refused := 0
	for range 200 {
		broken := maps.Clone(files)
		for name, b := range broken { // one of them, in no order
			b = bytes.Clone(b)
			b[rnd.IntN(len(b))] ^= 1 << rnd.IntN(8)
			broken[name] = b
			break
		}
		at := filepath.Join(t.TempDir(), "log")
		lay(t, at, broken)
		damaged, err := Open(Options{Dir: at, SegmentBytes: minSegmentBytes})
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("it is not called damaged: %v", err)
			}
			refused++
			continue
		}
		if got := dump(t, damaged); got != want {
			t.Fatalf("a flipped bit was taken:\n%s\nwant\n%s", got, want)
		}
		shut(t, damaged)
	}
	if refused < 50 {
		t.Errorf("only %d of 200 were refused: the test shows little", refused)
	}
}

// TestDamage_OfAWholeFile: a segment that is lost, emptied, or put back from a copy.
func TestDamage_OfAWholeFile(t *testing.T) {
	rnd := seeded(t)
	dir, m := filepath.Join(t.TempDir(), "log"), newModel()
	l := open(t, dir)
	var older map[string][]byte
	for i := range 400 {
		if i == 380 {
			done := quiet(l)
			older = images(t, dir)
			done()
		}
		m.step(t, l, rnd)
	}
	l.mu.RLock()
	first, last := l.segments[0].number, l.segments[len(l.segments)-1].number
	l.mu.RUnlock()
	shut(t, l)
	files := images(t, dir)
	if last-first < 2 {
		t.Skipf("the log has only %d segments", last-first+1)
	}
	for name, change := range map[string]func(map[string][]byte){
		"one in the middle is lost": func(f map[string][]byte) { delete(f, fileName(first+1)) },
		"one in the middle is zeros": func(f map[string][]byte) {
			f[fileName(first+1)] = make([]byte, len(f[fileName(first+1)]))
		},
		"the oldest is lost": func(f map[string][]byte) { delete(f, fileName(first)) },
		"one is that of another number": func(f map[string][]byte) {
			f[fileName(first)], f[fileName(first+1)] = f[fileName(first+1)], f[fileName(first)]
		},
		"all are gone": func(f map[string][]byte) { clear(f) },
		"there is another file": func(f map[string][]byte) {
			f["notes.txt"] = []byte("x")
		},
		"one has lost its end": func(f map[string][]byte) {
			b := bytes.Clone(f[fileName(first)])
			clear(b[len(b)/2:])
			f[fileName(first)] = b
		},
		"one is from a copy": func(f map[string][]byte) {
			for name, b := range older {
				if now, ok := f[name]; ok && !bytes.Equal(now, b) && name != fileName(last) {
					f[name] = b
					return
				}
			}
			delete(f, fileName(first)) // none has changed: as bad
		},
	} {
		t.Run(name, func(t *testing.T) {
			broken := maps.Clone(files)
			change(broken)
			at := filepath.Join(t.TempDir(), "log")
			lay(t, at, broken)
			if l, err := Open(Options{Dir: at, SegmentBytes: minSegmentBytes}); !errors.Is(err, ErrDamaged) {
				if err == nil {
					shut(t, l)
				}
				t.Fatalf("it was opened: %v", err)
			}
		})
	}
}
