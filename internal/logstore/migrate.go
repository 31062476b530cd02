// SPDX-License-Identifier: Apache-2.0

package logstore

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
)

const (
	// migrateEntries and migrateBytes bound what is copied at once.
	migrateEntries = 256
	migrateBytes   = 4 << 20
)

// Migrated tells what a migration has done.
type Migrated struct {
	From, To Kind
	// First and Last are the entries of the log, Entries how many there are.
	First, Last, Entries uint64
}

// Migrate rewrites the log of a data folder that no node runs on as another kind. The
// caller holds the lock of the folder. A crash in the middle loses nothing: Migrate is
// to be called again, and until then the folder is as it was or refused (Find). The old
// log is deleted at the end, for a node that came back with it could vote twice.
func Migrate(dir string, to Kind, logger *slog.Logger) (Migrated, error) {
	if to != Bolt && to != Segments {
		return Migrated{}, fmt.Errorf("%w: there is no log store of the kind %q: it is one of %q", hastate.ErrInvalid, to, Kinds)
	}
	from := Bolt
	if to == Bolt {
		from = Segments
	}
	old, fresh := PathIn(dir, from), PathIn(dir, to)
	m := Migrated{From: from, To: to}
	// One that was interrupted is finished first, whatever its kind: it may be another.
	switch finished, err := resume(dir); {
	case err != nil:
		return m, err
	case finished == to:
		return m, describe(fresh, to, &m)
	}
	for _, kind := range Kinds {
		if err := os.RemoveAll(PathIn(dir, kind) + newSuffix); err != nil {
			return m, fmt.Errorf("remove what an earlier migration has left: %w", err)
		}
	}
	found, err := Find(dir)
	switch {
	case err != nil:
		return m, err
	case found == "":
		return m, fmt.Errorf("%w: the data folder %s has no log", hastate.ErrPrecondition, dir)
	case found == to:
		return m, fmt.Errorf("%w: the log of %s is of the kind %q already", hastate.ErrPrecondition, dir, to)
	}
	if err := copyLog(Options{Path: old, Kind: from, Logger: logger}, Options{Path: fresh + newSuffix, Kind: to, Logger: logger}); err != nil {
		return m, err
	}
	if err := errors.Join(os.Rename(old, old+oldSuffix), syncDir(dir)); err != nil {
		return m, fmt.Errorf("put the old log aside: %w", err)
	}
	if _, err := resume(dir); err != nil {
		return m, err
	}
	return m, describe(fresh, to, &m)
}

// resume finishes a migration that has put the old log aside, which it did only after the
// new one was whole. It returns the kind of the new log, empty if there was none.
func resume(dir string) (Kind, error) {
	for i, to := range Kinds {
		old, fresh := PathIn(dir, Kinds[1-i])+oldSuffix, PathIn(dir, to)
		aside, err := exists(old)
		if err != nil {
			return "", err
		}
		if !aside {
			continue
		}
		there, err := exists(fresh)
		if err != nil {
			return "", err
		}
		if !there {
			if err := os.Rename(fresh+newSuffix, fresh); err != nil {
				return "", fmt.Errorf("put the new log in its place: %w", err)
			}
		}
		if err := errors.Join(syncDir(dir), os.RemoveAll(old), syncDir(dir)); err != nil {
			return "", fmt.Errorf("finish the migration: %w", err)
		}
		return to, nil
	}
	return "", nil
}

// copyLog writes one log as another, and reads it once more.
func copyLog(from, to Options) (err error) {
	source, err := Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	target, err := Open(to)
	if err != nil {
		return err
	}
	closed := false
	defer func() {
		if !closed {
			err = errors.Join(err, target.Close())
		}
	}()
	if err := copyEntries(source, target); err != nil {
		return err
	}
	for _, key := range stableKeys {
		value, err := source.Get(key)
		if errors.Is(err, errNoValue) {
			continue
		}
		if err == nil {
			err = target.Set(key, value)
		}
		if err != nil {
			return err
		}
	}
	closed = true
	if err := target.Close(); err != nil {
		return err
	}
	return compare(source, to)
}

// copyEntries copies all entries, in batches.
func copyEntries(source, target *Store) error {
	var (
		batch []*raft.Log
		bytes int64
	)
	flush := func() error {
		err := target.StoreLogs(batch)
		batch, bytes = nil, 0
		return err
	}
	for _, r := range source.disk.stored() {
		for i := r.First; i <= r.Last; i++ {
			var l raft.Log
			if err := source.read(i, &l); err != nil {
				return err
			}
			batch, bytes = append(batch, &l), bytes+entryBytes(&l)
			if len(batch) == migrateEntries || bytes >= migrateBytes {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	return flush()
}

// compare opens the new log, which checks it, and holds it against the old one.
func compare(source *Store, to Options) (err error) {
	target, err := Open(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	have, want := target.disk.stored(), source.disk.stored()
	if fmt.Sprint(have) != fmt.Sprint(want) {
		return fmt.Errorf("the new log has the entries %v, the old one %v: nothing was changed", have, want)
	}
	for _, key := range stableKeys {
		a, errA := source.Get(key)
		b, errB := target.Get(key)
		if string(a) != string(b) || errors.Is(errA, errNoValue) != errors.Is(errB, errNoValue) {
			return fmt.Errorf("the new log has another %s than the old one: nothing was changed", key)
		}
	}
	for _, r := range want {
		for i := r.First; i <= r.Last; i++ {
			var a, b raft.Log
			if err := errors.Join(source.read(i, &a), target.read(i, &b)); err != nil {
				return err
			}
			if sum(&a, a.Extensions) != sum(&b, b.Extensions) {
				return fmt.Errorf("entry %d of the new log is not that of the old one: nothing was changed", i)
			}
		}
	}
	return nil
}

// describe fills in what a log holds.
func describe(path string, kind Kind, m *Migrated) error {
	s, err := Open(Options{Path: path, Kind: kind})
	if err != nil {
		return err
	}
	st := s.Stats()
	m.First, m.Last, m.Entries = st.First, st.Last, st.Entries
	return s.Close()
}
