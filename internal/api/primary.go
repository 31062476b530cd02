// SPDX-License-Identifier: Apache-2.0

package api

import (
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate/election"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// primaryOf is what a client needs to reach the primary of g. It is a function
// of the record, the instance beside the holder, and of when this node stored
// the newest renewal. Nobody is named whose lease has run out as far as this node
// knows; the phase stays that of the record, since the epoch may not be over: a
// renewal may only not have come here.
func (s *Services) primaryOf(g *pb.Group) *pb.Primary {
	p := &pb.Primary{Group: g.GetName(), Epoch: g.GetEpoch(), Phase: g.GetPhase()}
	if g.GetHolder() == "" || g.GetPhase() == pb.GroupPhase_GROUP_PHASE_VACANT {
		return p
	}
	if s.runOut(g) {
		return p
	}
	p.NodeId = g.GetHolder()
	p.ValidForMs = uint32(s.freshFor(g).Milliseconds())
	if inst := s.instance(g.GetName(), g.GetHolder()); inst != nil {
		p.Address, p.Model = inst.GetAddress(), inst.GetModel()
	}
	return p
}

// freshFor is how much of the lease is left by this node's reckoning. The holder
// counts from before it sent the renewal, this node from when it stored it, so
// that this is not the holder's own view: it tells a client when to ask again,
// and nobody whether the primary may act.
func (s *Services) freshFor(g *pb.Group) time.Duration {
	ttl := time.Duration(g.GetTtlMs()) * time.Millisecond
	return max(0, election.HolderTTL(ttl)-s.sinceRenewal(g))
}

func (s *Services) sinceRenewal(g *pb.Group) time.Duration {
	return max(0, s.cfg.Clock.Now().Sub(s.cfg.Log.StoredAt(g.GetLastRenew())))
}

// runOut reports whether a group has a holder whose lease is over by this node's
// clock. The slack is for renewals that are on their way here.
func (s *Services) runOut(g *pb.Group) bool {
	if g.GetHolder() == "" || g.GetPhase() == pb.GroupPhase_GROUP_PHASE_VACANT {
		return false
	}
	ttl := time.Duration(g.GetTtlMs()) * time.Millisecond
	return s.sinceRenewal(g) > election.WaiterTTL(ttl)+2*s.cfg.Profile.Renew
}

// silentReason is that of an instance whose node cannot be asked.
const silentReason = "its node does not answer"

// instances are those of a group, or all, as this node sees them now: what the
// record of one says whose node does not answer is out of date. members are this
// node's view; a node that is not among them is left as recorded.
func (s *Services) instances(group string, members []*pb.Member) []*pb.Instance {
	silent := make(map[string]bool)
	for _, m := range members {
		silent[m.GetNodeId()] = !m.GetReachable() && m.GetNodeId() != s.cfg.NodeID
	}
	recorded := s.cfg.State.Instances(group)
	out := make([]*pb.Instance, 0, len(recorded))
	for _, inst := range recorded {
		if silent[inst.GetNodeId()] {
			inst = proto.CloneOf(inst)
			inst.State, inst.Reason = pb.InstanceState_INSTANCE_STATE_DOWN, silentReason
		}
		out = append(out, inst)
	}
	return out
}

func (s *Services) instance(group, node string) *pb.Instance {
	for _, inst := range s.cfg.State.Instances(group) {
		if inst.GetNodeId() == node {
			return inst
		}
	}
	return nil
}
