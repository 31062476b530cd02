// SPDX-License-Identifier: Apache-2.0

package logstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/boltfile"
)

var exhaustive = flag.Bool("exhaustive", false, "flip every single bit of a log file, which takes minutes")

// contents is all that a store answers.
func contents(t testing.TB, s *Store) string {
	t.Helper()
	first, err0 := s.FirstIndex()
	last, err1 := s.LastIndex()
	if err := errors.Join(err0, err1); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for i := first; i <= last; i++ {
		var l raft.Log
		err := s.GetLog(i, &l)
		b.WriteString(lineOf(i, &l, err))
	}
	for _, key := range stableKeys {
		v, err := s.Get(key)
		fmt.Fprintf(&b, "%s %x %v\n", key, v, err)
	}
	return b.String()
}

func lineOf(index uint64, l *raft.Log, err error) string {
	return fmt.Sprintf("%d %d %d %d %x %v\n", index, l.Index, l.Term, l.Type, l.Data, err)
}

// damagedOpen opens a file with these bytes. It returns false if it is refused; the
// refusal must say that it is damaged.
func damagedOpen(t testing.TB, path string, data []byte) (string, bool) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(Options{Path: path, CacheBytes: 1})
	if err != nil {
		if !errors.Is(err, hastate.ErrPrecondition) || !strings.Contains(err.Error(), "damaged") {
			t.Fatalf("it is not called damaged: %v", err)
		}
		return "", false
	}
	found := contents(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return found, true
}

// agedLog is the bytes of a log that was written, cut at both ends and written again,
// so that the file holds older versions of its pages; and its contents.
func agedLog(t testing.TB) (file []byte, want string) {
	t.Helper()
	path := filepath.Join(memoryDir(t), "log.db")
	b := open(t, Options{Path: path})
	for n := uint64(1); n < 180; n += 3 {
		b.put(1, n, n+2)
	}
	if err := errors.Join(b.SetUint64([]byte("CurrentTerm"), 2), b.SetUint64(voteTerm, 2), b.Set(voteCandidate, []byte("n1"))); err != nil {
		t.Fatal(err)
	}
	b.del(170, 180)
	b.put(2, 170, 171)
	b.del(1, 20)
	for n := uint64(172); n < 200; n += 2 {
		b.put(2, n, n+1)
	}
	want = contents(t, b.Store)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	size, err := boltfile.Size(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return data[:size], want
}

// TestAFlippedBitNeverChangesHistory flips bits of the file, most where its structure
// is: the store is refused, or everything is as it was.
//
// But for one case: where a page number becomes that of another page of entries, an
// older or a smaller log is found, each entry of which is right by itself. raft-boltdb
// leaves no place to count them in the same transaction. The node compares the end of
// the log with its state (node.checkData).
func TestAFlippedBitNeverChangesHistory(t *testing.T) {
	good, want := agedLog(t)
	path := filepath.Join(memoryDir(t), "log.db")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	refused, unharmed, older := 0, 0, 0
	flip := func(at, bit int) {
		data := bytes.Clone(good)
		data[at] ^= 1 << bit
		switch found, opened := damagedOpen(t, path, data); {
		case !opened:
			refused++
		case found == want:
			unharmed++
		case renumbered(good, data, at) && wasStored(found, want) == "":
			older++
		default:
			t.Errorf("bit %d of byte %d of page %d changes the log and is not noticed", bit, at%os.Getpagesize(), at/os.Getpagesize())
		}
	}
	for at := range good {
		switch offset := at % os.Getpagesize(); {
		case *exhaustive:
			for bit := range 8 {
				flip(at, bit)
			}
		case offset >= 8 && offset < 32, at < 2*os.Getpagesize() && offset < 80, rnd.IntN(100) == 0:
			flip(at, rnd.IntN(8))
		}
	}
	t.Logf("%d bytes: refused %d, unharmed %d, an older log %d", len(good), refused, unharmed, older)
	if refused == 0 || unharmed == 0 {
		t.Error("the test flips nothing that matters")
	}
}

// renumbered tells whether the change at a byte may have made one page number of
// another.
func renumbered(good, data []byte, at int) bool {
	pages := uint64(len(good) / os.Getpagesize())
	isPage := func(b []byte) bool {
		id := binary.NativeEndian.Uint64(b)
		return id >= 2 && id < pages
	}
	for i := max(0, at-7); i <= at && i+8 <= len(good); i++ {
		if isPage(good[i:]) && isPage(data[i:]) {
			return true
		}
	}
	return false
}

// wasStored returns what of found nobody has ever stored at its place, "" if there is
// no such thing. The stable values must be those of want.
func wasStored(found, want string) string {
	stable := want[strings.Index(want, "CurrentTerm"):]
	if !strings.HasSuffix(found, stable) {
		return "stable values: " + found[max(0, len(found)-200):]
	}
	for line := range strings.Lines(strings.TrimSuffix(found, stable)) {
		if !stored[line] && !strings.Contains(line, "not found") {
			return line
		}
	}
	return ""
}

// stored are the lines of contents for all that agedLog has ever stored.
var stored = func() map[string]bool {
	lines := map[string]bool{}
	for index := uint64(1); index < 200; index++ {
		for term := uint64(1); term <= 2; term++ {
			lines[lineOf(index, entry(term, index), nil)] = true
		}
	}
	return lines
}()

// TestACutLogIsRefused cuts the file at every 512 bytes.
func TestACutLogIsRefused(t *testing.T) {
	good, _ := agedLog(t)
	path := filepath.Join(memoryDir(t), "log.db")
	for size := 0; size < len(good); size += 512 {
		if _, opened := damagedOpen(t, path, good[:size]); opened {
			t.Fatalf("%d bytes of %d were opened", size, len(good))
		}
	}
}
