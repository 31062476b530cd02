// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func (n *fakeNode) OpenClient(context.Context, *pb.OpenClientRequest) (*pb.OpenClientResponse, error) {
	return &pb.OpenClientResponse{Header: n.header(), Client: 1, Window: 16, IdleMs: 60_000}, nil
}

func (n *fakeNode) Pipeline(stream grpc.BidiStreamingServer[pb.PipelineRequest, pb.PipelineResponse]) error {
	for {
		msg, err := stream.Recv()
		if err != nil {
			return err
		}
		resp := &pb.PipelineResponse{Header: n.header()}
		for _, item := range msg.GetItems() {
			resp.Results = append(resp.Results, n.apply(item))
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

func (n *fakeNode) apply(item *pb.PipelineItem) *pb.PipelineResult {
	n.mu.Lock()
	defer n.mu.Unlock()
	result := &pb.PipelineResult{Id: item.GetId()}
	for _, op := range item.GetOps() {
		n.revision++
		r, err := n.applyOp(op)
		if err != nil {
			st := status.Convert(hastate.ToStatus(err))
			result.Code, result.Message = uint32(st.Code()), st.Message()
			for _, d := range st.Proto().GetDetails() {
				raw, _ := proto.Marshal(d)
				result.Details = append(result.Details, raw)
			}
			return result
		}
		r.Revision = n.revision
		result.Results = append(result.Results, r)
	}
	return result
}

func (n *fakeNode) applyOp(op *pb.SessionOp) (*pb.SessionOpResult, error) {
	switch o := op.GetOp().(type) {
	case *pb.SessionOp_Put:
		s := o.Put.GetSession()
		if _, ok := n.sessions[s.GetId()]; ok && o.Put.GetIfAbsent() {
			return nil, &hastate.ConflictError{Key: "chat/" + s.GetId(), CurrentRevision: n.sessions[s.GetId()].GetRevision(), Reason: "it exists"}
		}
		s.Revision = n.revision
		n.sessions[s.GetId()] = s
		return &pb.SessionOpResult{EndOffset: uint64(len(s.GetValue()))}, nil
	case *pb.SessionOp_Append:
		s := n.sessions[o.Append.GetId()]
		if s == nil {
			s = &pb.Session{Group: o.Append.GetGroup(), Id: o.Append.GetId()}
			n.sessions[s.Id] = s
		}
		if o.Append.GetOffset() != uint64(len(s.GetValue())) {
			return nil, &hastate.ConflictError{Key: "chat/" + s.GetId(), CurrentOffset: uint64(len(s.GetValue())), Reason: "the offset is not the end"}
		}
		s.Value = append(slices.Clone(s.Value), o.Append.GetData()...)
		return &pb.SessionOpResult{EndOffset: uint64(len(s.GetValue()))}, nil
	case *pb.SessionOp_Delete:
		_, ok := n.sessions[o.Delete.GetId()]
		delete(n.sessions, o.Delete.GetId())
		return &pb.SessionOpResult{Deleted: ok}, nil
	}
	return nil, hastate.ErrInvalid
}

func (n *fakeNode) Get(_ context.Context, req *pb.GetRequest) (*pb.GetResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s, ok := n.sessions[req.GetId()]
	if !ok {
		return nil, n.trouble("missing")
	}
	return &pb.GetResponse{Header: n.header(), Session: proto.CloneOf(s)}, nil
}

func (n *fakeNode) List(_ context.Context, req *pb.ListRequest) (*pb.ListResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	resp := &pb.ListResponse{Header: n.header()}
	for _, id := range slices.Sorted(maps.Keys(n.sessions)) {
		if strings.HasPrefix(id, req.GetPrefix()) && id > req.GetPageToken() {
			if len(resp.Sessions) == int(req.GetPageSize()) {
				resp.NextPageToken = resp.Sessions[len(resp.Sessions)-1].GetId()
				break
			}
			s := proto.CloneOf(n.sessions[id])
			if req.GetKeysOnly() {
				s.Value = nil
			}
			resp.Sessions = append(resp.Sessions, s)
		}
	}
	return resp, nil
}

func (n *fakeNode) WatchSessions(_ *pb.WatchSessionsRequest, stream grpc.ServerStreamingServer[pb.WatchSessionsResponse]) error {
	events := []*pb.SessionEvent{
		{Revision: 71, Session: &pb.Session{Group: "chat", Id: "a", Owner: "n1", Value: []byte("xyz"), Revision: 71}},
		{Revision: 72, Session: &pb.Session{Group: "chat", Id: "a"}, Deleted: true, Expired: true},
	}
	if err := stream.Send(&pb.WatchSessionsResponse{Header: n.header(), Revision: 72, Events: events}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}
