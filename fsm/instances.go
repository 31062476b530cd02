// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func checkInstance(in *pb.Instance) *pb.Result {
	if in == nil {
		return invalid("instance is missing")
	}
	if _, known := pb.InstanceState_name[int32(in.GetState())]; !known || in.GetState() == pb.InstanceState_INSTANCE_STATE_UNSPECIFIED {
		return invalid("instance state %d is not known", in.GetState())
	}
	return firstBad(
		checkGroup(in.GetGroup()),
		checkNode(in.GetNodeId()),
		checkText("address", in.GetAddress(), hastate.MaxURIBytes),
		checkReason(in.GetReason()),
		checkModelText(in.GetModel()),
		checkText("zone", in.GetTags().GetZone(), hastate.MaxNameBytes),
		checkText("engine", in.GetEngine(), hastate.MaxTextBytes))
}

// reportInstance writes what a node says of its instance, and makes the group
// if it is the first of it.
func (s *state) reportInstance(e env, c *pb.ReportInstance) *pb.Result {
	in := c.GetInstance()
	if bad := checkInstance(in); bad != nil {
		return bad
	}
	cur := s.instance(in.GetGroup(), in.GetNodeId())
	if cur != nil {
		in.Revision = cur.GetRevision()
		if proto.Equal(in, cur) {
			return ok()
		}
	} else if n := s.counts.tables[tableInstances]; n >= maxInstances {
		return overLimit("instances", maxInstances, uint64(n)+1)
	}
	if s.group(in.GetGroup()) == nil {
		if bad := s.checkNewGroup(); bad != nil {
			return bad
		}
		s.storeGroup(e, newGroup(in.GetGroup()), nil)
	}
	s.storeInstance(e, in)
	return ok()
}

// storeInstance writes an instance that nobody else refers to.
func (s *state) storeInstance(e env, in *pb.Instance) {
	in.Revision = s.next()
	s.put(tableInstances, pairKey(in.GetGroup(), in.GetNodeId()), in)
	s.change(e, Event{Instance: in})
}

func (s *state) removeInstance(e env, c *pb.RemoveInstance) *pb.Result {
	if bad := firstBad(checkGroup(c.GetGroup()), checkNode(c.GetNodeId())); bad != nil {
		return bad
	}
	cur := s.instance(c.GetGroup(), c.GetNodeId())
	if cur == nil {
		return notFound("instance of node %q in group %q", c.GetNodeId(), c.GetGroup())
	}
	s.del(tableInstances, pairKey(c.GetGroup(), c.GetNodeId()))
	s.next()
	s.change(e, Event{Instance: cur, Removed: true})
	return ok()
}
