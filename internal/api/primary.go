// SPDX-License-Identifier: Apache-2.0

package api

import (
	"time"

	"github.com/hastate/hastate/election"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// primaryOf is what a client needs to reach the primary of g. It is a function
// of the record, the instance beside the holder, and of when this node stored
// the newest renewal.
func (s *Services) primaryOf(g *pb.Group) *pb.Primary {
	p := &pb.Primary{Group: g.GetName(), Epoch: g.GetEpoch(), Phase: g.GetPhase()}
	if g.GetHolder() == "" || g.GetPhase() == pb.GroupPhase_GROUP_PHASE_VACANT {
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
	age := s.cfg.Clock.Now().Sub(s.cfg.Log.StoredAt(g.GetLastRenew()))
	return max(0, election.HolderTTL(ttl)-max(0, age))
}

func (s *Services) instance(group, node string) *pb.Instance {
	for _, inst := range s.cfg.State.Instances(group) {
		if inst.GetNodeId() == node {
			return inst
		}
	}
	return nil
}
