// SPDX-License-Identifier: Apache-2.0

package coordinate

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// order is a switchover or failover that is under way. It runs in a goroutine of
// the coordinator: once it has begun to take primaryship away it is brought to an
// end, whether its caller still waits or not.
type order struct {
	what   string
	group  string
	cancel context.CancelFunc
	// stage is 0 while nothing was changed, then committed or abandoned; whichever
	// comes first stays.
	stage atomic.Int32
}

const (
	stageCommitted = 1
	stageAbandoned = 2
)

// commit says that from now on the order must be brought to an end; it reports
// false if its caller has gone already.
func (o *order) commit() bool { return o.stage.CompareAndSwap(0, stageCommitted) }

// carryOut runs one order of a group, and no other beside it.
func (c *Coordinator) carryOut(ctx context.Context, group, what string, fn func(context.Context, *order, *pb.Group) (*pb.Transition, error)) (*pb.Transition, error) {
	type result struct {
		t   *pb.Transition
		err error
	}
	done := make(chan result, 1)
	var r result
	o, err := c.begin(group, what, func(ctx context.Context, o *order) {
		g, ok := c.cfg.State.Group(group)
		if !ok {
			r.err = fmt.Errorf("%w: group %q", hastate.ErrNotFound, group)
			return
		}
		if r.t, r.err = fn(ctx, o, g); r.err != nil && c.over() {
			r.err = c.lost(o, r.err)
		}
	}, func() { done <- r })
	if err != nil {
		return nil, err
	}
	select {
	case end := <-done:
		return end.t, end.err
	case <-ctx.Done():
	}
	if o.stage.CompareAndSwap(0, stageAbandoned) {
		o.cancel()
		if end := <-done; end.err == nil {
			return end.t, nil
		}
		return nil, fmt.Errorf("%s of group %q: nothing was changed: %w", what, group, ctx.Err())
	}
	select {
	case end := <-done:
		return end.t, end.err
	default:
		return nil, &hastate.OutcomeUnknownError{Reason: fmt.Sprintf("the %s of group %q goes on, but its caller stopped waiting (%v)", what, group, ctx.Err())}
	}
}

// begin registers an order and runs fn aside, after an attempt that is under way
// for the group was told to end and has ended. ended is called when the next order
// may begin.
func (c *Coordinator) begin(group, what string, fn func(context.Context, *order), ended func()) (*order, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx == nil {
		return nil, &hastate.NotLeaderError{}
	}
	if _, ok := c.cfg.State.Group(group); !ok {
		return nil, fmt.Errorf("%w: group %q", hastate.ErrNotFound, group)
	}
	s := c.standing(group)
	if s.order != nil {
		return nil, fmt.Errorf("%w: a %s of group %q is under way: wait until it ends", hastate.ErrPrecondition, s.order.what, group)
	}
	ctx, cancel := context.WithCancel(c.ctx)
	o := &order{what: what, group: group, cancel: cancel}
	s.order = o
	busy := s.busy
	if s.cancel != nil {
		s.cancel()
	}
	c.wg.Go(func() {
		defer cancel()
		if busy != nil {
			<-busy
		}
		fn(ctx, o)
		c.mu.Lock()
		s.order, s.tries, s.nextTry = nil, 0, 0
		c.mu.Unlock()
		ended()
		c.wake()
	})
	return o, nil
}

// kindWord is a kind of transition for the log.
func kindWord(k pb.TransitionKind) string {
	return strings.ToLower(strings.TrimPrefix(k.String(), "TRANSITION_KIND_"))
}

// over reports whether this node leads no more, as far as it was told.
func (c *Coordinator) over() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ctx == nil || c.ctx.Err() != nil
}

// lost is the error of an order during which leadership moved.
func (c *Coordinator) lost(o *order, err error) error {
	if o.stage.Load() != stageCommitted {
		return &hastate.NotLeaderError{}
	}
	return &hastate.OutcomeUnknownError{Reason: fmt.Sprintf("leadership moved during the %s of group %q (%v): the new leader finds a primary", o.what, o.group, err)}
}

// errNotServed: the new holder gave up before it served, or lost its lease.
var errNotServed = errors.New("it did not get to serve")

// awaitServing waits until epoch serves and returns its transition. The limit is
// for a holder that neither serves nor gives up.
func (c *Coordinator) awaitServing(ctx context.Context, g *pb.Group, epoch uint64) (*pb.Transition, error) {
	ctx, cancel := context.WithTimeout(ctx, promoteTimeout(g)+3*c.cfg.Profile.Lease)
	defer cancel()
	for {
		changed := c.cfg.State.Changed()
		now, _ := c.cfg.State.Group(g.GetName())
		switch {
		case now.GetEpoch() < epoch: // not applied here yet
		case now.GetEpoch() > epoch:
			return nil, fmt.Errorf("%w: epoch %d was granted to %s meanwhile", errNotServed, now.GetEpoch(), now.GetHolder())
		case now.GetPhase() == pb.GroupPhase_GROUP_PHASE_SERVING:
			return c.transition(now), nil
		case now.GetPhase() == pb.GroupPhase_GROUP_PHASE_VACANT:
			return nil, fmt.Errorf("%w: %s", errNotServed, now.GetReleaseReason())
		default:
			// Its holder may have stopped: then the lease runs out without a word.
			if _, left := c.decide(now, 0, 0); left == 0 {
				return nil, fmt.Errorf("%w: its lease ran out", errNotServed)
			}
		}
		if err := waitFor(ctx, changed, c.cfg.Profile.Renew); err != nil {
			return nil, fmt.Errorf("wait until epoch %d serves: %w", epoch, err)
		}
	}
}

// transition is the history's record of the group's epoch.
func (c *Coordinator) transition(g *pb.Group) *pb.Transition {
	for _, t := range c.cfg.State.History(g.GetName(), 10) {
		if t.GetEpoch() == g.GetEpoch() {
			return t
		}
	}
	return &pb.Transition{Group: g.GetName(), To: g.GetHolder(), Epoch: g.GetEpoch(), Outcome: pb.TransitionOutcome_TRANSITION_OUTCOME_SERVING}
}

// settle elects until somebody serves. It gives up after as many grants as there
// are instances, and one; errors between grants are tried again for a while.
func (c *Coordinator) settle(ctx context.Context, group string, ch choice) (*pb.Transition, error) {
	grants := 1 + len(c.cfg.State.Instances(group))
	ctx, cancel := context.WithTimeout(ctx, c.patience(group))
	defer cancel()
	for tries := 0; ; tries++ {
		g, ok := c.cfg.State.Group(group)
		if !ok {
			return nil, fmt.Errorf("%w: group %q", hastate.ErrNotFound, group)
		}
		epoch, err := c.elect(ctx, g, ch)
		if err == nil {
			var t *pb.Transition
			if t, err = c.awaitServing(ctx, g, epoch); err == nil {
				return t, nil
			}
			if grants--; grants == 0 {
				return nil, err
			}
		}
		if !pause(ctx, retryAfter(tries)) {
			return nil, err
		}
	}
}

// patience is how long settle goes on trying.
func (c *Coordinator) patience(group string) time.Duration {
	g, _ := c.cfg.State.Group(group)
	return 2*promoteTimeout(g) + 4*max(c.cfg.Profile.Lease, time.Duration(g.GetTtlMs())*time.Millisecond)
}

// whereNow says who is primary, for errors.
func (c *Coordinator) whereNow(group string) string {
	g, _ := c.cfg.State.Group(group)
	switch g.GetPhase() {
	case pb.GroupPhase_GROUP_PHASE_SERVING:
		return fmt.Sprintf("%s is primary under epoch %d", g.GetHolder(), g.GetEpoch())
	case pb.GroupPhase_GROUP_PHASE_GRANTED:
		return fmt.Sprintf("%s is being promoted under epoch %d", g.GetHolder(), g.GetEpoch())
	}
	return "nobody is primary now, the leader keeps trying"
}

func groupName(name string) string {
	if name == "" {
		return hastate.DefaultGroup
	}
	return name
}
