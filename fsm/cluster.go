// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// initCluster fixes the cluster id for ever.
func (s *state) initCluster(e env, c *pb.InitCluster) *pb.Result {
	if bad := checkName("cluster id", c.GetClusterId(), hastate.MaxNameBytes); bad != nil {
		return bad
	}
	switch s.clusterID {
	case c.GetClusterId():
		return ok()
	case "":
	default:
		return invalid("the cluster has the id %s", s.clusterID)
	}
	s.clusterID = c.GetClusterId()
	s.next()
	s.change(e, Event{})
	return ok()
}

func (s *state) member(node string) *pb.Member {
	r, _ := s.get(tableMembers, node).(*pb.Member)
	return r
}

// setMember keeps what is agreed on about a member; what one node observes of
// another is left out.
func (s *state) setMember(e env, c *pb.SetMember) *pb.Result {
	m := c.GetMember()
	if m == nil {
		return invalid("member is missing")
	}
	if _, known := pb.MemberRole_name[int32(m.GetRole())]; !known || m.GetRole() == pb.MemberRole_MEMBER_ROLE_UNSPECIFIED {
		return invalid("member role %d is not known", m.GetRole())
	}
	if bad := firstBad(
		checkNode(m.GetNodeId()),
		checkName("address", m.GetAddress(), hastate.MaxURIBytes),
		checkText("version", m.GetVersion(), hastate.MaxTextBytes)); bad != nil {
		return bad
	}
	next := &pb.Member{
		NodeId: m.GetNodeId(), Address: m.GetAddress(), Role: m.GetRole(),
		PromoteWhenCaughtUp: m.GetPromoteWhenCaughtUp(), Version: m.GetVersion(),
	}
	cur := s.member(m.GetNodeId())
	if cur != nil && proto.Equal(next, cur) {
		return ok()
	}
	if n := s.counts.tables[tableMembers]; cur == nil && n >= maxMembers {
		return overLimit("members", maxMembers, uint64(n)+1)
	}
	s.put(tableMembers, next.GetNodeId(), next)
	s.next()
	s.change(e, Event{Member: next})
	return ok()
}

func (s *state) deleteMember(e env, c *pb.DeleteMember) *pb.Result {
	if bad := checkNode(c.GetNodeId()); bad != nil {
		return bad
	}
	cur := s.member(c.GetNodeId())
	if cur == nil {
		return notFound("member %q", c.GetNodeId())
	}
	s.del(tableMembers, c.GetNodeId())
	s.next()
	s.change(e, Event{Member: cur, Removed: true})
	return ok()
}
