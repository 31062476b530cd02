// SPDX-License-Identifier: Apache-2.0

package logstore

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
	"pgregory.net/rapid"

	"github.com/hastate/hastate"
)

// sampleLog is the bytes of a closed store with entries 1..n, some of them larger
// than a page, a term and a vote.
func sampleLog(t testing.TB, n uint64) []byte {
	t.Helper()
	b := open(t, Options{})
	b.put(1, 1, n)
	big := entry(1, n+1)
	big.Data = bytes.Repeat([]byte("0123456789"), 3000)
	if err := errors.Join(b.StoreLog(big), b.SetUint64([]byte("CurrentTerm"), 1), b.Close()); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(b.opts.Path)
	if err != nil {
		t.Fatal(err)
	}
	// bbolt grows its file ahead; without that every byte counts.
	meta, err := readMeta(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return data[:int64(meta.pages)*meta.pageSize]
}

func writeLog(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log.db")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// leafOf finds a page of log entries.
func leafOf(t testing.TB, file []byte) int {
	t.Helper()
	page := os.Getpagesize()
	leaf := -1
	for off := 2 * page; off+page <= len(file); off += page {
		if order.Uint16(file[off+8:]) == flagLeaf && order.Uint64(file[off:]) == uint64(off/page) && order.Uint16(file[off+10:]) > 10 {
			leaf = off
		}
	}
	if leaf < 0 {
		t.Fatal("no leaf page in the sample")
	}
	return leaf
}

func TestADamagedFileIsRefusedWithWords(t *testing.T) {
	good := sampleLog(t, 400)
	page := os.Getpagesize()
	leaf := leafOf(t, good)
	cases := map[string]struct {
		damage func([]byte) []byte
		words  string
	}{
		"empty":                   {func([]byte) []byte { return nil }, "the file is empty"},
		"not bbolt":               {func([]byte) []byte { return bytes.Repeat([]byte("text\n"), 10000) }, "not of a bbolt file"},
		"shorter than a meta":     {func(d []byte) []byte { return d[:40] }, "no valid meta page"},
		"truncated":               {func(d []byte) []byte { return d[:5*page] }, "truncated"},
		"both meta pages flipped": {func(d []byte) []byte { d[40] ^= 1; d[page+40] ^= 1; return d }, "wrong checksum"},
		"page id":                 {func(d []byte) []byte { d[leaf] ^= 4; return d }, "says that it is page"},
		"page kind":               {func(d []byte) []byte { d[leaf+8] ^= 0x20; return d }, "neither branch nor leaf"},
		"page overflow":           {func(d []byte) []byte { d[leaf+15] = 0x7f; return d }, "beyond the last page"},
		"entry count":             {func(d []byte) []byte { d[leaf+11] = 0xff; return d }, "outside"},
		"key position":            {func(d []byte) []byte { d[leaf+pageHeader+4+3] = 0x40; return d }, "outside"},
		"keys out of order": {func(d []byte) []byte {
			pos := leaf + pageHeader + int(order.Uint32(d[leaf+pageHeader+4:]))
			d[pos] = 0x7f
			return d
		}, "does not come"},
		"data of an entry": {func(d []byte) []byte {
			at := bytes.LastIndex(d, []byte("entry 77 of term 1"))
			d[at] ^= 1
			return d
		}, "checksum"},
		"data on an overflow page": {func(d []byte) []byte {
			at := bytes.LastIndex(d, []byte("0123456789"))
			d[at] ^= 0x80
			return d
		}, "checksum"},
		"the term": {func(d []byte) []byte {
			at := bytes.LastIndex(d, []byte("CurrentTerm"))
			d[at+len("CurrentTerm")+7] ^= 1
			return d
		}, "does not match its checksum"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			path := writeLog(t, c.damage(bytes.Clone(good)))
			s, err := Open(Options{Path: path})
			if err == nil {
				_ = s.Close()
				t.Fatal("it was opened")
			}
			if !errors.Is(err, hastate.ErrPrecondition) || !strings.Contains(err.Error(), c.words) ||
				!strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "join again") {
				t.Fatalf("the error does not say %q, the file and what to do: %v", c.words, err)
			}
			// The refusal does not keep the lock.
			if err := os.WriteFile(path, good, 0o600); err != nil {
				t.Fatal(err)
			}
			s, err = Open(Options{Path: path})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestAFlippedByteNeverChangesHistory flips any byte of the file: the store is
// refused, or every entry is as it was. Only the newest transaction may be missing:
// a damaged meta page cannot be told from one that was torn by a crash.
func TestAFlippedByteNeverChangesHistory(t *testing.T) {
	good := sampleLog(t, 60)
	rapid.Check(t, func(rt *rapid.T) {
		data := bytes.Clone(good)
		at := rapid.IntRange(0, len(data)-1).Draw(rt, "at")
		data[at] ^= byte(rapid.IntRange(1, 255).Draw(rt, "with"))
		if rapid.IntRange(0, 3).Draw(rt, "cut") == 0 {
			data = data[:rapid.IntRange(0, len(data)).Draw(rt, "length")]
		}
		path := writeLog(t, data)
		s, err := Open(Options{Path: path, CacheBytes: 1})
		if err != nil {
			return
		}
		defer s.Close()
		last, _ := s.LastIndex()
		if last < 60 {
			rt.Fatalf("flipping byte %d left a log that ends at %d", at, last)
		}
		for i := uint64(1); i <= last; i++ {
			var l raft.Log
			if err := s.GetLog(i, &l); err != nil {
				continue
			}
			if l.Index != i || l.Term != 1 || i <= 60 && !bytes.Equal(l.Data, entry(1, i).Data) {
				rt.Fatalf("flipping byte %d turned entry %d into %+v", at, i, l)
			}
		}
	})
}

// TestOtherStoresAreRefused: a file of raft-boltdb has no checksums.
func TestOtherStoresAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.db")
	b := open(t, Options{Path: path})
	b.put(1, 1, 1)
	if err := b.db.StoreLog(entry(1, 2)); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Path: path}); err == nil || !strings.Contains(err.Error(), "no checksum") {
		t.Fatal(err)
	}
}

// TestTheCheckAgreesWithBbolt: what bbolt writes, in any shape, passes.
func TestTheCheckAgreesWithBbolt(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		path := filepath.Join(t.TempDir(), "any.db")
		db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoFreelistSync: rapid.Bool().Draw(rt, "nofreelist"), NoSync: true, PageSize: 1024 << rapid.IntRange(0, 3).Draw(rt, "size")})
		if err != nil {
			rt.Fatal(err)
		}
		for range rapid.IntRange(0, 5).Draw(rt, "transactions") {
			if err := db.Update(func(tx *bbolt.Tx) error {
				bk, err := tx.CreateBucketIfNotExists(rapid.SliceOfN(rapid.Byte(), 1, 10).Draw(rt, "bucket"))
				if err != nil {
					return err
				}
				for range rapid.IntRange(0, 60).Draw(rt, "keys") {
					k := rapid.SliceOfN(rapid.Byte(), 1, 20).Draw(rt, "key")
					if rapid.Bool().Draw(rt, "delete") {
						err = bk.Delete(k)
					} else {
						err = bk.Put(k, make([]byte, rapid.IntRange(0, 5000).Draw(rt, "value")))
					}
					if err != nil {
						return err
					}
				}
				return nil
			}); err != nil {
				rt.Fatal(err)
			}
		}
		if err := db.Close(); err != nil {
			rt.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			rt.Fatal(err)
		}
		defer f.Close()
		if _, err := verifyBolt(f); err != nil {
			rt.Fatal(err)
		}
	})
}

func TestALeftoverOfACrashedCreateDoesNoHarm(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.db")
	if err := os.WriteFile(path+".new", []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, Options{Path: path}).put(1, 1, 1)
	if _, err := os.Stat(path + ".new"); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

// TestLockHelper is the other process of the next test.
func TestLockHelper(t *testing.T) {
	path := os.Getenv("LOGSTORE_LOCK_HELPER")
	if path == "" {
		t.Skip("only as a child process")
	}
	s, err := Open(Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, _ = os.Stdout.WriteString("locked\n")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func TestAFileInUseByAnotherProcessIsRefusedWithWords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.db")
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestLockHelper$")
	cmd.Env = append(os.Environ(), "LOGSTORE_LOCK_HELPER="+path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "locked\n" {
		t.Fatalf("%q %v", line, err)
	}
	_, err = Open(Options{Path: path})
	if !errors.Is(err, hastate.ErrPrecondition) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "another process") {
		t.Errorf("got %v", err)
	}
	_ = in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	s, err := Open(Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
}
