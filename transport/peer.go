// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/keepalive"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// The connections to a peer. gRPC puts all calls of a connection on one TCP
// stream, so what must not wait for each other is kept apart.
const (
	controlConn = iota
	appendConn
	snapshotConn
	connCount
)

// maxConnectDelay bounds the wait between two attempts to connect.
const maxConnectDelay = time.Second

// peer is another node: its connections, and whether it can be reached.
type peer struct {
	t       *Transport
	id      raft.ServerID
	conns   [connCount]*grpc.ClientConn
	clients [connCount]pb.RaftServiceClient
	ctx     context.Context // done when the peer is disconnected
	cancel  context.CancelCauseFunc

	mu      sync.Mutex
	streams [connCount]dialled // guarded by mu; the latest of each connection
	// unreachable is set by a call that found no peer and reset by one that was
	// answered. guarded by mu
	unreachable bool
	wake        chan struct{} // guarded by mu; closed and replaced when a parked call should try
}

// dialled is a byte stream to an address.
type dialled struct {
	address string
	conn    net.Conn
}

func newPeer(t *Transport, id raft.ServerID) (*peer, error) {
	p := &peer{t: t, id: id, wake: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancelCause(t.ctx)
	for kind := range p.conns {
		conn, err := grpc.NewClient("passthrough:///"+url.PathEscape(string(id)), p.dialOptions(kind)...)
		if err != nil {
			p.close()
			return nil, err
		}
		p.conns[kind] = conn
		p.clients[kind] = pb.NewRaftServiceClient(conn)
	}
	return p, nil
}

func (p *peer) dialOptions(kind int) []grpc.DialOption {
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(plaintext(p.t.opts.AllowPlaintext)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return p.dial(ctx, kind) }),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxConnectDelay},
			MinConnectTimeout: time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: keepaliveTime, Timeout: keepaliveTimeout, PermitWithoutStream: true,
		}),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(MaxMessageBytes),
			grpc.MaxCallSendMsgSize(MaxMessageBytes),
		),
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithIdleTimeout(0),
	}
	if kind != controlConn {
		opts = append(opts, grpc.WithWriteBufferSize(256<<10))
	}
	opts = append(opts, p.t.identityDialOptions(p.id)...)
	if hook := p.t.opts.Fault; hook != nil {
		opts = append(opts,
			grpc.WithChainUnaryInterceptor(FaultUnaryInterceptor(hook, p.t.opts.ID, p.id)),
			grpc.WithChainStreamInterceptor(FaultStreamInterceptor(hook, p.t.opts.ID, p.id)))
	}
	return append(opts, p.t.opts.Dial...)
}

// dial opens a byte stream to where the peer is now.
func (p *peer) dial(ctx context.Context, kind int) (net.Conn, error) {
	address, err := p.t.opts.Resolve(p.id)
	if err != nil {
		return nil, fmt.Errorf("resolve node %s: %w", p.id, err)
	}
	conn, err := p.t.opts.DialContext(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("dial node %s at %s: %w", p.id, address, err)
	}
	p.mu.Lock()
	p.streams[kind] = dialled{address: address, conn: conn}
	p.mu.Unlock()
	return conn, nil
}

// followAddress closes the byte streams to an address that is not the peer's any
// more, so that gRPC dials the new one.
func (p *peer) followAddress() {
	address, err := p.t.opts.Resolve(p.id)
	if err != nil {
		return
	}
	var stale []net.Conn
	p.mu.Lock()
	for kind := range p.streams {
		if s := &p.streams[kind]; s.conn != nil && s.address != address {
			stale = append(stale, s.conn)
			*s = dialled{}
		}
	}
	p.mu.Unlock()
	for _, conn := range stale {
		_ = conn.Close() // nothing to do about an error: it is of no use any more
	}
}

// answered notes that the peer has answered a call.
func (p *peer) answered() {
	p.mu.Lock()
	was := p.unreachable
	p.unreachable = false
	if was {
		p.wakeLocked()
	}
	p.mu.Unlock()
	if was {
		p.t.logger.Info("peer can be reached again", "peer", p.id)
		p.hurry()
	}
}

// failed notes that a call has found no peer.
func (p *peer) failed(err error) {
	p.mu.Lock()
	was := p.unreachable
	p.unreachable = true
	p.mu.Unlock()
	if !was {
		p.t.logger.Info("peer cannot be reached", "peer", p.id, "err", err)
	}
	p.followAddress()
}

// nudge makes waiting calls try once: the peer shows a sign of life.
func (p *peer) nudge() {
	p.mu.Lock()
	if p.unreachable {
		p.wakeLocked()
	}
	p.mu.Unlock()
	p.hurry()
}

func (p *peer) wakeLocked() {
	close(p.wake)
	p.wake = make(chan struct{})
}

// hurry ends the waits before a new attempt to connect.
func (p *peer) hurry() {
	for _, conn := range p.conns {
		if conn.GetState() == connectivity.TransientFailure {
			conn.ResetConnectBackoff()
		}
	}
}

func (p *peer) connect() {
	for _, conn := range p.conns {
		conn.Connect()
	}
	p.nudge()
}

// park returns when a call on a connection to the peer is worth a try: at once if
// the peer can be reached as far as is known, else when it answers, calls, or
// every now and then (it may be that nothing else calls it). The error is why ctx
// is done.
func (p *peer) park(ctx context.Context, kind int) error {
	interval := max(p.t.opts.Heartbeat/2, time.Millisecond)
	for {
		p.mu.Lock()
		unreachable, wake := p.unreachable, p.wake
		p.mu.Unlock()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		serving := p.t.opts.Serving()
		if serving && !unreachable {
			return nil
		}
		timer := time.NewTimer(interval)
		select {
		case <-wake:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if serving && ctx.Err() == nil {
			p.ready(ctx, kind)
			return nil
		}
	}
}

// ready waits for a connection, for a while: after a time without a peer it may
// be between two attempts to connect. gRPC does not show the attempts, only
// their success.
func (p *peer) ready(ctx context.Context, kind int) {
	ctx, cancel := context.WithTimeout(ctx, min(p.t.opts.Heartbeat, maxConnectDelay))
	defer cancel()
	conn := p.conns[kind]
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		if state == connectivity.Idle {
			conn.Connect()
		}
		if !conn.WaitForStateChange(ctx, state) {
			return
		}
	}
}

// close ends the calls to the peer and closes its connections.
func (p *peer) close() {
	p.cancel(fmt.Errorf("disconnected from node %s: %w", p.id, errClosed))
	for _, conn := range p.conns {
		if conn != nil {
			_ = conn.Close() // it can only have been closed before
		}
	}
}
