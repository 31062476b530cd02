// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// peerServer is what nodes ask each other.
type peerServer struct {
	pb.UnimplementedPeerServiceServer
	s *Services
}

func (x *peerServer) Hello(ctx context.Context, req *pb.HelloRequest) (*pb.HelloResponse, error) {
	if err := first(
		checkText("node_id", req.GetNodeId(), hastate.MaxNameBytes),
		checkText("address", req.GetAddress(), hastate.MaxURIBytes)); err != nil {
		return nil, err
	}
	return x.s.cfg.Greeter.Hello(ctx, req)
}

// Join is answered by the leader alone; others name it to the newcomer.
func (x *peerServer) Join(ctx context.Context, req *pb.JoinRequest) (*pb.JoinResponse, error) {
	if err := first(checkNodeID(req.GetNodeId()), checkAddress(req.GetAddress())); err != nil {
		return nil, err
	}
	if x.s.cfg.Raft.State() != raft.Leader {
		return nil, x.s.notLeader()
	}
	return x.s.cfg.Membership.Join(ctx, req)
}

func (x *peerServer) Forward(stream pb.PeerService_ForwardServer) error {
	return x.s.cfg.Proposer.ServeForward(stream)
}

func (x *peerServer) ReadIndex(ctx context.Context, _ *pb.ReadIndexRequest) (*pb.ReadIndexResponse, error) {
	return x.s.cfg.Reader.ServeReadIndex(ctx)
}

func (x *peerServer) Canvass(ctx context.Context, req *pb.CanvassRequest) (*pb.CanvassResponse, error) {
	h, ok := x.s.cfg.Holders.For(req.GetGroup())
	if !ok {
		return &pb.CanvassResponse{Present: false}, nil
	}
	return h.Canvass(ctx, req)
}

func (x *peerServer) Nominate(ctx context.Context, req *pb.NominateRequest) (*pb.NominateResponse, error) {
	h, ok := x.s.cfg.Holders.For(req.GetGroup())
	if !ok {
		return &pb.NominateResponse{Reason: x.s.noInstance(req.GetGroup())}, nil
	}
	return h.Nominate(ctx, req)
}

func (x *peerServer) Granted(ctx context.Context, req *pb.GrantedRequest) (*pb.GrantedResponse, error) {
	name := req.GetGroup().GetName()
	h, ok := x.s.cfg.Holders.For(name)
	if !ok {
		return nil, fmt.Errorf("%w: %s", hastate.ErrNotFound, x.s.noInstance(name))
	}
	return h.Granted(ctx, req)
}

// Fence never says fenced for a group that has no holder here: an instance of a
// former run of this node may still be serving under the epoch.
func (x *peerServer) Fence(ctx context.Context, req *pb.FenceRequest) (*pb.FenceResponse, error) {
	h, ok := x.s.cfg.Holders.For(req.GetGroup())
	if !ok {
		return &pb.FenceResponse{Fenced: false, Reason: x.s.noInstance(req.GetGroup())}, nil
	}
	return h.Fence(ctx, req)
}

func (s *Services) noInstance(group string) string {
	return fmt.Sprintf("node %s has no instance in group %q", s.cfg.NodeID, group)
}
