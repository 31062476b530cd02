// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// The steps that a Fault sees.
const (
	OpWrite  = "WRITE"
	OpSync   = "SYNC"
	OpRename = "RENAME"
)

// Fault breaks the disk in tests. Before is called with the operation and the name
// of the file, before the operation; an error is treated like one of the disk.
type Fault interface {
	Before(op, name string) error
}

// folder is the directory of the store: everything that is to survive a power loss
// goes through here.
type folder struct {
	path  string
	fault Fault
}

func (d folder) before(op, name string) error {
	if d.fault == nil {
		return nil
	}
	return d.fault.Before(op, name)
}

func (d folder) file(name string) string { return filepath.Join(d.path, name) }

// create makes a file that is not yet visible under its name.
func (d folder) create(name string) (*os.File, error) {
	if err := d.before(OpWrite, name); err != nil {
		return nil, err
	}
	return os.OpenFile(d.file(name+tmpSuffix), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
}

// publish syncs and closes a file from create and gives it its name, durably.
func (d folder) publish(f *os.File, name string) error {
	if err := d.before(OpSync, name); err != nil {
		_ = f.Close()
		return err
	}
	if err := f.Sync(); err != nil {
		_ = f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := d.before(OpRename, name); err != nil {
		return err
	}
	if err := os.Rename(d.file(name+tmpSuffix), d.file(name)); err != nil {
		return err
	}
	return d.sync()
}

// write makes or replaces a whole file, durably.
func (d folder) write(name string, content []byte) error {
	f, err := d.create(name)
	if err != nil {
		return err
	}
	if _, err := f.Write(content); err != nil {
		_ = f.Close()
		_ = d.remove(name + tmpSuffix)
		return err
	}
	if err := d.publish(f, name); err != nil {
		_ = d.remove(name + tmpSuffix)
		return err
	}
	return nil
}

// remove deletes a file; it is no error if there is none.
func (d folder) remove(name string) error {
	if err := os.Remove(d.file(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// sync makes the names in the folder durable.
func (d folder) sync() error {
	f, err := os.Open(d.path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only synced
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync directory %s: %w", d.path, err)
	}
	return nil
}
