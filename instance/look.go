// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// reach is what a bare TCP connection to a port tells.
type reach int

const (
	// unclear: no answer in time, or the network is in the way.
	unclear reach = iota
	// accepted: something listens. It need not be alive: the kernel accepts for a
	// stopped process too.
	accepted
	// refused: nothing listens on any address of the host.
	refused
)

// maxAddresses bounds the addresses of a host name that are tried.
const maxAddresses = 8

// look connects to addr and closes the connection again. All addresses of a
// host name must refuse for the answer to be refused: "localhost" may be
// refused on ::1 and merely slow on 127.0.0.1.
func look(ctx context.Context, addr string, timeout time.Duration) (reach, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return unclear, fmt.Errorf("split address %s: %w", addr, err)
	}
	ips, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return unclear, fmt.Errorf("resolve %s: %w", host, err)
	}
	verdict, dialer := refused, net.Dialer{}
	for _, ip := range ips[:min(len(ips), maxAddresses)] {
		conn, derr := dialer.DialContext(ctx, "tcp", net.JoinHostPort(ip, port))
		if derr == nil {
			_ = conn.Close() // nothing was written to it
			return accepted, nil
		}
		err = derr
		if !errors.Is(derr, unix.ECONNREFUSED) {
			verdict = unclear
		}
	}
	return verdict, fmt.Errorf("connect to %s: %w", addr, err)
}
