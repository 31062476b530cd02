// SPDX-License-Identifier: Apache-2.0

package client

import (
	"net"
	"testing"
)

func TestLocalPlaintext(t *testing.T) {
	for _, tc := range []struct {
		addr net.Addr
		want bool
	}{
		{&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, true},
		{&net.TCPAddr{IP: net.IPv6loopback}, true},
		{&net.UnixAddr{Name: "/run/hanode.sock"}, true},
		{&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}, false},
		{&net.IPAddr{IP: net.IPv4(127, 0, 0, 1)}, false},
	} {
		if got := local(tc.addr); got != tc.want {
			t.Errorf("local(%v) = %v, want %v", tc.addr, got, tc.want)
		}
	}
	// A connection to elsewhere is refused before a byte is sent on it.
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	creds := newLocalPlaintext().Clone()
	if _, _, err := creds.ClientHandshake(t.Context(), "node", here); err == nil {
		t.Error("plaintext over a connection to elsewhere was allowed")
	}
}
