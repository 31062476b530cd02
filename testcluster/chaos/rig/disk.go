// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The requests of linux/fs.h and fs/ext4/ext4.h that x/sys/unix does not name.
const (
	ioctlFreeze   = 0xc0045877 // FIFREEZE
	ioctlThaw     = 0xc0045878 // FITHAW
	ioctlShutdown = 0x8004587d // EXT4_IOC_SHUTDOWN
	// noLogFlush: what the journal has not committed is lost.
	noLogFlush = 2
)

// mountOptions let nothing reach the disk that was not fsynced: the kernel's own
// commit every 5 s and its flush on rename would hide a missing fsync.
const mountOptions = "commit=3600,noauto_da_alloc,noinit_itable"

// busyTimeout bounds how long an unmount waits for the last user.
const busyTimeout = 10 * time.Second

// disk is an ext4 file system of its own, in an image file.
type disk struct {
	image string
	// folder is where it is mounted, data the data folder in it, ballast the file
	// that fills it.
	folder, data, ballast string
	loop                  *os.File

	mu      sync.Mutex // guards the rest, and is held over each change
	mounted bool
	frozen  bool
}

// newDisk makes an empty disk of a size and mounts it.
func newDisk(ctx context.Context, image, folder string, mib int) (_ *disk, err error) {
	d := &disk{image: image, folder: folder, data: filepath.Join(folder, "data"), ballast: filepath.Join(folder, "ballast")}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, fmt.Errorf("make disk: %w", err)
	}
	f, err := os.OpenFile(image, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("make disk: %w", err)
	}
	// Sparse: it takes what is written.
	if err := errors.Join(f.Truncate(int64(mib)<<20), f.Close()); err != nil {
		return nil, fmt.Errorf("make disk: %w", err)
	}
	if d.loop, err = attachLoop(image); err != nil {
		return nil, err
	}
	if err := d.format(ctx); err != nil {
		return nil, err
	}
	return d, d.mount()
}

// format makes a new file system. It is not mounted.
func (d *disk) format(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	// Root gets no reserve of space, or a full disk would not be full for it.
	cmd := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", "-J", "size=4", "-E", "lazy_itable_init=1,lazy_journal_init=1", d.loop.Name())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// mount mounts it, and recovers the journal. The caller holds mu, or is alone.
func (d *disk) mount() error {
	if err := unix.Mount(d.loop.Name(), d.folder, "ext4", unix.MS_NOATIME, mountOptions); err != nil {
		return fmt.Errorf("mount %s: %w", d.image, err)
	}
	d.mounted = true
	if err := os.MkdirAll(d.data, 0o755); err != nil {
		return fmt.Errorf("make data folder: %w", err)
	}
	// The data folder is older than anything that happens to the disk.
	return errors.Join(syncFolder(d.data), syncFolder(d.folder))
}

// unmount unmounts it. It waits for the last user, for a bounded time: a process
// that has just ended, or a look at it by another program.
func (d *disk) unmount() error {
	if !d.mounted {
		return nil
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(busyTimeout); ; <-tick.C {
		err := unix.Unmount(d.folder, 0)
		if err == nil {
			d.mounted = false
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("unmount %s: %w: end whatever has a file open there", d.folder, err)
		}
	}
}

// freeze lets every write wait until thaw. What was written before reaches the
// disk first.
func (d *disk) freeze() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.frozen {
		return nil
	}
	if err := folderIoctl(d.folder, ioctlFreeze, 0); err != nil {
		return fmt.Errorf("freeze %s: %w", d.folder, err)
	}
	d.frozen = true
	return nil
}

func (d *disk) thaw() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.thawLocked()
}

func (d *disk) thawLocked() error {
	if !d.frozen {
		return nil
	}
	if err := thaw(d.folder); err != nil {
		return err
	}
	d.frozen = false
	return nil
}

func thaw(folder string) error {
	if err := folderIoctl(folder, ioctlThaw, 0); err != nil {
		return fmt.Errorf("thaw %s: %w", folder, err)
	}
	return nil
}

// fill takes all space that is left.
func (d *disk) fill() error {
	f, err := os.OpenFile(d.ballast, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("fill disk: %w", err)
	}
	end, err := f.Seek(0, 2)
	for size := int64(64 << 20); err == nil && size >= 4096; {
		switch full := unix.Fallocate(int(f.Fd()), 0, end, size); {
		case full == nil:
			end += size
		case errors.Is(full, unix.ENOSPC):
			size /= 2
		case errors.Is(full, unix.EINTR):
		default:
			err = full
		}
	}
	// It is there after a power cut as well.
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("fill disk: %w", err)
	}
	return nil
}

// free undoes fill.
func (d *disk) free() error {
	if err := os.Remove(d.ballast); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("free disk: %w", err)
	}
	return syncFolder(d.folder)
}

// wipe makes it empty. Nothing has a file open on it.
func (d *disk) wipe(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.thawLocked(); err != nil {
		return err
	}
	if err := d.unmount(); err != nil {
		return err
	}
	if err := d.format(ctx); err != nil {
		return err
	}
	return d.mount()
}

// close undoes everything but the image file.
func (d *disk) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	errs := []error{d.thawLocked(), d.unmount()}
	if d.loop != nil {
		errs = append(errs, d.loop.Close())
	}
	return errors.Join(errs...)
}

// folderIoctl calls ioctl with a number on a folder.
func folderIoctl(folder string, request uint, value uint32) error {
	f, err := os.Open(folder)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	return ioctl(f, request, value)
}

func ioctl(f *os.File, request uint, value uint32) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), uintptr(unsafe.Pointer(&value)))
	if errno != 0 {
		return errno
	}
	return nil
}

func syncFolder(folder string) error {
	f, err := os.Open(folder)
	if err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("sync folder %s: %w", folder, err)
	}
	return nil
}
