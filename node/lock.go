// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// dirLock keeps a second process out of a data folder.
type dirLock struct{ file *os.File }

// lockDir makes the folder if need be and takes its lock; it does not wait.
func lockDir(dir string) (*dirLock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make data folder: %w", err)
	}
	path := filepath.Join(dir, "LOCK")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data folder: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(path) // only for the text
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("data folder %s is in use by another process (pid %s): stop it, or give this node its own folder", dir, strings.TrimSpace(string(holder)))
		}
		return nil, fmt.Errorf("lock data folder: %w", err)
	}
	// The pid is for people; the lock is the flock.
	if err := f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(fmt.Sprintln(os.Getpid())), 0)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lock data folder: %w", err), f.Close())
		}
	}
	return &dirLock{file: f}, nil
}

// Close gives the folder back.
func (l *dirLock) Close() error { return l.file.Close() }
