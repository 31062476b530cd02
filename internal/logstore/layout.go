// SPDX-License-Identifier: Apache-2.0

package logstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hastate/hastate"
)

const (
	// newSuffix is of a log that is being made, oldSuffix of one that a migrated log
	// has taken the place of.
	newSuffix = ".migrating"
	oldSuffix = ".migrated"
)

// PathIn is where a data folder keeps a log of a kind.
func PathIn(dir string, kind Kind) string {
	if kind == Segments {
		return filepath.Join(dir, "raft.seg")
	}
	return filepath.Join(dir, "raft.db")
}

// Find says which kind of log a data folder has; empty if it has none. A folder in which
// a migration was interrupted is refused.
func Find(dir string) (Kind, error) {
	var found Kind
	for _, kind := range Kinds {
		there, err := exists(PathIn(dir, kind))
		if err != nil {
			return "", err
		}
		if there && found != "" {
			return "", fmt.Errorf("%w: the data folder %s has two logs, %s and %s: move the one away that this node has not written to last, or this node's whole data folder if you do not know", hastate.ErrPrecondition, dir, filepath.Base(PathIn(dir, found)), filepath.Base(PathIn(dir, kind)))
		}
		if there {
			found = kind
		}
		was, err := exists(PathIn(dir, kind) + oldSuffix)
		if err != nil {
			return "", err
		}
		if was {
			return "", fmt.Errorf("%w: in the data folder %s a migration of the log was interrupted: run hanode migrate-log once more", hastate.ErrPrecondition, dir)
		}
	}
	return found, nil
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	}
	return false, fmt.Errorf("look for the log: %w", err)
}
