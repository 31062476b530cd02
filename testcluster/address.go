// SPDX-License-Identifier: Apache-2.0

package testcluster

import (
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"testing"
)

// A node of a test comes back at the same address, so its port must stay free
// while it is down. Ports below the range from which the kernel takes those of
// outgoing connections do, and no two tests of this process get the same one.
const firstPort, portCount = 10000, 22000

var (
	// givenMu guards given.
	givenMu sync.Mutex
	given   = map[int]bool{}
)

// newAddress finds a free loopback address for one node.
func newAddress(tb testing.TB) string {
	tb.Helper()
	givenMu.Lock()
	defer givenMu.Unlock()
	for range 1000 {
		port := firstPort + rand.IntN(portCount)
		if given[port] {
			continue
		}
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		l, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			tb.Fatal(err)
		}
		given[port] = true
		return address
	}
	tb.Fatal("no free port was found")
	return ""
}
