// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"fmt"
	"net"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/hastate/hastate"
)

// localPlaintext are the credentials of a Client that was given none: plaintext,
// but only to this machine. It is checked on the connection, so that a name, or
// an address that a node told us, cannot lead the client elsewhere.
type localPlaintext struct {
	credentials.TransportCredentials
}

func newLocalPlaintext() credentials.TransportCredentials {
	return localPlaintext{insecure.NewCredentials()}
}

func (l localPlaintext) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if !local(conn.RemoteAddr()) {
		return nil, nil, fmt.Errorf("plaintext to %v is refused: use TLS, or allow plaintext", conn.RemoteAddr())
	}
	return l.TransportCredentials.ClientHandshake(ctx, authority, conn)
}

func (l localPlaintext) Clone() credentials.TransportCredentials {
	return localPlaintext{l.TransportCredentials.Clone()}
}

func local(addr net.Addr) bool {
	switch a := addr.(type) {
	case *net.TCPAddr:
		return a.IP.IsLoopback()
	case *net.UnixAddr:
		return true
	}
	return false
}

// checkEndpoint checks the form of an endpoint: host:port, or a gRPC target.
func checkEndpoint(endpoint string) error {
	if len(endpoint) > hastate.MaxURIBytes {
		return &hastate.LimitError{Limit: "endpoint bytes", Maximum: hastate.MaxURIBytes, Actual: uint64(len(endpoint))}
	}
	if isTarget(endpoint) {
		return nil
	}
	if host, port, err := net.SplitHostPort(endpoint); err != nil || host == "" || port == "" {
		return fmt.Errorf("%w: endpoint %q is not host:port", hastate.ErrInvalid, endpoint)
	}
	return nil
}

// isTarget tells a gRPC target with a scheme from a host:port.
func isTarget(endpoint string) bool {
	return strings.Contains(endpoint, "://") || strings.HasPrefix(endpoint, "unix:")
}

// looksLocal is what can be said of an endpoint before it is connected to.
func looksLocal(endpoint string) bool {
	if isTarget(endpoint) {
		return true // the handshake decides
	}
	host, _, err := net.SplitHostPort(endpoint)
	if err != nil {
		return false
	}
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
