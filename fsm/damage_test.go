// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
)

var exhaustive = flag.Bool("exhaustive", false, "flip every single bit of a state file, which takes minutes")

// memoryDir is a directory in memory where there is one: these tests write much
// and do not care for the disk.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "fsm") //nolint:usetesting // not on the disk: it is slow and busy
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// dump is everything that bbolt finds in a file.
func dump(t testing.TB, path string) string {
	t.Helper()
	o := boltOptions()
	o.ReadOnly = true
	db, err := bolt.Open(path, 0o600, o)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	err = db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(name []byte, bucket *bolt.Bucket) error {
			return bucket.ForEach(func(k, v []byte) error {
				fmt.Fprintf(&b, "%s %x %x\n", name, k, v)
				return nil
			})
		})
	})
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// aged is a state file that was flushed often, so that it holds older versions of
// its pages, and the dumps of the newest two states that were flushed: true is the
// newest.
func aged(t testing.TB) (file []byte, states map[string]bool) {
	t.Helper()
	dir := memoryDir(t)
	path := filepath.Join(dir, "state.db")
	m := open(t, quiet(path))
	must(t, m, initCluster("c1"), openClient("a"), report("g", "n1"))
	for round := range 6 {
		for i := range 20 {
			seq := uint64(round*20 + i + 1)
			must(t, m, with(2, seq, seq/2, put("g", fmt.Sprintf("s%03d", i+5*round), strings.Repeat(fmt.Sprint(round), 200))))
		}
		must(t, m, sessions(opDelete(deletion("g", fmt.Sprintf("s%03d", 5*round)))))
		flush(t, m)
	}
	copyFile(t, path, path+".before")
	must(t, m, put("g", "s099", "the newest"))
	closeMachine(t, m)
	return used(t, path), map[string]bool{dump(t, path): true, dump(t, path+".before"): false}
}

// TestAFlippedBitIsNeverServed flips bits of a state file: it is refused, or it is
// as it was.
func TestAFlippedBitIsNeverServed(t *testing.T) {
	good, states := aged(t)
	path := filepath.Join(memoryDir(t), "state.db")
	refused, unharmed := 0, 0
	flip := func(at, bit int) {
		data := bytes.Clone(good)
		data[at] ^= 1 << bit
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := inspectFile(path); err != nil {
			refused++
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewerFormat) {
				t.Errorf("bit %d of byte %d: %v", bit, at, err)
			}
			return
		}
		if !states[dump(t, path)] {
			t.Errorf("bit %d of byte %d of page %d changes the state and is not noticed", bit, at%os.Getpagesize(), at/os.Getpagesize())
			return
		}
		unharmed++
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for at := range good {
		// The beginning of a page is where the structure is.
		switch offset := at % os.Getpagesize(); {
		case *exhaustive:
			for bit := range 8 {
				flip(at, bit)
			}
		case offset >= 8 && offset < 80, rnd.IntN(100) == 0:
			flip(at, rnd.IntN(8))
		}
	}
	t.Logf("%d bytes: refused %d, unharmed %d", len(good), refused, unharmed)
	if refused == 0 || unharmed == 0 {
		t.Error("the test flips nothing that matters")
	}
}

// TestAnOlderPageIsNeverServed puts the number of every page in the place of every
// other: the file holds older versions of its pages, with records that are right by
// themselves.
func TestAnOlderPageIsNeverServed(t *testing.T) {
	good, states := aged(t)
	path := filepath.Join(memoryDir(t), "state.db")
	pages := uint64(len(good) / os.Getpagesize())
	tried, missing := 0, 0
	for at := 2 * os.Getpagesize(); at+8 <= len(good); at++ {
		if was := binary.NativeEndian.Uint64(good[at:]); was < 2 || was >= pages {
			continue
		}
		for id := uint64(2); id < pages; id++ {
			data := bytes.Clone(good)
			binary.NativeEndian.PutUint64(data[at:], id)
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			tried++
			_, err := inspectFile(path)
			if err != nil && strings.Contains(err.Error(), "were written") {
				missing++
			}
			if err == nil && !states[dump(t, path)] {
				t.Errorf("page %d for %d at byte %d changes the state and is not noticed", id, binary.NativeEndian.Uint64(good[at:]), at)
			}
		}
	}
	t.Logf("%d exchanges, %d seen by the tally alone", tried, missing)
	if missing == 0 {
		t.Error("no older page fits: the test has no teeth")
	}
}

// TestACutStateFileIsRefused cuts the file at every 512 bytes.
func TestACutStateFileIsRefused(t *testing.T) {
	good, _ := aged(t)
	path := filepath.Join(memoryDir(t), "state.db")
	for size := 0; size < len(good); size += 512 {
		if err := os.WriteFile(path, good[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(quiet(path)); !errors.Is(err, ErrDamaged) {
			t.Fatalf("%d bytes of %d: %v", size, len(good), err)
		}
	}
}

// damagedCopy changes up to four bytes: five bytes of damage are a place and what to
// exclusive-or there. It is cut to a length if cut is not 0.
func damagedCopy(good, damage []byte, cut uint32) []byte {
	data := bytes.Clone(good)
	for ; len(damage) >= 5 && len(damage) <= 20; damage = damage[5:] {
		data[int(binary.BigEndian.Uint32(damage))%len(data)] ^= damage[4]
	}
	if cut != 0 {
		data = data[:int(cut)%len(data)]
	}
	return data
}

// FuzzStateFile damages a state file in up to four places and cuts it: what is not
// refused is a state that was flushed.
func FuzzStateFile(f *testing.F) {
	good, states := aged(f)
	page := uint32(os.Getpagesize())
	f.Add([]byte{0, 0, 0, 10, 4}, uint32(0))                                     // a meta page
	f.Add([]byte{0, 0, byte(2 * page >> 8), 10, 1}, uint32(0))                   // how many elements a page has
	f.Add([]byte{0, 0, byte(3 * page >> 8), 24, 1}, uint32(0))                   // the page that a branch leads to
	f.Add([]byte{0, 0, 0, 16, 1, 0, 0, byte(page >> 8), 16, 1}, uint32(0))       // both meta pages
	f.Add([]byte(nil), page/2)                                                   // cut
	f.Add([]byte{0, 0, byte(4 * page >> 8), 12, 1, 0, 0, 80, 8, 2}, 2*page+page) // a run of pages, and cut
	f.Fuzz(func(t *testing.T, damage []byte, cut uint32) {
		data := damagedCopy(good, damage, cut)
		path := filepath.Join(memoryDir(t), "state.db")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := Open(quiet(path))
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewerFormat) {
				t.Fatalf("it is not called damaged: %v", err)
			}
			if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, data) {
				t.Fatalf("a refused file was changed: %v", err)
			}
			return
		}
		closeMachine(t, m)
		if _, known := states[dump(t, path)]; !known {
			t.Fatal("the state is none that was flushed")
		}
	})
}

// metaOfFormat1 is the meta record of a file without a tally, once golden.
const metaOfFormat1 = "686173746174653100000001000000000000000100000000000000020000000000000003000000000000000402633104636f6e66fd5eecb7"

// TestAFileOfFormat1IsRead and has a tally from its next flush on.
func TestAFileOfFormat1IsRead(t *testing.T) {
	b, err := hex.DecodeString(metaOfFormat1)
	if err != nil {
		t.Fatal(err)
	}
	old, err := decodeMeta(b)
	if err != nil || old.applied != 1 || old.clusterID != "c1" || !old.untallied {
		t.Fatalf("%+v %v", old, err)
	}
	path := filled(t)
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Put(keyMeta, b) })
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	for _, untallied := range []bool{true, false} {
		found, err := inspectFile(path)
		if err != nil || found.meta.untallied != untallied || found.meta.tally.records < 200 {
			t.Fatalf("%+v %v", found.meta, err)
		}
		m := open(t, quiet(path))
		must(t, m, put("g", "s", "v"))
		closeMachine(t, m)
	}
}
