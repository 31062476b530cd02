// SPDX-License-Identifier: Apache-2.0

package logstore

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/boltfile"
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
	size, err := boltfile.Size(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return data[:size]
}

func writeLog(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log.db")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// What these tests know of the layout of bbolt's pages.
const (
	header   = 16
	leafPage = 2
)

// leafOf finds a page of log entries.
func leafOf(t testing.TB, file []byte) int {
	t.Helper()
	page := os.Getpagesize()
	leaf := -1
	for off := 2 * page; off+page <= len(file); off += page {
		if binary.NativeEndian.Uint16(file[off+8:]) == leafPage && binary.NativeEndian.Uint64(file[off:]) == uint64(off/page) && binary.NativeEndian.Uint16(file[off+10:]) > 10 {
			leaf = off
		}
	}
	if leaf < 0 {
		t.Fatal("no leaf page in the sample")
	}
	return leaf
}

// swapped replaces a text wherever it is.
func swapped(d []byte, from, to string) []byte {
	return bytes.ReplaceAll(d, []byte(from), []byte(to))
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
		"key position":            {func(d []byte) []byte { d[leaf+header+4+3] = 0x40; return d }, "the one before it ends"},
		"keys out of order": {func(d []byte) []byte {
			pos := leaf + header + int(binary.NativeEndian.Uint32(d[leaf+header+4:]))
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
		"the name of the log":   {func(d []byte) []byte { return swapped(d, "logs", "logt") }, "there is a bucket"},
		"the name of the votes": {func(d []byte) []byte { return swapped(d, "conf", "cong") }, "there is a bucket"},
		"the name of the term":  {func(d []byte) []byte { return swapped(d, "CurrentTerm", "CurrentTerl") }, "none of raft's"},
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

// TestOtherStoresAreRefused: a file of raft-boltdb has no checksums.
func TestOtherStoresAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.db")
	b := open(t, Options{Path: path})
	b.put(1, 1, 1)
	if err := b.disk.(*bolt).db.StoreLog(entry(1, 2)); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Path: path}); err == nil || !strings.Contains(err.Error(), "no checksum") {
		t.Fatal(err)
	}
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
