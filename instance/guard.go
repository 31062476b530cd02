// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"context"
	"fmt"
	"sync"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// guard keeps the epoch for a server that knows none, lets one hook run at a
// time, and lets a demotion end a promotion that is under way.
type guard struct {
	// turn holds a token while a hook runs.
	turn chan struct{}

	mu sync.Mutex // guards all below
	// newest is the highest epoch seen; over: it was demoted; promoted: its
	// promotion succeeded.
	newest         uint64
	over, promoted bool
	// end ends the promotion under way; nil if there is none.
	end context.CancelFunc
}

func newGuard() *guard { return &guard{turn: make(chan struct{}, 1)} }

// promote begins a promotion. finish must be called with whether it succeeded;
// its result says whether that still counts.
func (g *guard) promote(ctx context.Context, group string, epoch uint64) (hook context.Context, finish func(ok bool) error, err error) {
	select {
	case g.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, fmt.Errorf("wait for the hook before: %w", ctx.Err())
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.refusal(group, epoch); err != nil {
		<-g.turn
		return nil, nil, err
	}
	if epoch > g.newest {
		g.newest, g.over, g.promoted = epoch, false, false
	}
	hook, cancel := context.WithCancel(ctx)
	g.end = cancel
	return hook, func(ok bool) error {
		cancel()
		g.mu.Lock()
		defer g.mu.Unlock()
		g.end = nil
		<-g.turn
		if err := g.refusal(group, epoch); err != nil {
			return err
		}
		g.promoted = g.promoted || ok
		return nil
	}, nil
}

// refusal is the error for an epoch that may not act. mu must be held.
func (g *guard) refusal(group string, epoch uint64) error {
	if epoch < g.newest || (epoch == g.newest && g.over) {
		return &hastate.FencedError{Group: group, Epoch: epoch, NewestEpoch: g.newest}
	}
	return nil
}

// demote ends an epoch for good, ends a promotion under way and waits until its
// hook is dead. finish must be called with whether the demotion succeeded.
func (g *guard) demote(ctx context.Context, group string, epoch uint64) (finish func(ok bool), err error) {
	g.mu.Lock()
	if epoch < g.newest {
		g.mu.Unlock()
		return nil, &hastate.FencedError{Group: group, Epoch: epoch, NewestEpoch: g.newest}
	}
	if epoch > g.newest {
		g.newest = epoch
	}
	g.over = true
	if g.end != nil {
		g.end()
	}
	g.mu.Unlock()
	select {
	case g.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the hook before: %w", ctx.Err())
	}
	return func(ok bool) {
		g.mu.Lock()
		defer g.mu.Unlock()
		<-g.turn
		if ok && g.newest == epoch {
			g.promoted = false
		}
	}, nil
}

// gone forgets the role of a process that is no more, not the epoch.
func (g *guard) gone() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.promoted = false
}

// mark adds role and epoch to a status.
func (g *guard) mark(st Status) Status {
	g.mu.Lock()
	defer g.mu.Unlock()
	st.Epoch, st.Role = g.newest, pb.Role_ROLE_STANDBY
	if g.promoted {
		st.Role = pb.Role_ROLE_PRIMARY
	}
	return st
}
