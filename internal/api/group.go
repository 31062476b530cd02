// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

type groupServer struct {
	pb.UnimplementedGroupServiceServer
	s *Services
}

// group reads a group's record at a level; local is as that of read.
func (s *Services) group(ctx context.Context, name string, level pb.ReadLevel) (g *pb.Group, local *freshness, err error) {
	if name, err = groupName(name); err != nil {
		return nil, nil, err
	}
	if local, err = s.read(ctx, level); err != nil {
		return nil, nil, err
	}
	g, ok := s.cfg.State.Group(name)
	if !ok {
		return nil, local, noGroup(name)
	}
	return g, local, nil
}

func noGroup(name string) error {
	return notFound("group %q does not exist: it is made when an instance registers in it, or with 'hactl group set %s'", name, name)
}

func (x *groupServer) GetPrimary(ctx context.Context, req *pb.GetPrimaryRequest) (*pb.GetPrimaryResponse, error) {
	g, local, err := x.s.group(ctx, req.GetGroup(), req.GetLevel())
	if err != nil {
		return nil, err
	}
	primary := x.s.primaryOf(g)
	return &pb.GetPrimaryResponse{Primary: primary, Staleness: x.s.staleness(local)}, nil
}

func (x *groupServer) GetGroup(ctx context.Context, req *pb.GetGroupRequest) (*pb.GetGroupResponse, error) {
	g, _, err := x.s.group(ctx, req.GetGroup(), req.GetLevel())
	if err != nil {
		return nil, err
	}
	return &pb.GetGroupResponse{Group: g, Instances: x.s.instances(g.GetName(), x.s.cfg.Membership.Members()), Primary: x.s.primaryOf(g)}, nil
}

func (x *groupServer) ListGroups(ctx context.Context, req *pb.ListGroupsRequest) (*pb.ListGroupsResponse, error) {
	if _, err := x.s.read(ctx, req.GetLevel()); err != nil {
		return nil, err
	}
	return &pb.ListGroupsResponse{
		Groups: x.s.cfg.State.Groups(), Instances: x.s.instances("", x.s.cfg.Membership.Members()),
	}, nil
}

func (x *groupServer) Configure(ctx context.Context, req *pb.ConfigureRequest) (*pb.ConfigureResponse, error) {
	name, err := groupName(req.GetGroup())
	if err = first(err, checkRequestID(req.GetRequest()), checkPolicy(req.GetPolicy())); err != nil {
		return nil, err
	}
	if ref := req.GetDesiredModel(); ref != nil {
		if req.GetClearDesiredModel() {
			return nil, invalid("desired_model and clear_desired_model exclude each other")
		}
		if err := checkModelRef(ref); err != nil {
			return nil, err
		}
		if ref.GetDigest() != "" {
			if err := checkDigest(ref.GetDigest()); err != nil {
				return nil, err
			}
		}
	}
	_, err = x.s.proposeAndWait(ctx, &pb.Command{Request: req.GetRequest(), Op: &pb.Command_ConfigureGroup{ConfigureGroup: &pb.ConfigureGroup{
		Group: name, Policy: req.GetPolicy(), DesiredModel: req.GetDesiredModel(), ClearDesiredModel: req.GetClearDesiredModel(),
	}}}, name)
	if err != nil {
		return nil, err
	}
	g, ok := x.s.cfg.State.Group(name)
	if !ok {
		return nil, noGroup(name)
	}
	return &pb.ConfigureResponse{Group: g}, nil
}

func (x *groupServer) Pause(ctx context.Context, req *pb.PauseRequest) (*pb.PauseResponse, error) {
	name, err := groupName(req.GetGroup())
	if err = first(err, checkText("reason", req.GetReason(), hastate.MaxTextBytes)); err != nil {
		return nil, err
	}
	_, err = x.s.propose(ctx, &pb.Command{Op: &pb.Command_PauseGroup{PauseGroup: &pb.PauseGroup{Group: name, Reason: req.GetReason()}}}, name, 0)
	if err != nil {
		return nil, err
	}
	return &pb.PauseResponse{}, nil
}

func (x *groupServer) Resume(ctx context.Context, req *pb.ResumeRequest) (*pb.ResumeResponse, error) {
	name, err := groupName(req.GetGroup())
	if err != nil {
		return nil, err
	}
	_, err = x.s.propose(ctx, &pb.Command{Op: &pb.Command_ResumeGroup{ResumeGroup: &pb.ResumeGroup{Group: name}}}, name, 0)
	if err != nil {
		return nil, err
	}
	return &pb.ResumeResponse{}, nil
}

func (x *groupServer) History(ctx context.Context, req *pb.HistoryRequest) (*pb.HistoryResponse, error) {
	limit := int(req.GetLimit())
	switch {
	case limit == 0:
		limit = defaultHistory
	case limit > hastate.MaxHistory:
		return nil, &hastate.LimitError{Limit: "transitions asked for", Maximum: hastate.MaxHistory, Actual: uint64(limit)}
	}
	g, _, err := x.s.group(ctx, req.GetGroup(), pb.ReadLevel_READ_LEVEL_LINEARIZABLE)
	if err != nil {
		return nil, err
	}
	return &pb.HistoryResponse{Transitions: x.s.cfg.State.History(g.GetName(), limit)}, nil
}
