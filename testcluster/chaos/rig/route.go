// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// router sets routes in one namespace: its netlink socket stays in the namespace
// in which it was opened.
type router struct {
	mu  sync.Mutex // one request at a time
	fd  int
	seq uint32
}

func openRouter() (*router, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open netlink: %w", err), unix.Close(fd))
	}
	return &router{fd: fd}, nil
}

// add leads packets for one address into a device; it is no error if they are
// already. The sender's address stays src.
func (r *router) add(to, src netip.Addr, device int) error {
	return r.request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, to, src, device)
}

// remove undoes add; a route that is not there is no error.
func (r *router) remove(to, src netip.Addr, device int) error {
	err := r.request(unix.RTM_DELROUTE, 0, to, src, device)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// request sends one request and waits for its acknowledgement.
func (r *router) request(kind, flags uint16, to, src netip.Addr, device int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq++
	to4, src4 := to.As4(), src.As4()
	// struct nlmsghdr; its length is filled in at the end.
	msg := make([]byte, 4, 64)
	msg = binary.NativeEndian.AppendUint16(msg, kind)
	msg = binary.NativeEndian.AppendUint16(msg, flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	msg = binary.NativeEndian.AppendUint32(msg, r.seq)
	msg = binary.NativeEndian.AppendUint32(msg, 0)
	// struct rtmsg
	msg = append(msg, unix.AF_INET, 32, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_LINK, unix.RTN_UNICAST, 0, 0, 0, 0)
	msg = appendAttribute(msg, unix.RTA_DST, to4[:])
	msg = appendAttribute(msg, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(device)))
	msg = appendAttribute(msg, unix.RTA_PREFSRC, src4[:])
	binary.NativeEndian.PutUint32(msg, uint32(len(msg)))
	if err := unix.Sendto(r.fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("set route to %v: %w", to, err)
	}
	if err := r.acknowledged(); err != nil {
		return fmt.Errorf("set route to %v: %w", to, err)
	}
	return nil
}

// acknowledged waits for the answer to the last request; older ones may still
// lie there, of requests that were given up.
func (r *router) acknowledged() error {
	buf := make([]byte, 4096)
	for range 64 {
		n, _, err := unix.Recvfrom(r.fd, buf, 0)
		if err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return err
		}
		if n < 20 || binary.NativeEndian.Uint32(buf[8:]) != r.seq || binary.NativeEndian.Uint16(buf[4:]) != unix.NLMSG_ERROR {
			continue
		}
		if code := int32(binary.NativeEndian.Uint32(buf[16:])); code != 0 {
			return unix.Errno(-code)
		}
		return nil
	}
	return errors.New("the kernel does not answer")
}

func appendAttribute(msg []byte, kind uint16, value []byte) []byte {
	msg = binary.NativeEndian.AppendUint16(msg, uint16(4+len(value)))
	msg = binary.NativeEndian.AppendUint16(msg, kind)
	return append(msg, value...)
}

func (r *router) close() error { return unix.Close(r.fd) }
