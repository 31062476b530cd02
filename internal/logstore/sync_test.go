// SPDX-License-Identifier: Apache-2.0

package logstore

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

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
	for _, kind := range Kinds {
		t.Run(string(kind), func(t *testing.T) { storedIsOnTheDisk(t, kind) })
	}
}

func storedIsOnTheDisk(t *testing.T, kind Kind) {
	t.Helper()
	b := open(t, Options{Path: filepath.Join(t.TempDir(), "log"), Kind: kind})
	check := func(what string) {
		t.Helper()
		for _, f := range filesOf(t, b) {
			if n := unsynced(t, f); n != 0 {
				t.Fatalf("after %s %d pages of %s are not on the disk", what, n, filepath.Base(f))
			}
		}
	}
	for i := range uint64(20) {
		b.put(1, i+1, i+1)
		check("StoreLog")
	}
	if err := b.SetUint64([]byte("CurrentTerm"), 2); err != nil {
		t.Fatal(err)
	}
	check("a term was stored")
	b.del(15, 20)
	check("entries were removed")
}

// filesOf are the files of a log that are written to.
func filesOf(t *testing.T, b *bench) []string {
	t.Helper()
	info, err := os.Stat(b.opts.Path)
	if err != nil {
		t.Fatal(err)
	}
	if !info.IsDir() {
		return []string{b.opts.Path}
	}
	// The newest may be one that is being made ahead of time.
	files, err := filepath.Glob(filepath.Join(b.opts.Path, "*1.seg"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	return files
}

// TestWhatIsOpenedIsOnTheDisk: a process that was killed between a write and its fsync
// leaves a file that can be read and is not on the disk. Raft answers for what it finds
// without writing it again, so it has to be synced first. (raft-boltdb commits a
// transaction when it opens a file.)
func TestWhatIsOpenedIsOnTheDisk(t *testing.T) {
	for _, kind := range Kinds {
		t.Run(string(kind), func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "log")
			b := open(t, Options{Path: path, Kind: kind})
			b.put(1, 1, 50)
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			files := filesOf(t, b)
			for _, f := range files {
				data, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(f, data, 0o600); err != nil { // as a killed process leaves it
					t.Fatal(err)
				}
				if unsynced(t, f) == 0 {
					t.Skip("this file system has no unsynced pages to tell of")
				}
			}
			b.reopen()
			for _, f := range files {
				if n := unsynced(t, f); n != 0 {
					t.Errorf("%d pages of %s are not on the disk, and the log is open", n, filepath.Base(f))
				}
			}
		})
	}
}
