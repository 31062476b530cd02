// SPDX-License-Identifier: Apache-2.0

package coordinate

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/election"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Failover takes primaryship from the holder, whatever its health, and returns
// when another instance serves. The holder's lease is not renewed any more; if it
// does not give up by itself the lease is waited out.
func (c *Coordinator) Failover(ctx context.Context, req *pb.FailoverRequest) (*pb.Transition, error) {
	return c.carryOut(ctx, groupName(req.GetGroup()), "failover", func(ctx context.Context, o *order, g *pb.Group) (*pb.Transition, error) {
		return c.failover(ctx, o, g, req)
	})
}

func (c *Coordinator) failover(ctx context.Context, o *order, g *pb.Group, req *pb.FailoverRequest) (*pb.Transition, error) {
	name := g.GetName()
	ch, err := c.replacement(ctx, g, req)
	if err != nil {
		return nil, err
	}
	if !o.commit() {
		return nil, context.Canceled
	}
	var fencing sync.WaitGroup
	defer fencing.Wait()
	fenceCtx, cancel := context.WithTimeout(ctx, c.cfg.Profile.Lease+time.Second)
	defer cancel()
	if g.GetPhase() != pb.GroupPhase_GROUP_PHASE_VACANT {
		if err := c.revoke(ctx, g, ch.reason); err != nil {
			return nil, err
		}
		fencing.Go(func() {
			// Best effort: it makes the holder release sooner.
			r, err := c.cfg.Peers.Fence(fenceCtx, g.GetHolder(), &pb.FenceRequest{Group: name, Epoch: g.GetEpoch(), Reason: ch.reason})
			if err != nil || !r.GetFenced() {
				c.log.Info("the holder did not give up, its lease runs out", "group", name, "holder", g.GetHolder(), "why", r.GetReason(), "error", err)
			}
		})
	}
	t, err := c.settle(ctx, name, ch)
	if err == nil {
		return t, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, fmt.Errorf("%w: failover of group %q: the former primary's lease was ended, but no other could take over: %w; %s", hastate.ErrPrecondition, name, err, c.whereNow(name))
}

// replacement checks that somebody can take over, before anything is changed.
func (c *Coordinator) replacement(ctx context.Context, g *pb.Group, req *pb.FailoverRequest) (choice, error) {
	name, holder := g.GetName(), election.LastHolder(g)
	if err := c.checkTarget(name, req.GetTo()); err != nil {
		return choice{}, err
	}
	ch := choice{
		want: election.WantForced, only: req.GetTo(), never: holder, force: req.GetForce(), patient: true,
		reason: "operator: failover", by: byOperator, since: c.cfg.Clock.Now(),
	}
	if req.GetReason() != "" {
		ch.reason = cut("operator: " + req.GetReason())
	}
	alone := !slices.ContainsFunc(c.cfg.State.Instances(name), func(i *pb.Instance) bool { return i.GetNodeId() != holder })
	vacant := g.GetPhase() == pb.GroupPhase_GROUP_PHASE_VACANT
	switch {
	case g.GetHeld() && !req.GetForce():
		return ch, fmt.Errorf("%w: group %q is held after repeated failovers: look why, then resume it, or use force", hastate.ErrPrecondition, name)
	case vacant, alone && req.GetForce():
		ch.never = "" // whoever held it has nothing to be taken from, or there is nobody else
	case holder == req.GetTo():
		return ch, fmt.Errorf("%w: %s is the primary of group %q already: name another node", hastate.ErrPrecondition, holder, name)
	}
	ranked, refusals := c.rank(g, c.canvass(ctx, name), ch)
	if !req.GetForce() {
		ranked = slices.DeleteFunc(ranked, func(cand election.Candidate) bool {
			cold := cand.State != pb.InstanceState_INSTANCE_STATE_READY
			if cold {
				refusals = append(refusals, election.Refusal{NodeID: cand.NodeID, Reason: "it is not READY"})
			}
			return cold
		})
	}
	if len(ranked) == 0 {
		advice := "force also takes one that is WARM or LIVE"
		if req.GetForce() {
			advice = "bring one up first"
		}
		return ch, fmt.Errorf("%w: no instance can take over group %q, nothing was changed (%s): %w", hastate.ErrPrecondition, name, advice, &noneError{refusals: refusals})
	}
	return ch, nil
}

// revoke ends the renewals of the group's epoch.
func (c *Coordinator) revoke(ctx context.Context, g *pb.Group, reason string) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Profile.Lease)
	defer cancel()
	res, err := c.cfg.Proposer.Propose(ctx, &pb.Command{Op: &pb.Command_Revoke{Revoke: &pb.Revoke{
		Group: g.GetName(), IfEpoch: g.GetEpoch(), Reason: reason,
	}}})
	if err == nil {
		err = hastate.FromResult(res, g.GetName(), g.GetEpoch())
	}
	if now, _ := c.cfg.State.Group(g.GetName()); err != nil && now.GetEpoch() == g.GetEpoch() && now.GetPhase() == pb.GroupPhase_GROUP_PHASE_VACANT {
		return nil // the holder was faster
	}
	if err != nil {
		return fmt.Errorf("failover of group %q: revoke epoch %d of %s: %w; %s", g.GetName(), g.GetEpoch(), g.GetHolder(), err, c.whereNow(g.GetName()))
	}
	return nil
}
