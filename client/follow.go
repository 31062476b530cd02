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
)

// errSilent is why a stream was given up.
var errSilent = errors.New("the node is silent")

// stopError ends follow with the error inside: the consumer wants no more.
type stopError struct{ error }

func (e stopError) Unwrap() error { return e.error }

// guard ends the context of a stream that is silent while it is waited for. The
// time in which the consumer handles a message does not count.
type guard struct {
	timer *time.Timer
	limit time.Duration
	heard bool
}

func newGuard(cancel context.CancelCauseFunc, first, later time.Duration) *guard {
	return &guard{timer: time.AfterFunc(first, func() { cancel(errSilent) }), limit: later}
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
	for {
		ep, err := c.pool.best()
		if err != nil {
			return err
		}
		sctx, cancel := context.WithCancelCause(ctx)
		g := newGuard(cancel, c.opts.AttemptTimeout, silenceAttempts*c.opts.AttemptTimeout)
		err = hastate.FromStatus(stream(sctx, ep.conn, g))
		g.timer.Stop()
		if errors.Is(context.Cause(sctx), errSilent) {
			err = fmt.Errorf("%w: %w", errSilent, err)
		}
		cancel(nil)
		var stop stopError
		if errors.As(err, &stop) {
			return stop.error
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

// lasting tells an error that stays the same everywhere: the caller may not do
// this, or asked wrongly.
func lasting(err error) bool {
	switch status.Code(err) {
	case codes.PermissionDenied, codes.Unauthenticated, codes.InvalidArgument, codes.Unimplemented:
		return true
	}
	return errors.Is(err, hastate.ErrClosed)
}
