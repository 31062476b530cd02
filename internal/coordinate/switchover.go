// SPDX-License-Identifier: Apache-2.0

package coordinate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/election"
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// byOperator is who noticed, in the history of an ordered transition.
const byOperator = "operator"

// Switchover moves primaryship in a planned way and returns when the target
// serves. The target is warmed and verified before anything is taken from the
// holder. If the target cannot serve, the former primary gets it back, or else
// the best candidate, and the error says where primaryship is.
func (c *Coordinator) Switchover(ctx context.Context, req *pb.SwitchoverRequest) (*pb.Transition, error) {
	return c.carryOut(ctx, groupName(req.GetGroup()), "switchover", func(ctx context.Context, o *order, g *pb.Group) (*pb.Transition, error) {
		return c.switchover(ctx, o, g, req)
	})
}

func (c *Coordinator) switchover(ctx context.Context, o *order, g *pb.Group, req *pb.SwitchoverRequest) (*pb.Transition, error) {
	name, from := g.GetName(), g.GetHolder()
	if err := c.checkTarget(name, req.GetTo()); err != nil {
		return nil, err
	}
	switch {
	case g.GetPhase() != pb.GroupPhase_GROUP_PHASE_SERVING:
		return nil, fmt.Errorf("%w: group %q has no serving primary to switch from (%s): wait, or use failover", hastate.ErrPrecondition, name, c.whereNow(name))
	case req.GetTo() == from:
		return nil, fmt.Errorf("%w: %s is the primary of group %q already", hastate.ErrPrecondition, from, name)
	}
	ranked, err := c.warm(ctx, g, req.GetTo())
	if err != nil {
		return nil, err
	}
	target := ranked[0].NodeID
	reason := "operator: switchover"
	if req.GetReason() != "" {
		reason = "operator: " + req.GetReason()
	}
	begun := c.cfg.Clock.Now()
	if err := c.fence(ctx, o, g, reason); err != nil {
		return nil, err
	}
	epoch, to, err := c.handover(ctx, g, ranked, reason, func() uint64 {
		return clock.Millis(c.cfg.Clock.Now().Sub(begun))
	})
	if err == nil {
		var t *pb.Transition
		if t, err = c.awaitServing(ctx, g, epoch); err == nil && to == target {
			return t, nil
		}
	}
	if err == nil {
		return nil, fmt.Errorf("%w: switchover of group %q to %s was not done, it did not consent any more: %s", hastate.ErrPrecondition, name, target, c.whereNow(name))
	}
	// Never to nobody: back to the former primary, or to whoever can.
	_, again := c.settle(ctx, name, choice{
		want: election.WantForced, first: from, regrant: true, patient: true,
		reason: cut(fmt.Sprintf("switchover to %s failed: %v", target, err)), by: byOperator,
	})
	if again != nil && !errors.Is(again, errMoved) {
		c.log.Warn("no primary after a switchover that failed", "group", name, "why", again)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, fmt.Errorf("%w: switchover of group %q to %s failed: %w; %s", hastate.ErrPrecondition, name, target, err, c.whereNow(name))
}

// checkTarget refuses a node that an operator named and that has no instance.
func (c *Coordinator) checkTarget(group, to string) error {
	var ids []string
	for _, in := range c.cfg.State.Instances(group) {
		ids = append(ids, in.GetNodeId())
	}
	if to == "" || slices.Contains(ids, to) {
		return nil
	}
	return fmt.Errorf("%w: node %q has no instance of group %q: name one of %s", hastate.ErrNotFound, to, group, strings.Join(ids, ", "))
}

// warm finds the target, brings it to READY and verifies that it is. It returns
// it, and after it the others that could take its place.
func (c *Coordinator) warm(ctx context.Context, g *pb.Group, to string) ([]election.Candidate, error) {
	name, digest := g.GetName(), g.GetDesiredModel().GetDigest()
	candidates := c.canvass(ctx, name)
	// A target that was asked for may still have another model: it is told to load
	// the right one.
	ch := choice{only: to, never: g.GetHolder(), force: to != ""}
	ranked, refusals := c.rank(g, candidates, ch)
	for i, cand := range ranked {
		if cand.Unwilling {
			refusals = append(refusals, election.Refusal{NodeID: cand.NodeID, Reason: "it is stopping, or backs off after a failed promotion"})
			continue
		}
		hot := cand.State == pb.InstanceState_INSTANCE_STATE_READY && (digest == "" || cand.ModelDigest == digest)
		if _, err := c.nominate(ctx, g, cand, false, !hot); err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			refusals = append(refusals, election.Refusal{NodeID: cand.NodeID, Reason: err.Error()})
			continue
		}
		now, ok := c.canvassOne(ctx, name, cand.NodeID)
		switch {
		case !ok:
			refusals = append(refusals, election.Refusal{NodeID: cand.NodeID, Reason: "it does not answer any more"})
			continue
		case now.State != pb.InstanceState_INSTANCE_STATE_READY:
			refusals = append(refusals, election.Refusal{NodeID: cand.NodeID, Reason: "it cannot be brought to READY beforehand: wake it yourself, or use failover with force"})
			continue
		}
		fit, why := c.rank(g, []election.Candidate{now}, choice{only: to})
		if len(fit) == 0 {
			refusals = append(refusals, why...)
			continue
		}
		return append(fit, ranked[i+1:]...), nil
	}
	return nil, fmt.Errorf("%w: no instance can take over group %q, nothing was changed: %w", hastate.ErrPrecondition, name, &noneError{refusals: refusals})
}

// fence lets the holder give up its epoch. After a success it will not act again
// under it.
func (c *Coordinator) fence(ctx context.Context, o *order, g *pb.Group, reason string) error {
	drain := time.Duration(g.GetPolicy().GetDrainMs()) * time.Millisecond
	if drain == 0 {
		drain = DefaultDrain
	}
	if !o.commit() {
		return context.Canceled
	}
	limited, cancel := context.WithTimeout(ctx, drain+2*c.cfg.Profile.FenceMargin+2*time.Second)
	defer cancel()
	var watching sync.WaitGroup
	lapsed := false
	watching.Go(func() {
		// A holder that drains renews. One that hangs must not keep the group from
		// the next for as long as it may drain.
		if lapsed = c.lapses(limited, g); lapsed {
			cancel()
		}
	})
	r, err := c.cfg.Peers.Fence(limited, g.GetHolder(), &pb.FenceRequest{
		Group: g.GetName(), Epoch: g.GetEpoch(), DrainMs: uint32(drain.Milliseconds()), Reason: cut(reason),
	})
	cancel()
	watching.Wait()
	switch {
	case err != nil && lapsed:
		return fmt.Errorf("%w: %s did not give up group %q while its lease ran, and it has run out: this was no switchover, %s", hastate.ErrPrecondition, g.GetHolder(), g.GetName(), whatFollows(g))
	case err != nil:
		return &hastate.OutcomeUnknownError{Reason: fmt.Sprintf(
			"%s did not answer the request to give up group %q (%v): nothing was changed as far as is known, and if it did give up it releases the group itself; %s",
			g.GetHolder(), g.GetName(), err, c.whereNow(g.GetName()))}
	case !r.GetFenced():
		return fmt.Errorf("%w: %s did not give up group %q, nothing was changed: %s", hastate.ErrPrecondition, g.GetHolder(), g.GetName(), r.GetReason())
	}
	return nil
}

// whatFollows says what becomes of a group whose lease has run out.
func whatFollows(g *pb.Group) string {
	if g.GetPaused() || g.GetHeld() {
		return onlyLast(g)
	}
	return "another takes over"
}

// lapses waits until the lease of g has run out, and reports false if ctx ended or
// the epoch was over before.
func (c *Coordinator) lapses(ctx context.Context, g *pb.Group) bool {
	for {
		changed := c.cfg.State.Changed()
		now, _ := c.cfg.State.Group(g.GetName())
		if now.GetEpoch() != g.GetEpoch() || now.GetPhase() == pb.GroupPhase_GROUP_PHASE_VACANT {
			return false
		}
		_, left := c.decide(now, 0, election.WantNone)
		if left == 0 {
			return true
		}
		if err := waitFor(ctx, changed, left); err != nil {
			return false
		}
	}
}

// handover moves the group from its fenced holder to the first of: the target,
// the former primary, the others, that consents.
func (c *Coordinator) handover(ctx context.Context, g *pb.Group, ranked []election.Candidate, reason string, took func() uint64) (uint64, string, error) {
	order := append([]election.Candidate{ranked[0], {NodeID: g.GetHolder()}}, ranked[1:]...)
	var refusals []election.Refusal
	for i, cand := range order {
		number, err := c.nominate(ctx, g, cand, false, false)
		if err != nil {
			refusals = append(refusals, election.Refusal{NodeID: cand.NodeID, Reason: err.Error()})
			continue
		}
		kind, why := pb.TransitionKind_TRANSITION_KIND_SWITCHOVER, reason
		if i > 0 {
			why = fmt.Sprintf("switchover to %s was not done: %s", ranked[0].NodeID, refusals[0].Reason)
		}
		if i == 1 {
			kind = pb.TransitionKind_TRANSITION_KIND_REGRANT
		}
		epoch, err := c.propose(ctx, g, number, &pb.Command{Op: &pb.Command_Handover{Handover: &pb.Handover{
			Group: g.GetName(), From: g.GetHolder(), IfEpoch: g.GetEpoch(), To: cand.NodeID, TtlMs: c.ttlMS(g),
			Nomination: number, Kind: kind, Reason: cut(why), GrantMs: took(),
		}}})
		if err != nil {
			return 0, "", err
		}
		c.log.Info("handed over", "group", g.GetName(), "from", g.GetHolder(), "to", cand.NodeID, "epoch", epoch, "kind", kindWord(kind))
		c.tell(ctx, g, cand.NodeID, number, epoch)
		return epoch, cand.NodeID, nil
	}
	return 0, "", &noneError{refusals: refusals}
}
