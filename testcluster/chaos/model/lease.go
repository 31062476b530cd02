// SPDX-License-Identifier: Apache-2.0

package model

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/election"
	"github.com/hastate/hastate/internal/clock"
)

var (
	errNotPrimary = errors.New("this server is not the primary")
	errDraining   = errors.New("this server is draining")
	errBusy       = errors.New("this server has too many requests")
)

// maxRequests bounds the requests under way.
const maxRequests = 1024

// lease is what the server has been told to be. All instants are of its own clock,
// which may run fast or slow.
type lease struct {
	group string

	mu sync.Mutex // guards all below
	// newest is the highest epoch seen; over: it does not come back.
	newest uint64
	over   bool
	// until is the first instant at which the server must not act under newest; 0
	// if it was never promoted under it.
	until clock.Instant
	// served is the newest epoch that it was promoted under, noted the newest of
	// which that is written down.
	served, noted uint64
	// draining: it takes no more requests.
	draining bool
	// working is the number of requests under way; stop ends those of now.
	working int
	stop    chan struct{}
	// changed is closed and replaced when any of this changes.
	changed chan struct{}
}

func newLease(group string) *lease {
	return &lease{group: group, stop: make(chan struct{}), changed: make(chan struct{})}
}

// touch tells all who wait. mu must be held.
func (l *lease) touch() {
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *lease) fenced(epoch uint64) error {
	return &hastate.FencedError{Group: l.group, Epoch: epoch, NewestEpoch: l.newest}
}

// admit says whether an epoch may be promoted, and whether it runs already.
func (l *lease) admit(epoch uint64, now clock.Instant) (running bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.admitLocked(epoch, now)
}

func (l *lease) admitLocked(epoch uint64, now clock.Instant) (running bool, err error) {
	if epoch < l.newest || epoch == l.newest && l.over {
		return false, l.fenced(epoch)
	}
	return epoch == l.newest && now < l.until, nil
}

// promote begins or renews the lease of an epoch. It is counted from from, and
// shorter than it is by what a clock may be wrong. note writes down that an epoch
// begins: before anybody can be told of it, so that who is told finds it written.
func (l *lease) promote(epoch uint64, from, now clock.Instant, ttl time.Duration, note func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := l.admitLocked(epoch, now); err != nil {
		return err
	}
	if epoch != l.noted && now < from.Add(election.HolderTTL(ttl)) {
		if err := note(); err != nil {
			return err
		}
		l.noted = epoch
	}
	if epoch > l.newest {
		l.end(epoch)
		l.over = false
	}
	l.served = epoch
	l.until = max(l.until, from.Add(election.HolderTTL(ttl)))
	l.touch()
	if now >= l.until {
		return fmt.Errorf("%w: the lease had passed before the promotion was done: ask again with a longer one", hastate.ErrPrecondition)
	}
	return nil
}

// end makes epoch the newest one, and one that is over. mu must be held.
func (l *lease) end(epoch uint64) {
	l.newest, l.over, l.until, l.draining = epoch, true, 0, false
	close(l.stop)
	l.stop = make(chan struct{})
	l.touch()
}

// demote ends an epoch for good. Running requests may take until grace has passed;
// when it returns nil, none is left.
func (l *lease) demote(ctx context.Context, epoch uint64, grace time.Duration) error {
	l.mu.Lock()
	if epoch < l.newest {
		defer l.mu.Unlock()
		return l.fenced(epoch)
	}
	if grace > 0 && epoch == l.newest && !l.over {
		l.draining = true
		l.touch()
		l.mu.Unlock()
		graceful, cancel := context.WithTimeout(ctx, grace)
		_ = l.idle(graceful, nil) // what is left is ended below
		cancel()
		l.mu.Lock()
	}
	if epoch >= l.newest { // a newer one may have begun
		l.end(epoch)
	}
	l.mu.Unlock()
	return l.idle(ctx, nil)
}

// drain takes no more requests and waits until none is left. If ctx ends first,
// requests are taken again.
func (l *lease) drain(ctx context.Context, progress func(working int) error) error {
	l.mu.Lock()
	l.draining = true
	l.touch()
	l.mu.Unlock()
	err := l.idle(ctx, progress)
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.draining = false
		l.touch()
	}
	return err
}

// idle waits until no request is under way. progress may be nil.
func (l *lease) idle(ctx context.Context, progress func(working int) error) error {
	for {
		l.mu.Lock()
		working, changed := l.working, l.changed
		l.mu.Unlock()
		if working == 0 {
			return nil
		}
		if progress != nil {
			if err := progress(working); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// enter begins a request; leave is to be called when it was answered. stop is
// closed when it must end at once.
func (l *lease) enter(now clock.Instant, f Faults) (stop <-chan struct{}, leave func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := l.may(now, f); err != nil {
		return nil, nil, err
	}
	if f.NoLeaseCheck {
		return nil, func() {}, nil // and Demote does not wait for it
	}
	if l.draining {
		return nil, nil, errDraining
	}
	if l.working >= maxRequests {
		return nil, nil, errBusy
	}
	l.working++
	l.touch()
	return l.stop, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.working--
		l.touch()
	}, nil
}

// valid returns the epoch under which the server may act at now.
func (l *lease) valid(now clock.Instant, f Faults) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.may(now, f)
}

func (l *lease) may(now clock.Instant, f Faults) (uint64, error) {
	if f.NoLeaseCheck && l.served != 0 {
		return l.served, nil
	}
	if f.Uncounted && l.until != 0 {
		return l.newest, nil
	}
	if now >= l.until { // 0 if it was demoted
		return 0, errNotPrimary
	}
	return l.newest, nil
}

// standing is the lease's part of a status.
type standing struct {
	epoch             uint64
	primary, draining bool
	working           int
	// changed is closed when any of it changes, but for the end of the lease.
	changed <-chan struct{}
}

func (l *lease) standing(now clock.Instant) standing {
	l.mu.Lock()
	defer l.mu.Unlock()
	return standing{epoch: l.newest, primary: now < l.until, draining: l.draining, working: l.working, changed: l.changed}
}
