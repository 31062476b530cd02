// SPDX-License-Identifier: Apache-2.0

package logstore

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
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

// TestStoredEntriesAreOnTheDisk guards the fsync of each append: what StoreLogs
// has returned for, a majority may acknowledge.
func TestStoredEntriesAreOnTheDisk(t *testing.T) {
	dir := t.TempDir()
	// A file written without a sync shows that the check can fail.
	control := filepath.Join(dir, "control")
	if err := os.WriteFile(control, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if unsynced(t, control) == 0 {
		t.Skip("this file system has no unsynced pages to tell of")
	}
	path := filepath.Join(dir, "raft.db")
	s, err := Open(Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range uint64(20) {
		if err := s.StoreLog(&raft.Log{Index: i + 1, Term: 1, Data: make([]byte, 4096)}); err != nil {
			t.Fatal(err)
		}
		if n := unsynced(t, path); n != 0 {
			t.Fatalf("after StoreLog %d pages of the log file are not on the disk", n)
		}
	}
	if err := s.SetUint64([]byte("CurrentTerm"), 2); err != nil {
		t.Fatal(err)
	}
	if n := unsynced(t, path); n != 0 {
		t.Errorf("after a vote or term was stored %d pages are not on the disk", n)
	}
}
