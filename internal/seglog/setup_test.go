// SPDX-License-Identifier: Apache-2.0

package seglog

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, dir string) *Log {
	t.Helper()
	l, err := Open(Options{Dir: dir, SegmentBytes: minSegmentBytes})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func shut(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// dump is all that a log answers.
func dump(t testing.TB, l *Log) string {
	t.Helper()
	var b strings.Builder
	for _, r := range l.Stored() {
		for i := r.First; i <= r.Last; i++ {
			var e raft.Log
			if err := l.Entry(i, &e); err != nil {
				t.Fatalf("entry %d: %v", i, err)
			}
			b.WriteString(line(&e))
		}
	}
	l.mu.RLock()
	names := slices.Sorted(maps.Keys(l.contents.values))
	l.mu.RUnlock()
	for _, name := range names {
		v, _ := l.Value(name)
		fmt.Fprintf(&b, "%s=%x\n", name, v)
	}
	return b.String()
}

func line(e *raft.Log) string {
	return fmt.Sprintf("%d %d %d %d %x %x\n", e.Index, e.Term, e.Type, e.AppendedAt.UnixNano(), e.Extensions, e.Data)
}

// model is what a log is to hold.
type model struct {
	entries map[uint64]*raft.Log
	values  map[string][]byte
}

func newModel() *model { return &model{entries: map[uint64]*raft.Log{}, values: map[string][]byte{}} }

func (m *model) dump() string {
	var b strings.Builder
	for _, i := range slices.Sorted(maps.Keys(m.entries)) {
		b.WriteString(line(m.entries[i]))
	}
	for _, name := range slices.Sorted(maps.Keys(m.values)) {
		fmt.Fprintf(&b, "%s=%x\n", name, m.values[name])
	}
	return b.String()
}

func (m *model) last() uint64 {
	var last uint64
	for i := range m.entries {
		last = max(last, i)
	}
	return last
}

func (m *model) first() uint64 {
	first := m.last()
	for i := range m.entries {
		first = min(first, i)
	}
	return first
}

// step does one random thing to both.
func (m *model) step(t testing.TB, l *Log, rnd *rand.Rand) {
	t.Helper()
	var err error
	switch n := rnd.IntN(20); {
	case n < 11:
		next := m.last() + 1
		if rnd.IntN(12) == 0 {
			next += rnd.Uint64N(30) // a snapshot was installed
		}
		if rnd.IntN(12) == 0 {
			next = max(1, next-min(next-1, rnd.Uint64N(4))) // overwritten
		}
		var logs []*raft.Log
		for i := range 1 + rnd.Uint64N(5) {
			e := randomEntry(rnd, next+i)
			logs, m.entries[e.Index] = append(logs, e), e
		}
		err = l.Store(logs)
	case n < 14: // a suffix
		first := m.last() - min(m.last(), rnd.Uint64N(6))
		maps.DeleteFunc(m.entries, func(i uint64, _ *raft.Log) bool { return i >= first })
		err = l.Delete(first, ^uint64(0)-1)
	case n < 17: // a prefix
		last := m.first() + rnd.Uint64N(12)
		maps.DeleteFunc(m.entries, func(i uint64, _ *raft.Log) bool { return i <= last })
		err = l.Delete(1, last)
	default:
		name, v := fmt.Sprintf("v%d", rnd.IntN(4)), randomBytes(rnd, 40)
		other := randomBytes(rnd, 900)
		m.values[name], m.values["other"] = v, other
		err = l.SetValues([]string{name, "other"}, [][]byte{v, other})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func randomBytes(rnd *rand.Rand, limit int) []byte {
	b := make([]byte, rnd.IntN(limit))
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

func randomEntry(rnd *rand.Rand, index uint64) *raft.Log {
	e := &raft.Log{Index: index, Term: rnd.Uint64N(9), Type: raft.LogType(rnd.IntN(6)), Data: randomBytes(rnd, 1+[]int{40, 600, 9000}[rnd.IntN(3)])}
	if rnd.IntN(3) == 0 {
		e.Extensions = randomBytes(rnd, 50)
	}
	if rnd.IntN(3) > 0 {
		e.AppendedAt = time.Unix(0, rnd.Int64())
	}
	return e
}

// images are the files of a folder.
func images(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for _, f := range files {
		if strings.HasSuffix(f.Name(), newSuffix) {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		out[f.Name()] = b
	}
	return out
}

// lay writes the files into a new folder.
func lay(t testing.TB, dir string, files map[string][]byte) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, dirMode); err != nil {
		t.Fatal(err)
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, fileMode); err != nil {
			t.Fatal(err)
		}
	}
}

// quiet waits until no file is being made, so that a picture of the folder is whole.
func quiet(l *Log) func() {
	l.preparing.Lock()
	return l.preparing.Unlock
}

func seeded(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}
