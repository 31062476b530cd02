// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// newGroup is a group that never had a holder.
func newGroup(name string) *pb.Group {
	return &pb.Group{Name: name, Phase: vacant, Policy: withDefaults(&pb.GroupPolicy{MaxFailovers: defaultMaxFailovers})}
}

// withDefaults fills the times of a policy that are 0. It changes p.
func withDefaults(p *pb.GroupPolicy) *pb.GroupPolicy {
	if p.GetCalmMs() == 0 {
		p.CalmMs = defaultCalmMillis
	}
	if p.GetDrainMs() == 0 {
		p.DrainMs = defaultDrainMillis
	}
	if p.GetPromoteTimeoutMs() == 0 {
		p.PromoteTimeoutMs = defaultPromoteMillis
	}
	return p
}

// checkNewGroup refuses one group too many.
func (s *state) checkNewGroup() *pb.Result {
	if n := s.counts.tables[tableGroups]; n >= hastate.MaxGroups {
		return overLimit("groups", hastate.MaxGroups, uint64(n)+1)
	}
	return nil
}

func (s *state) configureGroup(e env, c *pb.ConfigureGroup) *pb.Result {
	if bad := firstBad(checkGroup(c.GetGroup()), checkPolicy(c.GetPolicy())); bad != nil {
		return bad
	}
	if c.GetClearDesiredModel() && c.GetDesiredModel() != nil {
		return invalid("desired_model and clear_desired_model exclude each other")
	}
	desired, bad := s.desiredModel(c.GetDesiredModel())
	if bad != nil {
		return bad
	}
	cur := s.group(c.GetGroup())
	n := newGroup(c.GetGroup())
	if cur != nil {
		n = clone(cur)
	} else if bad := s.checkNewGroup(); bad != nil {
		return bad
	}
	if c.GetPolicy() != nil {
		n.Policy = withDefaults(clone(c.GetPolicy()))
		if cur == nil && n.GetPolicy().GetMaxFailovers() == 0 {
			// Who makes a group and says nothing of it does not mean: off.
			n.Policy.MaxFailovers = defaultMaxFailovers
		}
	}
	switch {
	case desired != nil:
		n.DesiredModel = desired
	case c.GetClearDesiredModel():
		n.DesiredModel = nil
	}
	if cur != nil && proto.Equal(n, cur) {
		return ok()
	}
	s.storeGroup(e, n, nil)
	return ok()
}

// desiredModel completes a reference with the digest from the registry.
func (s *state) desiredModel(ref *pb.ModelRef) (*pb.ModelRef, *pb.Result) {
	if ref == nil {
		return nil, nil
	}
	if bad := checkModelRef(ref); bad != nil {
		return nil, bad
	}
	ref = clone(ref)
	if ref.GetDigest() == "" {
		m := s.model(ref.GetName(), ref.GetVersion())
		if m == nil {
			return nil, notFound("model %q version %q is not registered: register it, or give its digest", ref.GetName(), ref.GetVersion())
		}
		ref.Digest = m.GetRef().GetDigest()
	}
	return ref, checkDigest(ref.GetDigest())
}

func (s *state) pauseGroup(e env, c *pb.PauseGroup) *pb.Result {
	if bad := firstBad(checkGroup(c.GetGroup()), checkReason(c.GetReason())); bad != nil {
		return bad
	}
	g := s.group(c.GetGroup())
	switch {
	case g == nil:
		return noGroup(c.GetGroup())
	case g.GetPaused() && g.GetPauseReason() == c.GetReason():
		return ok()
	}
	n := clone(g)
	n.Paused, n.PauseReason = true, c.GetReason()
	s.storeGroup(e, n, nil)
	return ok()
}

// resumeGroup ends a pause and acknowledges an anti-flap hold.
func (s *state) resumeGroup(e env, c *pb.ResumeGroup) *pb.Result {
	if bad := checkGroup(c.GetGroup()); bad != nil {
		return bad
	}
	g := s.group(c.GetGroup())
	switch {
	case g == nil:
		return noGroup(c.GetGroup())
	case !g.GetPaused() && !g.GetHeld() && g.GetFailoversSinceCalm() == 0:
		return ok()
	}
	n := clone(g)
	n.Paused, n.PauseReason, n.Held, n.FailoversSinceCalm = false, "", false, 0
	s.storeGroup(e, n, nil)
	return ok()
}

// calm resets the count of failovers. A hold stays until it is acknowledged.
func (s *state) calm(e env, c *pb.Calm) *pb.Result {
	if bad := checkGroup(c.GetGroup()); bad != nil {
		return bad
	}
	g := s.group(c.GetGroup())
	switch {
	case g == nil:
		return noGroup(c.GetGroup())
	case g.GetEpoch() != c.GetIfEpoch():
		return groupConflict(g, "the group has another epoch")
	case g.GetFailoversSinceCalm() == 0:
		return ok()
	}
	n := clone(g)
	n.FailoversSinceCalm = 0
	s.storeGroup(e, n, nil)
	return ok()
}
