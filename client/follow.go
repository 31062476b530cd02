// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// maxSilence bounds the growing patience with streams that fall silent: it is
// several times the longest interval of heartbeats that nodes use.
const maxSilence = 4 * time.Second

// errSilent is why a stream was given up.
var errSilent = errors.New("the node is silent")

// stopError ends follow with the error inside: the consumer wants no more.
type stopError struct{ error }

func (e stopError) Unwrap() error { return e.error }

// guard ends a stream that is silent while it is waited for. The time in which
// the consumer handles a message does not count.
type guard struct {
	cancel context.CancelCauseFunc
	timer  *time.Timer
	// limit is for messages after the first one, which gets an attempt timeout.
	limit time.Duration
	heard bool
}

func newGuard(cancel context.CancelCauseFunc, first, limit time.Duration) *guard {
	return &guard{cancel: cancel, limit: limit, timer: time.AfterFunc(first, func() { cancel(errSilent) })}
}

// recv runs one receive under the guard.
func (g *guard) recv(receive func() error) error {
	if g.heard {
		g.timer.Reset(g.limit)
	}
	err := receive()
	g.timer.Stop()
	if err == nil {
		g.heard = true
	}
	return err
}

// follow runs a stream again and again, at one endpoint after the other, until
// ctx ends or the stream's function returns a stopError or an error that no other
// endpoint and no waiting can mend.
func (c *Client) follow(ctx context.Context, what string, stream func(ctx context.Context, cc grpc.ClientConnInterface, g *guard) error) error {
	var back backoff
	silence := silenceAttempts * c.opts.AttemptTimeout
	for {
		ep, err := c.pool.best()
		if err != nil {
			return err
		}
		sctx, cancel := context.WithCancelCause(ctx)
		g := newGuard(cancel, c.opts.AttemptTimeout, silence)
		err = hastate.FromStatus(stream(sctx, ep.conn, g))
		g.timer.Stop()
		if errors.Is(context.Cause(sctx), errSilent) {
			err = fmt.Errorf("%w: %w", errSilent, err)
			if g.heard {
				// Perhaps its heartbeats are slower than that.
				silence = max(silence, min(2*silence, maxSilence))
			}
		}
		cancel(nil)
		var stop stopError
		if errors.As(err, &stop) {
			return stop.error
		}
		if endsNow(ctx, err) {
			<-ctx.Done()
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if lasting(err) {
			return err
		}
		c.log.Warn("watch broke, following on at another node", "watch", what, "endpoint", ep.addr, "error", err)
		c.pool.blame(ep, err)
		if g.heard {
			back.reset()
		}
		if back.wait(ctx) != nil {
			return context.Cause(ctx)
		}
	}
}

// endsNow tells a stream that the node has ended at the caller's deadline, which ran
// out there a moment before it does here.
func endsNow(ctx context.Context, err error) bool {
	end, limited := ctx.Deadline()
	return limited && status.Code(err) == codes.DeadlineExceeded && time.Until(end) < 100*time.Millisecond
}

// lasting tells an error that stays the same everywhere: the caller may not do
// this, or asked wrongly.
func lasting(err error) bool {
	switch status.Code(err) {
	case codes.PermissionDenied, codes.Unauthenticated, codes.InvalidArgument, codes.Unimplemented:
		return true
	}
	return errors.Is(err, hastate.ErrClosed)
}

// probe asks a node again and again whether it still answers, and ends a stream to
// it when it does not. It is for streams on which nothing need come for a long
// time. It returns when ctx ends.
func (c *Client) probe(ctx context.Context, cc grpc.ClientConnInterface, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(silenceAttempts * c.opts.AttemptTimeout)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		short, done := context.WithTimeout(ctx, c.opts.AttemptTimeout)
		_, err := pb.NewClusterServiceClient(cc).Status(short, &pb.StatusRequest{})
		done()
		if err != nil && ctx.Err() == nil {
			cancel(errSilent)
			return
		}
	}
}
