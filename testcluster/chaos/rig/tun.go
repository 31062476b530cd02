// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// tunName is the name of the TUN device in each namespace.
const tunName = "tun0"

// openTun makes the TUN device of the namespace that the thread is in. Each read
// is one IP packet that was sent into it, each write one that comes out of it.
// The device goes with the file.
func openTun() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w: the kernel needs the tun module", err)
	}
	request, err := unix.NewIfreq(tunName)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make TUN device: %w", err), unix.Close(fd))
	}
	// Only now: before it is a device, it cannot be polled.
	return os.NewFile(uintptr(fd), "/dev/net/tun"), nil
}

// deviceIndex is the index of a device of the namespace that the thread is in.
func deviceIndex(name string) (int, error) {
	device, err := net.InterfaceByName(name)
	if err != nil {
		return 0, fmt.Errorf("find device %s: %w", name, err)
	}
	return device.Index, nil
}
