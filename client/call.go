// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// probeAfter: a node that has not answered after this fraction of an attempt is
// asked whether it knows a leader.
const probeAfter = 4

// Kind says how a call may be retried.
type Kind int

const (
	// Repeatable calls do no harm when they are done twice: reads, and writes
	// that set something to a value. One endpoint gets AttemptTimeout, then the
	// next is tried.
	Repeatable Kind = iota
	// Once calls are sent only to a node that has just answered, get all the time
	// that the context has, and are repeated only if they were certainly not
	// done.
	Once
)

// Call runs an RPC at an endpoint that answers, until ctx ends. fn is given the
// connection and may be called more than once.
//
// A Once call that broke while it was under way ends with an
// OutcomeUnknownError. It is sent only to a node that knows a leader. A call that
// ends because no leader was known matches hastate.ErrNoLeader, also when its
// deadline has passed while a node waited for one.
func (c *Client) Call(ctx context.Context, kind Kind, fn func(ctx context.Context, cc grpc.ClientConnInterface) error) error {
	ctx, cancel := c.within(ctx)
	defer cancel()
	return c.call(ctx, kind, fn)
}

func (c *Client) call(ctx context.Context, kind Kind, fn func(ctx context.Context, cc grpc.ClientConnInterface) error) error {
	var back backoff
	var last error
	redirects := 0
	for attempt := 1; ; attempt++ {
		ep, err := c.pool.best()
		if err != nil {
			return err
		}
		again, err := c.attempt(ctx, kind, ep, fn)
		if err == nil {
			return nil
		}
		if !again {
			return err
		}
		if ctx.Err() != nil {
			return c.gaveUp(ctx, attempt, last, err)
		}
		last = err
		if c.pool.blame(ep, err) {
			if redirects++; redirects <= 2 {
				continue
			}
		}
		// Each endpoint is tried once before the first wait.
		if redirects == 0 && attempt%c.pool.size() != 0 {
			continue
		}
		redirects = 0
		if back.wait(ctx) != nil {
			return c.gaveUp(ctx, attempt, last, err)
		}
	}
}

// gaveUp says why a call ended with its context. The last error of an endpoint
// that was not the end of the context itself explains more, and a missing leader
// more than an endpoint that is down.
func (c *Client) gaveUp(ctx context.Context, attempts int, last, err error) error {
	if last == nil || !ended(err) {
		last = err
	}
	cause := context.Cause(ctx)
	if c.leaderless.Load() && passing(last) && !errors.Is(last, hastate.ErrOutcomeUnknown) {
		return fmt.Errorf("%w (gave up after %d attempts: %w)", &hastate.NotLeaderError{}, attempts, cause)
	}
	if ended(last) {
		return fmt.Errorf("gave up after %d attempts: %w", attempts, cause)
	}
	return fmt.Errorf("gave up after %d attempts: %w: %w", attempts, cause, last)
}

func ended(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return true
	}
	code := status.Code(err)
	return code == codes.DeadlineExceeded || code == codes.Canceled
}

// attempt asks one endpoint. again: it makes sense to ask another one.
func (c *Client) attempt(ctx context.Context, kind Kind, ep *endpoint, fn func(ctx context.Context, cc grpc.ClientConnInterface) error) (again bool, err error) {
	short, cancel := context.WithTimeout(ctx, c.opts.AttemptTimeout)
	defer cancel()
	if kind == Repeatable {
		stop := c.probeLeader(short, ep)
		err := hastate.FromStatus(fn(short, ep.conn))
		stop()
		c.learnLeader(err)
		return passing(err), err
	}
	if err := c.askLeader(short, ep); err != nil {
		return passing(err), err
	}
	err = hastate.FromStatus(fn(ctx, ep.conn))
	c.learnLeader(err)
	if notDone(err) {
		return true, err
	}
	if passing(err) && !errors.Is(err, hastate.ErrOutcomeUnknown) {
		err = &hastate.OutcomeUnknownError{Reason: err.Error()}
	}
	return false, err
}

// askLeader asks a node for its status. NotLeaderError: it answers, but knows no
// leader.
func (c *Client) askLeader(ctx context.Context, ep *endpoint) error {
	resp, err := pb.NewClusterServiceClient(ep.conn).Status(ctx, &pb.StatusRequest{})
	if err != nil {
		return hastate.FromStatus(err)
	}
	c.leaderless.Store(resp.GetLeaderId() == "")
	if resp.GetLeaderId() == "" {
		return &hastate.NotLeaderError{}
	}
	return nil
}

// probeLeader asks a node whether it knows a leader once a call to it takes long:
// a node that waits for a leader does not answer before the call's time is up.
func (c *Client) probeLeader(ctx context.Context, ep *endpoint) (stop func()) {
	delay := c.opts.AttemptTimeout
	if end, ok := ctx.Deadline(); ok {
		delay = min(delay, time.Until(end))
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	timer := time.AfterFunc(delay/probeAfter, func() {
		defer close(done)
		_ = c.askLeader(ctx, ep) // it keeps what it learned
	})
	return func() {
		cancel()
		if !timer.Stop() {
			<-done
		}
	}
}

// learnLeader keeps what the end of a call says about the leader.
func (c *Client) learnLeader(err error) {
	switch {
	case errors.Is(err, hastate.ErrNoLeader):
		c.leaderless.Store(true)
	case err == nil, errors.Is(err, hastate.ErrNotLeader):
		c.leaderless.Store(false)
	}
}

// notDone tells errors after which the same request can be made again at once:
// certainly nothing was done, and it may go better elsewhere or later.
func notDone(err error) bool {
	return errors.Is(err, hastate.ErrNotLeader) || errors.Is(err, hastate.ErrNoLeader) || queueFull(err)
}

// queueFull tells a node that has too much to do from a request that is too large.
func queueFull(err error) bool {
	var limit *hastate.LimitError
	return errors.As(err, &limit) && strings.Contains(limit.Limit, "_queue_")
}

// passing tells an error of one endpoint, or of a moment, from an answer.
func passing(err error) bool {
	if err == nil {
		return false
	}
	if notDone(err) || errors.Is(err, hastate.ErrOutcomeUnknown) {
		return true
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return true
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return true
	}
	return false
}
