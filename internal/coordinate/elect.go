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
	"unicode"

	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/election"
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// errMoved: the group's record is not the one that was looked at any more.
var errMoved = errors.New("the group has changed meanwhile")

// noneError: nobody can or wants to be primary.
type noneError struct{ refusals []election.Refusal }

func (e *noneError) Error() string {
	if len(e.refusals) == 0 {
		return "no node with an instance in the group answers"
	}
	var parts []string
	for _, r := range e.refusals {
		parts = append(parts, r.NodeID+": "+r.Reason)
	}
	return strings.Join(parts, "; ")
}

// choice says how a primary is looked for.
type choice struct {
	want election.Want
	// only restricts the choice to one node, never leaves one out, first puts
	// one first if it is READY; empty: none.
	only, never, first string
	// force also takes what is not hot.
	force bool
	// regrant: a grant to first gives back what it had before the order.
	regrant bool
	// patient waits for a lease however long it runs.
	patient bool
	// reason and by are for the history; empty: what Decide says, and who noticed.
	reason, by string
	since      clock.Instant
}

// lookFor is the attempt to find a primary for a group without an operator.
func (c *Coordinator) lookFor(ctx context.Context, g *pb.Group, since clock.Instant) error {
	_, err := c.elect(ctx, g, choice{since: since})
	return err
}

// elect grants the group, whose record is g, to the best candidate as soon as
// that is allowed, and returns the new epoch. errMoved if the lease was
// renewed or somebody else granted it.
func (c *Coordinator) elect(ctx context.Context, g *pb.Group, ch choice) (uint64, error) {
	// The answers are asked for while the lease runs out; consent is not: what it
	// gives is counted from the answer.
	candidates := c.canvass(ctx, g.GetName())
	g, d, err := c.awaitLease(ctx, g, ch)
	if err != nil {
		return 0, err
	}
	decided := c.cfg.Clock.Now()
	if d.OnlyLastHolder {
		ch.only = election.LastHolder(g)
	}
	ranked, refusals := c.rank(g, candidates, ch)
	for _, cand := range ranked {
		number, err := c.nominate(ctx, g, cand, ch.force, cand.State != pb.InstanceState_INSTANCE_STATE_READY)
		if err != nil {
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			refusals = append(refusals, election.Refusal{NodeID: cand.NodeID, Reason: err.Error()})
			continue
		}
		return c.grant(ctx, g, ch, d, cand.NodeID, number, decided)
	}
	if d.OnlyLastHolder {
		return 0, fmt.Errorf("%s: %w", onlyLast(g), &noneError{refusals: refusals})
	}
	return 0, &noneError{refusals: refusals}
}

// onlyLast says why nobody but the last holder may have a group, and what to do.
func onlyLast(g *pb.Group) string {
	why := "automatic failover is paused"
	if g.GetHeld() {
		why = "the group is held after repeated failovers: look why"
	}
	return fmt.Sprintf("%s, so that only %s may have it again: resume the group, or use failover with force", why, election.LastHolder(g))
}

// awaitLease waits until the group may be granted and returns it as it is then.
func (c *Coordinator) awaitLease(ctx context.Context, was *pb.Group, ch choice) (*pb.Group, election.Decision, error) {
	for {
		changed := c.cfg.State.Changed()
		g, ok := c.cfg.State.Group(was.GetName())
		if !ok || g.GetEpoch() != was.GetEpoch() {
			return nil, election.Decision{}, errMoved
		}
		if g.GetLastRenew() != was.GetLastRenew() && !ch.patient {
			return nil, election.Decision{}, errMoved
		}
		d, left := c.decide(g, 0, ch.want)
		switch {
		case d.Do == election.Elect:
			return g, d, nil
		case left == 0:
			return nil, d, fmt.Errorf("%w: %s", errMoved, d.Reason)
		}
		if err := waitFor(ctx, changed, left); err != nil {
			return nil, d, err
		}
	}
}

// grant proposes the Grant of g, whose candidate has consented, and tells it.
func (c *Coordinator) grant(ctx context.Context, g *pb.Group, ch choice, d election.Decision, to string, number uint64, decided clock.Instant) (uint64, error) {
	reason, by, kind := ch.reason, ch.by, election.KindOf(g, to, ch.want)
	if reason == "" {
		reason = d.Reason
	}
	since, detect := ch.since, time.Duration(0)
	if g.GetPhase() != pb.GroupPhase_GROUP_PHASE_VACANT {
		since, detect = decided, decided.Sub(c.cfg.StoredAt(g.GetLastRenew()))
	}
	if by == "" {
		by = c.cfg.NodeID
		if g.GetPhase() == pb.GroupPhase_GROUP_PHASE_VACANT && g.GetLastHolder() != "" {
			by = g.GetLastHolder()
		}
	}
	if ch.regrant {
		kind = pb.TransitionKind_TRANSITION_KIND_FAILOVER
		if to == ch.first {
			kind = pb.TransitionKind_TRANSITION_KIND_REGRANT
		}
	}
	now := c.cfg.Clock.Now()
	if since == 0 {
		since = decided
	}
	cmd := &pb.Grant{
		Group: g.GetName(), Holder: to, TtlMs: c.ttlMS(g), IfEpoch: g.GetEpoch(), IfLastRenew: g.GetLastRenew(),
		Nomination: number, Kind: kind, Reason: cut(reason), DetectedBy: by,
		DetectMs: clock.Millis(detect), GrantMs: clock.Millis(now.Sub(since)),
	}
	epoch, err := c.propose(ctx, g, number, &pb.Command{Op: &pb.Command_Grant{Grant: cmd}})
	if err != nil {
		return 0, err
	}
	c.log.Info("granted", "group", g.GetName(), "to", to, "epoch", epoch, "kind", kindWord(kind), "reason", reason)
	c.tell(ctx, g, to, number, epoch)
	return epoch, nil
}

// propose brings a Grant or Handover of g to the log and returns the new epoch;
// errMoved if the compare-and-set found another record. If the outcome is unknown
// it looks for a while whether the grant with that nomination shows up.
func (c *Coordinator) propose(ctx context.Context, g *pb.Group, number uint64, cmd *pb.Command) (uint64, error) {
	// Later than this the candidate's lease would be over before it began.
	limited, cancel := context.WithTimeout(ctx, time.Duration(c.ttlMS(g))*time.Millisecond)
	defer cancel()
	res, err := c.cfg.Proposer.Propose(limited, cmd)
	if err == nil {
		switch res.GetCode() {
		case pb.ResultCode_RESULT_CODE_OK:
			if epoch := res.GetEpoch(); epoch != 0 {
				return epoch, nil
			}
			return res.GetIndex(), nil
		case pb.ResultCode_RESULT_CODE_CONFLICT, pb.ResultCode_RESULT_CODE_FENCED:
			return 0, fmt.Errorf("%w: %s", errMoved, res.GetMessage())
		}
		return 0, hastate.FromResult(res, g.GetName(), g.GetEpoch())
	}
	err = fmt.Errorf("propose for group %q: %w", g.GetName(), err)
	limited, cancel = context.WithTimeout(ctx, c.cfg.Profile.Heartbeat)
	defer cancel()
	for {
		changed := c.cfg.State.Changed()
		if now, _ := c.cfg.State.Group(g.GetName()); now.GetEpoch() > g.GetEpoch() {
			if now.GetNomination() != number {
				return 0, fmt.Errorf("%w: epoch %d was granted to %s", errMoved, now.GetEpoch(), now.GetHolder())
			}
			return now.GetEpoch(), nil
		}
		if waitFor(limited, changed, maxSleep) != nil {
			return 0, err
		}
	}
}

// tell brings the committed grant to its holder sooner than its log does.
func (c *Coordinator) tell(ctx context.Context, was *pb.Group, to string, number, epoch uint64) {
	g, ok := c.cfg.State.Group(was.GetName())
	if !ok || g.GetEpoch() != epoch {
		g = proto.Clone(was).(*pb.Group)
		g.Phase, g.Holder, g.Epoch, g.LastRenew = pb.GroupPhase_GROUP_PHASE_GRANTED, to, epoch, epoch
		g.TtlMs, g.Nomination, g.Revoked = c.ttlMS(was), number, false
	}
	err := c.call(ctx, c.cfg.Profile.Heartbeat, func(ctx context.Context) error {
		_, err := c.cfg.Peers.Granted(ctx, to, &pb.GrantedRequest{Group: g})
		return err
	})
	if err != nil {
		c.log.Debug("the new holder was not told of its grant, it finds it in its log", "group", g.GetName(), "holder", to, "error", err)
	}
}

// canvass asks all nodes with an instance in the group how it stands. Those that
// do not answer in time are left out.
func (c *Coordinator) canvass(ctx context.Context, group string) []election.Candidate {
	var (
		wg  sync.WaitGroup
		mu  sync.Mutex // guards out
		out []election.Candidate
	)
	for _, i := range c.cfg.State.Instances(group) {
		node := i.GetNodeId()
		wg.Go(func() {
			if cand, ok := c.canvassOne(ctx, group, node); ok {
				mu.Lock()
				defer mu.Unlock()
				out = append(out, cand)
			}
		})
	}
	wg.Wait()
	return out
}

func (c *Coordinator) canvassOne(ctx context.Context, group, node string) (election.Candidate, bool) {
	var r *pb.CanvassResponse
	err := c.call(ctx, c.lead(), func(ctx context.Context) (err error) {
		r, err = c.cfg.Peers.Canvass(ctx, node, &pb.CanvassRequest{Group: group})
		return err
	})
	if err != nil || !r.GetPresent() {
		return election.Candidate{}, false
	}
	return election.Candidate{
		NodeID: node, State: r.GetState(), ModelDigest: r.GetModelDigest(), AppliedIndex: r.GetAppliedIndex(),
		Load: r.GetLoad(), Tags: r.GetTags(), Unwilling: r.GetUnwilling(), Reason: r.GetReason(),
	}, true
}

// rank orders the candidates that the choice allows.
func (c *Coordinator) rank(g *pb.Group, candidates []election.Candidate, ch choice) ([]election.Candidate, []election.Refusal) {
	applied, _ := c.cfg.State.Applied()
	policy := g.GetPolicy()
	candidates = slices.DeleteFunc(slices.Clone(candidates), func(cand election.Candidate) bool {
		return ch.never != "" && cand.NodeID == ch.never
	})
	ranked, refusals := election.Rank(candidates, election.Preference{
		DesiredDigest: g.GetDesiredModel().GetDigest(), NewestIndex: applied, MaxLag: policy.GetMaxLag(),
		Zone: policy.GetPreferredZone(), Only: ch.only, Force: ch.force,
	})
	i := slices.IndexFunc(ranked, func(cand election.Candidate) bool {
		return cand.NodeID == ch.first && cand.State == pb.InstanceState_INSTANCE_STATE_READY
	})
	if i > 0 {
		first := ranked[i]
		ranked = slices.Insert(slices.Delete(ranked, i, i+1), 0, first)
	}
	return ranked, refusals
}

// number is that of a new nomination. None is given out twice, or a late consent
// or grant of an earlier nomination would be taken for that of a later one: a term
// has one leader, and all coordinators of that node count on with one counter; one
// of them may follow another in the same term. A node that was started anew counts
// from 0, but it leads in a new term: Raft keeps the term on disk and raises it
// before it stands for election. (2^32 nominations do not fit into a term.)
func (c *Coordinator) number() uint64 {
	return c.cfg.Term<<32 | uint64(c.cfg.Nominations.Add(1))
}

// nominate asks a candidate for its consent and returns the nomination's number.
func (c *Coordinator) nominate(ctx context.Context, g *pb.Group, cand election.Candidate, force, prepare bool) (uint64, error) {
	req := &pb.NominateRequest{
		Group: g.GetName(), Nomination: c.number(), TtlMs: c.ttlMS(g), Epoch: g.GetEpoch(),
		Force: force, Prepare: prepare,
	}
	var r *pb.NominateResponse
	ask := func(ctx context.Context) (err error) {
		r, err = c.cfg.Peers.Nominate(ctx, cand.NodeID, req)
		return err
	}
	var err error
	if prepare {
		// It may take its time, so it does not count as one of the short calls.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, promoteTimeout(g))
		defer cancel()
		err = ask(ctx)
	} else {
		err = c.call(ctx, c.cfg.Profile.Heartbeat, ask)
	}
	switch {
	case err != nil:
		return 0, fmt.Errorf("it does not answer the nomination: %w", err)
	case !r.GetConsent():
		return 0, fmt.Errorf("it refuses: %s", r.GetReason())
	}
	return req.GetNomination(), nil
}

// call makes one short call to a peer.
func (c *Coordinator) call(ctx context.Context, timeout time.Duration, fn func(context.Context) error) error {
	select {
	case c.calls <- struct{}{}:
		defer func() { <-c.calls }()
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return fn(ctx)
}

func (c *Coordinator) ttlMS(g *pb.Group) uint32 {
	if ms := g.GetPolicy().GetTtlMs(); ms != 0 {
		return ms
	}
	return uint32(c.cfg.Profile.Lease.Milliseconds())
}

func promoteTimeout(g *pb.Group) time.Duration {
	if ms := g.GetPolicy().GetPromoteTimeoutMs(); ms != 0 {
		return time.Duration(ms) * time.Millisecond
	}
	return DefaultPromoteTimeout
}

// waitFor waits for a change, at most so long.
func waitFor(ctx context.Context, changed <-chan struct{}, limit time.Duration) error {
	t := time.NewTimer(max(min(limit, maxSleep), 0))
	defer t.Stop()
	select {
	case <-changed:
	case <-t.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// cut makes a text what the log takes: short, UTF-8, without control characters.
func cut(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	if len(s) > hastate.MaxTextBytes {
		s = s[:hastate.MaxTextBytes]
	}
	return strings.ToValidUTF8(s, "")
}
