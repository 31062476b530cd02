// SPDX-License-Identifier: Apache-2.0

package logstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/boltfile"
	"github.com/hastate/hastate/internal/indexes"
)

const (
	// lockTimeout is how long Open waits for the lock of the file: long enough
	// for a process that is just ending.
	lockTimeout = time.Second
	// mapBytes is reserved as address space, so that a growing file is seldom
	// mapped again: that waits for all readers.
	mapBytes = 256 << 20
	// checkBytes bounds how much of the log is read and checked at Open, newest
	// entries first. Older entries are checked when they are read.
	checkBytes = 512 << 20
)

// boltFileOpener opens, locks and checks the file for bbolt, which then finds the
// lock held by the same open file. So nobody else can write between the check and
// the use.
type boltFileOpener struct {
	path    string
	file    *os.File
	buckets []string
	found   indexes.Set
}

func (o *boltFileOpener) open(path string, flag int, mode os.FileMode) (*os.File, error) {
	f, err := os.OpenFile(path, flag, mode)
	if err != nil {
		return nil, fmt.Errorf("open log file: %w", err)
	}
	o.file = f
	if err := o.check(f); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func (o *boltFileOpener) check(f *os.File) error {
	if err := lock(f); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("open log file: %w", err)
	}
	if info.Size() == 0 && o.path == f.Name() {
		return damaged(o.path, errors.New("the file is empty"))
	}
	if info.Size() == 0 {
		return nil // being created
	}
	if err := boltfile.Verify(f, info.Size(), o.visit); err != nil {
		return damaged(o.path, err)
	}
	if len(o.buckets) != 2 {
		return damaged(o.path, fmt.Errorf("it has the buckets %q alone", o.buckets))
	}
	return nil
}

// visit collects the indexes of the log entries. Names are looked at too, for they
// have no checksum: raft-boltdb would make a bucket that it does not find, and raft
// takes a vote that it does not find for one that it has never given.
func (o *boltFileOpener) visit(bucket, key []byte) error {
	name := string(bucket)
	if key == nil {
		o.buckets = append(o.buckets, name)
		if name != "logs" && name != "conf" {
			return fmt.Errorf("there is a bucket %q", name)
		}
	}
	if key == nil {
		return nil
	}
	if name == "conf" {
		if !slices.ContainsFunc(stableKeys, func(k []byte) bool { return bytes.Equal(k, key) }) {
			return fmt.Errorf("there is a stable value %q, which is none of raft's", key)
		}
		return nil
	}
	if len(key) != 8 {
		return fmt.Errorf("a log entry has a key of %d bytes", len(key))
	}
	index := binary.BigEndian.Uint64(key)
	if n := len(o.found); n > 0 && o.found[n-1].Last+1 == index {
		o.found[n-1].Last = index
	} else {
		o.found = append(o.found, indexes.Run{First: index, Last: index})
	}
	return nil
}

func lock(f *os.File) error {
	deadline := time.Now().Add(lockTimeout)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("lock log file %s: %w", f.Name(), err)
		case time.Now().After(deadline):
			return inUse(f.Name())
		}
		<-time.After(10 * time.Millisecond) // nothing tells when another process lets go; bounded by the deadline
	}
}

func inUse(path string) error {
	return fmt.Errorf("%w: the log file %s is in use by another process: stop the other hanode that runs on this data directory, or give this one a directory of its own", hastate.ErrPrecondition, path)
}

// damaged says what to do about a file that cannot be trusted. Repairing it here
// would lose acknowledged writes silently.
func damaged(path string, err error) error {
	return fmt.Errorf("%w: the log file %s is damaged: %w; while a majority of the other nodes is up, move this node's data directory away and let the node join again as a new one, otherwise follow hactl recover", hastate.ErrPrecondition, path, err)
}

// create makes a new, empty file under a temporary name and links it into place:
// a crash leaves either no file or a whole one, and the name survives a power loss.
func create(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("create log file: %w", err)
	}
	o := &boltFileOpener{path: path}
	db, err := openBoltFile(fresh, o)
	if err != nil {
		return fmt.Errorf("create log file: %w", err)
	}
	if err := db.Close(); err != nil {
		return fmt.Errorf("create log file: %w", err)
	}
	// Link refuses to replace a file that another process has made meanwhile.
	if err := os.Link(fresh, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create log file: %w", err)
	}
	if err := os.Remove(fresh); err != nil {
		return fmt.Errorf("create log file: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	defer func() { _ = d.Close() }() // only synced
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}

// openBolt opens or makes the file, takes its lock and checks it.
func openBolt(path string) (backend, error) {
	if err := create(path); err != nil {
		return nil, err
	}
	o := &boltFileOpener{path: path}
	db, err := openBoltFile(path, o)
	if err != nil {
		return nil, err
	}
	b := &bolt{db: db, found: o.found}
	if err := b.checkEntries(); err != nil {
		_ = db.Close()
		return nil, damaged(path, err)
	}
	return b, nil
}

// openBoltFile opens the file with what bbolt and raft-boltdb may panic or fault on
// turned into errors.
func openBoltFile(path string, o *boltFileOpener) (db *raftboltdb.BoltStore, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			if o.file != nil {
				_ = o.file.Close() // and with it the lock
			}
			db, err = nil, damaged(path, fmt.Errorf("%v", r))
		}
	}()
	return raftboltdb.New(raftboltdb.Options{
		Path: path,
		BoltOptions: &bbolt.Options{
			Timeout: lockTimeout,
			// The free list is rebuilt at Open rather than written with every
			// commit: after a truncation it is long.
			NoFreelistSync:  true,
			FreelistType:    bbolt.FreelistMapType,
			InitialMmapSize: mapBytes,
			OpenFile:        o.open,
		},
	})
}

// checkEntries reads the oldest entry and the newest ones, as far as checkBytes
// goes: raft panics when an entry that it needs at start cannot be read.
func (b *bolt) checkEntries() (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	var l raft.Log
	if first := b.found.First(); first != 0 {
		if err := b.read(first, &l); err != nil {
			return err
		}
	}
	left := int64(checkBytes)
	for i := len(b.found) - 1; i >= 0; i-- {
		for index := b.found[i].Last; index >= b.found[i].First && index != 0; index-- {
			if err := b.read(index, &l); err != nil {
				return err
			}
			if left -= entryBytes(&l); left < 0 {
				return nil
			}
		}
	}
	for _, key := range stableKeys {
		if _, err := b.get(key); err != nil && !errors.Is(err, errNoValue) {
			return err
		}
	}
	return nil
}

// stableKeys are raft's own, checked at Open; a file with others is refused.
var stableKeys = [][]byte{[]byte("CurrentTerm"), []byte("LastVoteTerm"), []byte("LastVoteCand")}
