// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const (
	vacant  = pb.GroupPhase_GROUP_PHASE_VACANT
	granted = pb.GroupPhase_GROUP_PHASE_GRANTED
	serving = pb.GroupPhase_GROUP_PHASE_SERVING

	outcomePending = pb.TransitionOutcome_TRANSITION_OUTCOME_PENDING
	outcomeServing = pb.TransitionOutcome_TRANSITION_OUTCOME_SERVING
	outcomeFailed  = pb.TransitionOutcome_TRANSITION_OUTCOME_FAILED
)

// groupConflict says what a compare-and-set on a group found.
func groupConflict(g *pb.Group, why string) *pb.Result {
	r := conflict("group/"+g.GetName(), g.GetRevision(), why)
	r.Epoch, r.Holder = g.GetEpoch(), g.GetHolder()
	return r
}

func noGroup(name string) *pb.Result { return notFound("group %q", name) }

// holds reports whether the node holds the group's lease under the epoch.
func holds(g *pb.Group, holder string, epoch uint64) bool {
	return g != nil && g.GetPhase() != vacant && g.GetEpoch() == epoch && g.GetHolder() == holder && holder != ""
}

// storeGroup writes a group that nobody else refers to, with the transition
// that goes with the change, which may be nil.
func (s *state) storeGroup(e env, g *pb.Group, t *pb.Transition) {
	g.Revision = s.next()
	s.put(tableGroups, g.GetName(), g)
	s.storeTransition(t)
	s.change(e, Event{Group: g, Transition: t})
}

func (s *state) storeTransition(t *pb.Transition) {
	if t == nil {
		return
	}
	s.put(tableHistory, numberKey(t.GetGroup(), t.GetNumber()), t)
	if t.GetNumber() > hastate.MaxHistory {
		s.del(tableHistory, numberKey(t.GetGroup(), t.GetNumber()-hastate.MaxHistory))
	}
}

// endPending ends the newest transition of a group if it has not ended. It
// returns nil if there is nothing to end.
func (s *state) endPending(e env, g *pb.Group, outcome pb.TransitionOutcome, detail string) *pb.Transition {
	t := s.transition(g.GetName(), g.GetTransitions())
	if t.GetOutcome() != outcomePending || t.GetEpoch() != g.GetEpoch() {
		return nil
	}
	t = clone(t)
	t.Outcome, t.EndedUnixMs, t.Detail = outcome, e.wall, detail
	return t
}

// grant makes a holder. The compare-and-set on epoch and last_renew is what
// lets a racing renewal win: the leader has decided on what it had seen.
func (s *state) grant(e env, c *pb.Grant) *pb.Result {
	if bad := firstBad(checkGroup(c.GetGroup()), checkNode(c.GetHolder()), checkLeaseTTL(c.GetTtlMs()), checkKind(c.GetKind()),
		checkReason(c.GetReason()), checkText("detected_by", c.GetDetectedBy(), hastate.MaxTextBytes)); bad != nil {
		return bad
	}
	g := s.group(c.GetGroup())
	switch {
	case g == nil:
		return noGroup(c.GetGroup())
	case g.GetEpoch() != c.GetIfEpoch():
		return groupConflict(g, "the group has another epoch")
	case g.GetLastRenew() != c.GetIfLastRenew():
		return groupConflict(g, "the lease was renewed")
	}
	t := &pb.Transition{
		Kind: c.GetKind(), Reason: c.GetReason(), DetectedBy: c.GetDetectedBy(),
		DetectMs: c.GetDetectMs(), GrantMs: c.GetGrantMs(),
	}
	if t.GetReason() == "" {
		t.Reason = g.GetReleaseReason()
	}
	if g.GetPhase() == vacant && t.GetDetectMs() == 0 {
		t.DetectMs = g.GetReleaseDetectMs()
	}
	if g.GetPhase() == vacant && t.GetDetectedBy() == "" {
		t.DetectedBy = g.GetLastHolder()
	}
	return s.startEpoch(e, g, t, c.GetHolder(), c.GetTtlMs(), c.GetNomination())
}

// handover is the fenced holder's own release and the grant to the target.
func (s *state) handover(e env, c *pb.Handover) *pb.Result {
	if bad := firstBad(checkGroup(c.GetGroup()), checkNode(c.GetTo()), checkLeaseTTL(c.GetTtlMs()), checkKind(c.GetKind()),
		checkReason(c.GetReason())); bad != nil {
		return bad
	}
	g := s.group(c.GetGroup())
	switch {
	case g == nil:
		return noGroup(c.GetGroup())
	case !holds(g, c.GetFrom(), c.GetIfEpoch()):
		return groupConflict(g, "the group has another holder or epoch")
	}
	t := &pb.Transition{Kind: c.GetKind(), Reason: c.GetReason(), DetectedBy: "operator", GrantMs: c.GetGrantMs()}
	return s.startEpoch(e, g, t, c.GetTo(), c.GetTtlMs(), c.GetNomination())
}

// startEpoch makes the holder of a new epoch, which is the entry's log index.
func (s *state) startEpoch(e env, g *pb.Group, t *pb.Transition, to string, ttlMs uint32, nomination uint64) *pb.Result {
	// Two grants of one group in one entry would be one epoch with two holders.
	if e.index <= g.GetEpoch() {
		return groupConflict(g, "the group was granted in this entry")
	}
	if failed := s.endPending(e, g, outcomeFailed, "lost before it served"); failed != nil {
		s.next()
		s.storeTransition(failed)
		s.change(e, Event{Group: g, Transition: failed})
	}
	n := clone(g)
	n.Phase, n.Holder, n.Epoch, n.LastRenew = granted, to, e.index, e.index
	n.TtlMs, n.Nomination, n.Revoked = ttlMs, nomination, false
	n.LastHolder, n.ReleaseReason, n.ReleasedUnixMs, n.ReleaseDetectMs = "", "", 0, 0
	n.Transitions++
	t.Group, t.Number, t.Outcome = n.GetName(), n.GetTransitions(), outcomePending
	t.From, t.To, t.EpochBefore, t.Epoch = g.GetHolder(), to, g.GetEpoch(), e.index
	if t.GetFrom() == "" {
		t.From = g.GetLastHolder()
	}
	t.GrantedUnixMs = e.wall
	switch t.GetKind() {
	case pb.TransitionKind_TRANSITION_KIND_FAILOVER, pb.TransitionKind_TRANSITION_KIND_FORCED:
		n.FailoversSinceCalm++
		if m := n.GetPolicy().GetMaxFailovers(); m > 0 && n.GetFailoversSinceCalm() >= m {
			n.Held = true
		}
	}
	s.storeGroup(e, n, t)
	res := ok()
	res.Epoch, res.Holder = e.index, to
	return res
}

// renew moves last_renew of each lease that the node still holds. It changes no
// revision.
func (s *state) renew(e env, c *pb.RenewBatch) *pb.Result {
	if bad := checkNode(c.GetHolder()); bad != nil {
		return bad
	}
	if n := len(c.GetItems()); n > hastate.MaxGroups {
		return overLimit("renewals of a batch", hastate.MaxGroups, uint64(n))
	}
	res := ok()
	for _, it := range c.GetItems() {
		g := s.group(it.GetGroup())
		if !holds(g, c.GetHolder(), it.GetEpoch()) || g.GetRevoked() {
			res.Refused = append(res.Refused, &pb.RenewRefusal{Group: it.GetGroup(), NewestEpoch: g.GetEpoch(), Holder: g.GetHolder()})
			continue
		}
		n := clone(g)
		n.LastRenew = e.index
		s.put(tableGroups, n.GetName(), n)
		s.renewed = true
	}
	return res
}

// release ends the holder's own lease.
func (s *state) release(e env, c *pb.Release) *pb.Result {
	if bad := firstBad(checkGroup(c.GetGroup()), checkNode(c.GetHolder()), checkReason(c.GetReason())); bad != nil {
		return bad
	}
	g := s.group(c.GetGroup())
	if g == nil {
		return noGroup(c.GetGroup())
	}
	if !holds(g, c.GetHolder(), c.GetEpoch()) {
		return fenced(g, "the lease is not the holder's any more")
	}
	detail := "released before it served: " + c.GetReason()
	if c.GetPromoteFailed() {
		detail = "promotion failed: " + c.GetReason()
	}
	t := s.endPending(e, g, outcomeFailed, detail)
	n := clone(g)
	n.Phase, n.Holder, n.LastHolder = vacant, "", g.GetHolder()
	n.Revoked, n.Nomination = false, 0
	n.ReleaseReason, n.ReleasedUnixMs, n.ReleaseDetectMs = c.GetReason(), e.wall, c.GetDetectMs()
	s.storeGroup(e, n, t)
	return ok()
}

// revoke lets the lease of an epoch run out.
func (s *state) revoke(e env, c *pb.Revoke) *pb.Result {
	if bad := firstBad(checkGroup(c.GetGroup()), checkReason(c.GetReason())); bad != nil {
		return bad
	}
	g := s.group(c.GetGroup())
	switch {
	case g == nil:
		return noGroup(c.GetGroup())
	case g.GetEpoch() != c.GetIfEpoch():
		return groupConflict(g, "the group has another epoch")
	case g.GetPhase() == vacant || g.GetRevoked():
		return ok() // Nobody can renew it.
	}
	n := clone(g)
	n.Revoked, n.ReleaseReason, n.ReleasedUnixMs = true, c.GetReason(), e.wall
	s.storeGroup(e, n, nil)
	return ok()
}

// serving says that the promotion succeeded.
func (s *state) serving(e env, c *pb.Serving) *pb.Result {
	if bad := firstBad(checkGroup(c.GetGroup()), checkNode(c.GetHolder()), checkModelText(c.GetModel())); bad != nil {
		return bad
	}
	g := s.group(c.GetGroup())
	switch {
	case g == nil:
		return noGroup(c.GetGroup())
	case !holds(g, c.GetHolder(), c.GetEpoch()):
		return fenced(g, "the lease is not the holder's any more")
	case g.GetPhase() == serving:
		return ok()
	}
	t := s.endPending(e, g, outcomeServing, "")
	if t != nil {
		// Not from the stamps: the wall clocks of two leaders may be hours apart.
		t.PromoteMs, t.ServeMs = c.GetPromoteMs(), c.GetServeMs()
	}
	n := clone(g)
	n.Phase = serving
	s.storeGroup(e, n, t)
	s.serves(e, c)
	return ok()
}

// serves notes the model that the promoted instance has answered with.
func (s *state) serves(e env, c *pb.Serving) {
	in := s.instance(c.GetGroup(), c.GetHolder())
	if in == nil || c.GetModel() == nil || sameModel(in.GetModel(), c.GetModel()) {
		return
	}
	in = clone(in)
	in.Model = c.GetModel()
	s.storeInstance(e, in)
}
