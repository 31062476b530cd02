// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// loopbackOnly is plaintext that refuses to leave the machine. It is the default
// of every connection, so that forgotten credentials cannot expose Raft.
type loopbackOnly struct {
	credentials.TransportCredentials
}

func plaintext(anywhere bool) credentials.TransportCredentials {
	if anywhere {
		return insecure.NewCredentials()
	}
	return loopbackOnly{insecure.NewCredentials()}
}

func (c loopbackOnly) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	// A connection without an IP address (a pipe, a Unix socket) is local.
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
		return nil, nil, fmt.Errorf("refused to talk in plaintext to %s, which is not a loopback address: set up TLS, or allow plaintext", tcp)
	}
	return c.TransportCredentials.ClientHandshake(ctx, authority, conn)
}

func (c loopbackOnly) Clone() credentials.TransportCredentials {
	return loopbackOnly{c.TransportCredentials.Clone()}
}
