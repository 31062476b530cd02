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
	// reading is the newest that is known of the server's clock, and readAt when it
	// came; 0 if none is.
	reading uint64
	readAt  time.Time
	// live is closed when the connection breaks over which Watch hears the server;
	// nil if it hears nothing. While it is open the process lives, whatever its port
	// says: a server that shuts down refuses connections first and works on.
	live chan struct{}
	// witnessed: the server was heard over the last such connection, and has ended it.
	// Otherwise nobody has seen a process end: a port that refuses may be that of one
	// that was shutting down before this node was started.
	witnessed bool
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
	g.heardClock(resp.GetClockUs())
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
	g.info, g.verified, g.reading = nil, 0, 0
}

// heardClock notes a reading of the server's clock.
func (g *grpcInstance) heardClock(us uint64) {
	if us == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reading, g.readAt = us, time.Now()
}

// Clock implements Instance.
func (g *grpcInstance) Clock(ctx context.Context, maxAge time.Duration) (uint64, time.Duration, error) {
	reading, age, asked := g.newestReading()
	if reading == 0 && asked || reading != 0 && age <= maxAge {
		return reading, age, nil
	}
	_, err := g.Info(ctx) // without an answer the older reading has to do
	if reading, age, asked = g.newestReading(); reading == 0 && !asked {
		// Not that it shows none: it would count an order from the receipt.
		return 0, 0, fmt.Errorf("read the clock of instance %s: %w", g.cfg.Target, err)
	}
	return reading, age, nil
}

// newestReading is what is known of the server's clock, and whether the server has been
// asked since it was gone.
func (g *grpcInstance) newestReading() (reading uint64, age time.Duration, asked bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.reading != 0 {
		age = time.Since(g.readAt)
	}
	return g.reading, age, g.info != nil
}

// errUnwitnessed is why a port that refuses proves nothing.
var errUnwitnessed = errors.New("its port refuses connections, and this node did not see it end: it may be shutting down")

// gone reports whether the process certainly is gone: its port refuses connections, and
// the one over which it was heard has ended. A connection that is breaking is waited for
// as long as a look may take.
func (g *grpcInstance) gone(ctx context.Context) (bool, error) {
	where, err := look(ctx, g.cfg.Target, g.cfg.Timeout)
	if where != refused {
		return false, err
	}
	g.mu.Lock()
	live := g.live
	g.mu.Unlock()
	if live != nil {
		timer := time.NewTimer(g.cfg.Timeout)
		defer timer.Stop()
		select {
		case <-live:
		case <-timer.C:
			return false, fmt.Errorf("its port refuses connections, and it is still heard over an older one: it is shutting down: %w", err)
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	g.mu.Lock()
	witnessed := g.witnessed
	g.mu.Unlock()
	if !witnessed {
		return false, fmt.Errorf("%w: %w", errUnwitnessed, err)
	}
	g.forget()
	return true, err
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
