// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// namespace is a network namespace; nil stands for the one of the program. It
// lives as long as its file is open or a process is in it.
type namespace struct {
	file *os.File
	hub  *os.File // where threads return to
}

// openHub opens the namespace of the program.
func openHub() (*namespace, error) {
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	return &namespace{file: f, hub: f}, nil
}

// sub makes a new, empty namespace.
func (n *namespace) sub() (*namespace, error) {
	var made *namespace
	err := n.in(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return fmt.Errorf("open network namespace: %w", err)
		}
		made = &namespace{file: f, hub: n.hub}
		return loopbackUp()
	})
	if err != nil && made != nil {
		return nil, errors.Join(err, made.close())
	}
	return made, err
}

// in calls f on a thread that is in the namespace: sockets that f opens and
// processes that it starts belong to it for good. f must not start goroutines for
// that, nor end its own.
func (n *namespace) in(f func() error) error {
	if n == nil {
		return f()
	}
	runtime.LockOSThread()
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace: %w", err)
	}
	err := f()
	if back := unix.Setns(int(n.hub.Fd()), unix.CLONE_NEWNET); back != nil {
		// A thread in the wrong namespace must not serve other goroutines, and must
		// not end either: the processes that it started would die with it.
		panic(fmt.Sprintf("rig: cannot leave a network namespace: %v", errors.Join(back, err)))
	}
	// The thread stays: what it started is told of its death (see proc.Start).
	runtime.UnlockOSThread()
	return err
}

func (n *namespace) close() error {
	if n == nil {
		return nil
	}
	return n.file.Close()
}

// loopbackUp brings up the loopback device of the thread's namespace: a new one
// has nothing else, and that is down.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	request, err := unix.NewIfreq("lo")
	if err == nil {
		request.SetUint16(unix.IFF_UP)
		err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
	}
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	return nil
}
