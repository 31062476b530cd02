// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// grpcInstance is a server that implements InstanceService.
type grpcInstance struct {
	cfg Config

	mu sync.Mutex // guards all below
	// conn is for calls; Watch has connections of its own.
	conn   *grpc.ClientConn
	closed bool
	// info is what the server said last; nil if it has not been asked since it
	// was gone.
	info *Info
	// verified is the newest epoch whose promotion was verified: a repeated
	// Promote of it finds the server READY, or DRAINING.
	verified uint64
}

func openGRPC(cfg Config) *grpcInstance { return &grpcInstance{cfg: cfg} }

// dial makes a connection that is not established yet.
func (g *grpcInstance) dial() (*grpc.ClientConn, error) {
	opts := []grpc.DialOption{grpc.WithNoProxy()}
	if len(g.cfg.Dial) == 0 {
		opts = append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))
	}
	conn, err := grpc.NewClient(g.cfg.Target, append(opts, g.cfg.Dial...)...)
	if err != nil {
		return nil, fmt.Errorf("%w: instance: dial %s: %w", hastate.ErrInvalid, g.cfg.Target, err)
	}
	return conn, nil
}

// client returns the stub for calls. A connection that is waiting out gRPC's
// back-off is replaced: the server may have come back.
func (g *grpcInstance) client() (pb.InstanceServiceClient, *grpc.ClientConn, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, nil, fmt.Errorf("call instance %s: %w", g.cfg.Target, hastate.ErrClosed)
	}
	if g.conn != nil && g.conn.GetState() == connectivity.TransientFailure {
		_ = g.conn.Close() // it is not connected
		g.conn = nil
	}
	if g.conn == nil {
		conn, err := g.dial()
		if err != nil {
			return nil, nil, err
		}
		g.conn = conn
	}
	return pb.NewInstanceServiceClient(g.conn), g.conn, nil
}

func (g *grpcInstance) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	if g.conn == nil {
		return nil
	}
	conn := g.conn
	g.conn = nil
	return conn.Close()
}

func (g *grpcInstance) Info(ctx context.Context) (Info, error) {
	client, _, err := g.client()
	if err != nil {
		return Info{}, err
	}
	return g.getInfo(ctx, client)
}

// getInfo asks and remembers. A server without GetInfo has no capabilities.
func (g *grpcInstance) getInfo(ctx context.Context, client pb.InstanceServiceClient) (Info, error) {
	ctx, cancel := context.WithTimeout(ctx, g.cfg.Timeout)
	defer cancel()
	resp, err := client.GetInfo(ctx, &pb.GetInfoRequest{})
	info := Info{Engine: text(resp.GetEngine()), EngineVersion: text(resp.GetEngineVersion()), Capabilities: resp.GetCapabilities()}
	if status.Code(err) == codes.Unimplemented {
		info, err = Info{Engine: KindGRPC}, nil
	}
	if err != nil {
		return Info{}, fmt.Errorf("get info of instance %s: %w", g.cfg.Target, fromCall(err))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.info = &info
	return info, nil
}

// knownInfo is the remembered info, or a fresh one.
func (g *grpcInstance) knownInfo(ctx context.Context, client pb.InstanceServiceClient) (Info, error) {
	g.mu.Lock()
	info := g.info
	g.mu.Unlock()
	if info != nil {
		return *info, nil
	}
	return g.getInfo(ctx, client)
}

// forget drops what was known of a process that is gone.
func (g *grpcInstance) forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.info, g.verified = nil, 0
}

func (g *grpcInstance) Load(ctx context.Context, model *pb.ModelRef) error {
	client, _, err := g.client()
	if err != nil {
		return err
	}
	ctx, cancel := withDeadline(ctx, DefaultLoadTimeout)
	defer cancel()
	info, err := g.knownInfo(ctx, client)
	if err != nil {
		return err
	}
	if !info.Has(pb.Capability_CAPABILITY_LOAD) {
		return fmt.Errorf("%w: instance %s does not declare LOAD: give it the model when it starts", hastate.ErrPrecondition, g.cfg.Target)
	}
	_, err = client.Load(ctx, &pb.LoadRequest{Model: model})
	if err == nil {
		return nil
	}
	if outcomeUnknown(err) {
		return &hastate.OutcomeUnknownError{Reason: fmt.Sprintf("load at instance %s: %v", g.cfg.Target, err)}
	}
	return fmt.Errorf("load model at instance %s: %w", g.cfg.Target, fromCall(err))
}

// withDeadline gives ctx a deadline if it has none.
func withDeadline(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}

// reserve shortens the deadline of ctx so that one look still fits in before
// the caller's own deadline.
func reserve(ctx context.Context, look time.Duration) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, deadline.Add(-min(look, time.Until(deadline)/4)))
}

// fromCall is hastate.FromStatus, and an expired deadline matches
// context.DeadlineExceeded.
func fromCall(err error) error {
	if status.Code(err) == codes.DeadlineExceeded {
		return fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
	}
	return hastate.FromStatus(err)
}

// outcomeUnknown reports whether a call that failed with err may have had an
// effect.
func outcomeUnknown(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return true
	}
	switch status.Code(err) {
	case codes.InvalidArgument, codes.FailedPrecondition, codes.Unimplemented, codes.NotFound, codes.AlreadyExists,
		codes.PermissionDenied, codes.Unauthenticated, codes.ResourceExhausted, codes.OutOfRange:
		return false
	}
	return true
}
