// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

type clusterServer struct {
	pb.UnimplementedClusterServiceServer
	s *Services
}

// Status is answered from what this node has, with or without a leader.
func (x *clusterServer) Status(ctx context.Context, req *pb.StatusRequest) (*pb.StatusResponse, error) {
	s := x.s
	id, _ := s.leader()
	before := s.freshness()
	applied, _ := s.cfg.State.Applied()
	members := s.cfg.Membership.Members()
	res := &pb.StatusResponse{
		RaftState:    s.cfg.Raft.State().String(),
		LastLogIndex: s.cfg.Raft.LastIndex(),
		CommitIndex:  s.cfg.Raft.CommitIndex(),
		AppliedIndex: applied,
		Members:      members,
		Groups:       s.cfg.State.Groups(),
		Instances:    s.instances("", members),
		Version:      s.cfg.Version,
		UptimeMs:     uint64(time.Since(s.started).Milliseconds()),
		Profile:      s.cfg.Profile.Name,
	}
	if id != "" {
		res.LeaderId, res.LeaderAddress = string(id), s.cfg.Address(id)
	}
	for _, g := range res.GetGroups() {
		res.Primaries = append(res.Primaries, s.primaryOf(g))
	}
	if req.GetWithHash() {
		// It walks the whole state: one at a time.
		select {
		case s.hashing <- struct{}{}:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		index, hash := s.cfg.State.Hash()
		<-s.hashing
		res.HashIndex, res.StateHash = index, hex.EncodeToString(hash[:])
	}
	age := s.staleness(&before)
	res.LeaderContactMs, res.LeaderKnown = age.GetLeaderContactMs(), age.GetLeaderKnown()
	res.Problems = s.problems(res)
	return res, nil
}

// problems is what is wrong, one line each.
func (s *Services) problems(st *pb.StatusResponse) []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	switch {
	case st.GetLeaderId() == "":
		add("no leader is known to %s: check that a majority of the nodes is up and reachable", s.cfg.NodeID)
	case !st.GetLeaderKnown():
		add("%s cannot say how old its state is: no leader has confirmed it since the node started", s.cfg.NodeID)
	}
	if err := s.caughtUp(); err != nil && st.GetLeaderId() != "" {
		add("%s: %v", s.cfg.NodeID, err)
	}
	for _, m := range st.GetMembers() {
		if !m.GetReachable() && m.GetNodeId() != s.cfg.NodeID {
			add("member %s at %s does not answer %s: check that it runs and can be reached, or remove it", m.GetNodeId(), m.GetAddress(), s.cfg.NodeID)
		}
	}
	for _, g := range st.GetGroups() {
		for _, line := range s.groupProblems(g, instancesOf(g.GetName(), st.GetInstances())) {
			add("group %s%s", g.GetName(), line)
		}
	}
	return append(out, s.cfg.Problems()...)
}

func instancesOf(group string, all []*pb.Instance) []*pb.Instance {
	var out []*pb.Instance
	for _, inst := range all {
		if inst.GetGroup() == group {
			out = append(out, inst)
		}
	}
	return out
}

// groupProblems is what is wrong with one group: what follows its name.
func (s *Services) groupProblems(g *pb.Group, instances []*pb.Instance) []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	switch {
	case g.GetPhase() == pb.GroupPhase_GROUP_PHASE_VACANT:
		add(" has no primary")
	case s.runOut(g):
		add(": its lease has run out as far as this node knows: check that a majority of the nodes is up, and ask another node")
	case g.GetPhase() == pb.GroupPhase_GROUP_PHASE_SERVING && s.freshFor(g) == 0:
		add(": its lease has not been renewed in time")
	}
	if g.GetHeld() {
		add(" is held after %d failovers: find the cause, then resume it", g.GetFailoversSinceCalm())
	}
	if g.GetPaused() {
		add(" is paused: %s", g.GetPauseReason())
	}
	return append(out, instanceProblems(g, instances)...)
}

// instanceProblems is what the instances of a group lack. A group without any has
// nothing to serve and no standby to miss.
func instanceProblems(g *pb.Group, instances []*pb.Instance) []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	desired := g.GetDesiredModel()
	standby := false
	for _, inst := range instances {
		ready := inst.GetState() == pb.InstanceState_INSTANCE_STATE_READY
		wrong := desired.GetDigest() != "" && inst.GetModel().GetDigest() != desired.GetDigest()
		holds := inst.GetNodeId() == g.GetHolder()
		if !ready {
			name := strings.TrimPrefix(inst.GetState().String(), "INSTANCE_STATE_")
			if why := inst.GetReason(); why != "" {
				name += ", " + why
			}
			add(": the instance of %s is not ready (%s): look at its model server and node", inst.GetNodeId(), name)
		}
		if holds && wrong {
			add(": its primary %s does not have the desired model %s version %s: switch over to an instance that has it, or load it there",
				inst.GetNodeId(), desired.GetName(), desired.GetVersion())
		}
		standby = standby || !holds && ready && !wrong && !inst.GetTags().GetNoFailover()
	}
	if g.GetHolder() != "" && len(instances) > 0 && !standby {
		add(": no standby could take over: bring up another instance that is ready, has the desired model and may fail over")
	}
	return out
}

func (x *clusterServer) ListMembers(ctx context.Context, _ *pb.ListMembersRequest) (*pb.ListMembersResponse, error) {
	return atLeader(ctx, x.s, func(ctx context.Context) (*pb.ListMembersResponse, error) {
		if err := x.s.cfg.Reader.Read(ctx); err != nil {
			return nil, err
		}
		return &pb.ListMembersResponse{Members: x.s.cfg.Membership.Members()}, nil
	}, func(ctx context.Context, conn *grpc.ClientConn) (*pb.ListMembersResponse, error) {
		return pb.NewClusterServiceClient(conn).ListMembers(ctx, &pb.ListMembersRequest{})
	})
}

func (x *clusterServer) AddMember(ctx context.Context, req *pb.AddMemberRequest) (*pb.AddMemberResponse, error) {
	if err := first(checkNodeID(req.GetNodeId()), checkAddress(req.GetAddress())); err != nil {
		return nil, err
	}
	return atLeader(ctx, x.s, func(ctx context.Context) (*pb.AddMemberResponse, error) {
		m, err := x.s.cfg.Membership.Add(ctx, req.GetNodeId(), req.GetAddress(), req.GetReplica())
		if err != nil {
			return nil, err
		}
		return &pb.AddMemberResponse{Member: m}, nil
	}, func(ctx context.Context, conn *grpc.ClientConn) (*pb.AddMemberResponse, error) {
		return pb.NewClusterServiceClient(conn).AddMember(ctx, req)
	})
}

// checkAddress wants host and port.
func checkAddress(v string) error {
	if err := checkName("address", v, hastate.MaxURIBytes); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(v)
	if err != nil || host == "" || port == "" || port == "0" {
		return invalid("address %q must be host:port, as the other nodes reach it", v)
	}
	return nil
}

func (x *clusterServer) RemoveMember(ctx context.Context, req *pb.RemoveMemberRequest) (*pb.RemoveMemberResponse, error) {
	if err := checkNodeID(req.GetNodeId()); err != nil {
		return nil, err
	}
	return atLeader(ctx, x.s, func(ctx context.Context) (*pb.RemoveMemberResponse, error) {
		return &pb.RemoveMemberResponse{}, x.s.cfg.Membership.Remove(ctx, req.GetNodeId(), req.GetForce())
	}, func(ctx context.Context, conn *grpc.ClientConn) (*pb.RemoveMemberResponse, error) {
		return pb.NewClusterServiceClient(conn).RemoveMember(ctx, req)
	})
}

func (x *clusterServer) PromoteMember(ctx context.Context, req *pb.PromoteMemberRequest) (*pb.PromoteMemberResponse, error) {
	if err := checkNodeID(req.GetNodeId()); err != nil {
		return nil, err
	}
	return atLeader(ctx, x.s, func(ctx context.Context) (*pb.PromoteMemberResponse, error) {
		return &pb.PromoteMemberResponse{}, x.s.cfg.Membership.Promote(ctx, req.GetNodeId())
	}, func(ctx context.Context, conn *grpc.ClientConn) (*pb.PromoteMemberResponse, error) {
		return pb.NewClusterServiceClient(conn).PromoteMember(ctx, req)
	})
}

func (x *clusterServer) DemoteMember(ctx context.Context, req *pb.DemoteMemberRequest) (*pb.DemoteMemberResponse, error) {
	if err := checkNodeID(req.GetNodeId()); err != nil {
		return nil, err
	}
	return atLeader(ctx, x.s, func(ctx context.Context) (*pb.DemoteMemberResponse, error) {
		return &pb.DemoteMemberResponse{}, x.s.cfg.Membership.Demote(ctx, req.GetNodeId())
	}, func(ctx context.Context, conn *grpc.ClientConn) (*pb.DemoteMemberResponse, error) {
		return pb.NewClusterServiceClient(conn).DemoteMember(ctx, req)
	})
}

func (x *clusterServer) TransferLeadership(ctx context.Context, req *pb.TransferLeadershipRequest) (*pb.TransferLeadershipResponse, error) {
	if err := checkText("to", req.GetTo(), hastate.MaxNameBytes); err != nil {
		return nil, err
	}
	return atLeader(ctx, x.s, func(ctx context.Context) (*pb.TransferLeadershipResponse, error) {
		id, err := x.s.cfg.Membership.Transfer(ctx, req.GetTo())
		if err != nil {
			return nil, err
		}
		return &pb.TransferLeadershipResponse{LeaderId: id}, nil
	}, func(ctx context.Context, conn *grpc.ClientConn) (*pb.TransferLeadershipResponse, error) {
		return pb.NewClusterServiceClient(conn).TransferLeadership(ctx, req)
	})
}
