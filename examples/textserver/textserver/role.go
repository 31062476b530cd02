// SPDX-License-Identifier: Apache-2.0

package textserver

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Why a server does not serve, or stopped.
var (
	errLoading    = errors.New("the model is being trained")
	errNotPrimary = errors.New("this server is not the primary")
	errDraining   = errors.New("this server is draining")
	errLeaseOver  = errors.New("the lease has passed without a renewal")
	errDemoted    = errors.New("this server was demoted")
	errFenced     = errors.New("another server has become the primary")
	errClosing    = errors.New("this server is being shut down")
)

// rate is the bound on the error of a machine's clock rate: 1 in rate. A lease
// is counted shorter by it.
const rate = 100

// role is what the server has been told to be.
type role struct {
	group string
	clock clock.Clock

	mu sync.Mutex // guards all below, and the fields of each term
	// loaded: the model is trained. closing: the process is about to end.
	loaded, closing bool
	// newest is the highest epoch seen; over: it never comes back.
	newest uint64
	over   bool
	// term is the current time as the primary, nil for a standby.
	term *term
	// working is the number of requests under way, in all terms.
	working int
	// changed is closed and replaced when any of this changes.
	changed chan struct{}
}

// term is one time as the primary, under one epoch. Its fields but ctx and
// epoch are guarded by role.mu.
type term struct {
	epoch uint64
	// ctx ends with the term; its cause is one of the errors above.
	ctx    context.Context //nolint:containedctx // it is the term
	cancel context.CancelCauseFunc
	// until is the first instant at which it must not act; 0: no lease was given.
	until clock.Instant
	// expiry ends the term at until.
	expiry *time.Timer
	// draining: takes no more requests. Demoting: never will again.
	draining, demoting bool
	// working is the number of requests under way.
	working int
}

func newRole(group string, c clock.Clock) *role {
	return &role{group: group, clock: c, changed: make(chan struct{})}
}

// touch tells all who wait. mu must be held.
func (r *role) touch() {
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *role) setLoaded() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.loaded = true
	r.touch()
}

func (r *role) fencedError(epoch uint64) error {
	return &hastate.FencedError{Group: r.group, Epoch: epoch, NewestEpoch: r.newest}
}

// admit checks whether epoch may be promoted, and whether that only renews.
func (r *role) admit(epoch uint64) (renewal bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.admitLocked(epoch)
}

func (r *role) admitLocked(epoch uint64) (renewal bool, err error) {
	if epoch < r.newest || (epoch == r.newest && r.over) {
		return false, r.fencedError(epoch)
	}
	// A renewal is a success while draining too: it keeps the running work alive.
	if r.term != nil && r.term.epoch == epoch {
		return true, nil
	}
	if !r.loaded {
		return false, fmt.Errorf("%w: %w: ask again", hastate.ErrPrecondition, errLoading)
	}
	if r.closing {
		return false, fmt.Errorf("%w: %w", hastate.ErrPrecondition, errClosing)
	}
	return false, nil
}

// promote begins or renews the term of an epoch. The lease is counted from
// received; 0 means none.
func (r *role) promote(epoch uint64, received clock.Instant, lease time.Duration) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := r.admitLocked(epoch); err != nil {
		return err
	}
	until := clock.Instant(0)
	if lease > 0 {
		until = received.Add(lease - lease/rate)
		if r.clock.Now() >= until {
			return fmt.Errorf("%w: %w before the promotion was done: ask again with a longer lease", hastate.ErrPrecondition, errLeaseOver)
		}
	}
	if r.term != nil && r.term.epoch != epoch {
		r.end(r.term, errFenced)
	}
	r.newest, r.over = epoch, false
	if r.term == nil {
		ctx, cancel := context.WithCancelCause(context.Background())
		r.term = &term{epoch: epoch, ctx: ctx, cancel: cancel}
		r.touch()
	}
	r.arm(r.term, until)
	return nil
}

// arm sets the end of a term's lease; it never comes earlier by it. mu must be
// held.
func (r *role) arm(t *term, until clock.Instant) {
	if until == 0 || (t.until != 0 && until <= t.until) {
		return
	}
	t.until = until
	if t.expiry != nil {
		t.expiry.Stop()
	}
	t.expiry = time.AfterFunc(max(until.Sub(r.clock.Now()), 0), func() { r.expire(t) })
}

// expire ends a term whose lease has passed, or waits on: timers and the clock
// of the lease are not the same.
func (r *role) expire(t *term) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.term != t {
		return
	}
	if left := t.until.Sub(r.clock.Now()); left > 0 {
		t.expiry = time.AfterFunc(max(left, time.Millisecond), func() { r.expire(t) })
		return
	}
	r.end(t, errLeaseOver)
}

// end ends a term. Its requests notice by its context. mu must be held.
func (r *role) end(t *term, cause error) {
	if r.term != t {
		return
	}
	r.term = nil
	if t.expiry != nil {
		t.expiry.Stop()
	}
	t.cancel(cause)
	r.touch()
}

// valid is the question before each step that others can see: nil while the
// term runs and its lease has not passed.
func (r *role) valid(t *term) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.term == t && t.until != 0 && r.clock.Now() >= t.until {
		r.end(t, errLeaseOver)
	}
	return context.Cause(t.ctx)
}

// enter begins a request; leave must be called at its end.
func (r *role) enter() (t *term, leave func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t = r.term
	if t != nil && t.until != 0 && r.clock.Now() >= t.until {
		r.end(t, errLeaseOver)
		t = nil
	}
	switch {
	case !r.loaded:
		return nil, nil, errLoading
	case r.closing:
		return nil, nil, errClosing
	case t == nil:
		return nil, nil, errNotPrimary
	case t.draining:
		return nil, nil, errDraining
	case r.working >= maxRequests:
		return nil, nil, &hastate.LimitError{Limit: "textserver.requests", Maximum: maxRequests, Actual: uint64(r.working) + 1}
	}
	t.working++
	r.working++
	r.touch()
	return t, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		t.working--
		r.working--
		r.touch()
	}, nil
}

// fence ends the term of an epoch that the cluster has refused.
func (r *role) fence(epoch, newest uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.term != nil && r.term.epoch == epoch {
		r.end(r.term, errFenced)
	}
	if epoch == r.newest {
		r.over = true
	}
	if newest > r.newest { // it may be ours
		r.newest, r.over = newest, false
	}
}

// idle waits until no requests are under way, in whatever term they began.
func (r *role) idle(ctx context.Context) error {
	for {
		r.mu.Lock()
		working, changed := r.working, r.changed
		r.mu.Unlock()
		if working == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// demote ends an epoch for good. With a grace, running requests may finish
// until it has passed, or until the lease has. When it returns nil no request
// runs under the epoch.
func (r *role) demote(ctx context.Context, epoch uint64, grace time.Duration) error {
	r.mu.Lock()
	if epoch < r.newest {
		defer r.mu.Unlock()
		return r.fencedError(epoch)
	}
	t := r.term
	if t == nil || t.epoch != epoch {
		// An epoch that was never promoted here ends too, and so does an older one.
		if t != nil {
			r.end(t, errFenced)
		}
		r.newest, r.over = epoch, true
		r.touch()
		r.mu.Unlock()
		return r.idle(ctx)
	}
	t.draining, t.demoting = true, true
	r.touch()
	r.mu.Unlock()
	if grace > 0 {
		graceful, cancel := context.WithTimeout(ctx, grace)
		_ = r.idle(graceful) // what is left is ended below
		cancel()
	}
	r.mu.Lock()
	r.over = r.over || r.newest == epoch
	r.end(t, errDemoted)
	r.mu.Unlock()
	return r.idle(ctx)
}

// drain takes no more requests and waits until the running ones are done. If
// ctx ends first, requests are taken again.
func (r *role) drain(ctx context.Context, progress func(working int) error) error {
	r.mu.Lock()
	t := r.term
	if t != nil {
		t.draining = true
		r.touch()
	}
	r.mu.Unlock()
	if t == nil {
		return nil
	}
	err := r.drained(ctx, t, progress)
	if err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		t.draining = t.demoting
		r.touch()
	}
	return err
}

func (r *role) drained(ctx context.Context, t *term, progress func(working int) error) error {
	for last := -1; ; {
		r.mu.Lock()
		working, changed := t.working, r.changed
		r.mu.Unlock()
		if working == 0 {
			return nil
		}
		if working != last {
			if err := progress(working); err != nil {
				return err
			}
			last = working
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// shut takes no more requests or promotions, gives the running requests until
// grace ends, and then ends the term.
func (r *role) shut(grace context.Context) {
	r.mu.Lock()
	r.closing = true
	t := r.term
	r.touch()
	r.mu.Unlock()
	_ = r.idle(grace) // what is left is ended below
	r.mu.Lock()
	defer r.mu.Unlock()
	if t != nil {
		r.end(t, errClosing)
	}
}

// status is the role's part of a status message; changed is closed when it has
// changed.
func (r *role) status() (st *pb.WatchStatusResponse, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	st = &pb.WatchStatusResponse{
		State: pb.InstanceState_INSTANCE_STATE_READY, Role: pb.Role_ROLE_STANDBY,
		Epoch: r.newest, InFlight: uint32(r.working),
	}
	if r.term != nil {
		st.Role, st.Epoch = pb.Role_ROLE_PRIMARY, r.term.epoch
	}
	switch {
	case !r.loaded:
		st.State, st.Reason = pb.InstanceState_INSTANCE_STATE_LOADING, errLoading.Error()
	case r.closing:
		st.State, st.Reason = pb.InstanceState_INSTANCE_STATE_DRAINING, errClosing.Error()
	case r.term != nil && r.term.draining:
		st.State, st.Reason = pb.InstanceState_INSTANCE_STATE_DRAINING, errDraining.Error()
	}
	return st, r.changed
}
