// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/snapshot"
)

// fakeNode answers as a cluster with one group "chat" would. Some names bring
// trouble: see trouble.
type fakeNode struct {
	pb.UnimplementedClusterServiceServer
	pb.UnimplementedGroupServiceServer
	pb.UnimplementedModelServiceServer
	pb.UnimplementedSessionServiceServer
	leaderless bool

	mu       sync.Mutex // guards all below
	group    *pb.Group
	model    *pb.ModelVersion
	alias    *pb.ModelAlias
	sessions map[string]*pb.Session
	revision uint64
	archive  []byte
}

const digest = "sha256:0000000000000000000000000000000000000000000000000000000000000007"

func newFakeNode() *fakeNode {
	return &fakeNode{
		revision: 70,
		sessions: make(map[string]*pb.Session),
		archive:  newArchive(),
		group: &pb.Group{
			Name: "chat", Phase: pb.GroupPhase_GROUP_PHASE_SERVING, Holder: "n1", Epoch: 41, TtlMs: 1200, Revision: 68,
			Policy: &pb.GroupPolicy{TtlMs: 1200, DrainMs: 5000},
		},
		model: &pb.ModelVersion{Ref: &pb.ModelRef{Name: "llama", Version: "v7", Digest: digest}, Engine: "vllm", Uri: "hf:org/llama"},
		alias: &pb.ModelAlias{Name: "llama", Alias: "champion", Version: "v7"},
	}
}

// newArchive is what SaveSnapshot sends.
func newArchive() []byte {
	state := bytes.NewBufferString("the state")
	header := &pb.ArchiveHeader{
		Format: snapshot.Format, ClusterId: "c-1", Index: 99, Term: 3, Revision: 70, StateBytes: uint64(state.Len()), Backup: true,
		CreatedUnixMs: time.Date(2026, 3, 1, 2, 0, 0, 0, time.UTC).UnixMilli(), Version: "v0.1.0",
	}
	var archive bytes.Buffer
	if _, err := snapshot.WriteArchive(&archive, header, state); err != nil {
		panic(err)
	}
	return archive.Bytes()
}

// serve runs the node until the test ends and returns its address.
func (n *fakeNode) serve(tb interface {
	Cleanup(func())
	Fatal(...any)
}, opts ...grpc.ServerOption,
) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	server := grpc.NewServer(opts...)
	pb.RegisterClusterServiceServer(server, n)
	pb.RegisterGroupServiceServer(server, n)
	pb.RegisterModelServiceServer(server, n)
	pb.RegisterSessionServiceServer(server, n)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	tb.Cleanup(func() {
		server.Stop()
		<-served
	})
	return listener.Addr().String()
}

// trouble is the error that a name brings.
func (n *fakeNode) trouble(name string) error {
	switch {
	case n.leaderless, name == "noleader":
		return hastate.ToStatus(&hastate.NotLeaderError{})
	case name == "unknown":
		return hastate.ToStatus(&hastate.OutcomeUnknownError{Reason: "leadership was lost"})
	case name == "paused":
		return hastate.ToStatus(fmt.Errorf("%w: the group is paused: resume it first", hastate.ErrPrecondition))
	case name == "missing":
		return hastate.ToStatus(fmt.Errorf("%w: nothing is called %q", hastate.ErrNotFound, name))
	}
	return nil
}

func (n *fakeNode) header() *pb.ReplyHeader {
	return &pb.ReplyHeader{ClusterId: "c-1", NodeId: "n1", Term: 3, Revision: n.revision}
}

func (n *fakeNode) primaryOf(group string) *pb.Primary {
	if group == "empty" {
		return &pb.Primary{Group: group, Phase: pb.GroupPhase_GROUP_PHASE_VACANT, Epoch: 12}
	}
	return &pb.Primary{Group: group, NodeId: "n1", Address: "10.0.0.1:8000", Epoch: 41, Phase: pb.GroupPhase_GROUP_PHASE_SERVING, ValidForMs: 1000, Model: n.model.GetRef()}
}

func (n *fakeNode) members() []*pb.Member {
	return []*pb.Member{
		{NodeId: "n1", Address: "10.0.0.1:7001", Role: pb.MemberRole_MEMBER_ROLE_VOTER, Leader: true, Reachable: true, AppliedIndex: 99, Version: "v0.1.0"},
		{NodeId: "n2", Address: "10.0.0.2:7001", Role: pb.MemberRole_MEMBER_ROLE_REPLICA, PromoteWhenCaughtUp: true, LastContactMs: 1500},
	}
}

func (n *fakeNode) instances() []*pb.Instance {
	return []*pb.Instance{{
		Group: "chat", NodeId: "n1", Address: "10.0.0.1:8000", State: pb.InstanceState_INSTANCE_STATE_READY, Model: n.model.GetRef(),
		Engine: "vllm 0.9", Tags: &pb.InstanceTags{Priority: 5, Zone: "a"},
	}}
}

func (n *fakeNode) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	resp := &pb.StatusResponse{
		Header: n.header(), RaftState: "Follower", CommitIndex: 99, AppliedIndex: 99, Members: n.members(), Groups: []*pb.Group{n.group},
		Instances: n.instances(), Primaries: []*pb.Primary{n.primaryOf("chat")}, Version: "v0.1.0", UptimeMs: 61_000, Profile: "lan",
		Problems: []string{"n2 was not heard from for 1.5s"},
	}
	if !n.leaderless {
		resp.RaftState, resp.LeaderId, resp.LeaderAddress = "Leader", "n1", "10.0.0.1:7001"
	}
	return resp, nil
}

func (n *fakeNode) ListMembers(context.Context, *pb.ListMembersRequest) (*pb.ListMembersResponse, error) {
	return &pb.ListMembersResponse{Header: n.header(), Members: n.members()}, n.trouble("")
}

func (n *fakeNode) AddMember(_ context.Context, req *pb.AddMemberRequest) (*pb.AddMemberResponse, error) {
	m := &pb.Member{NodeId: req.GetNodeId(), Address: req.GetAddress(), Role: pb.MemberRole_MEMBER_ROLE_REPLICA, PromoteWhenCaughtUp: !req.GetReplica()}
	return &pb.AddMemberResponse{Header: n.header(), Member: m}, n.trouble(req.GetNodeId())
}

func (n *fakeNode) RemoveMember(_ context.Context, req *pb.RemoveMemberRequest) (*pb.RemoveMemberResponse, error) {
	return &pb.RemoveMemberResponse{Header: n.header()}, n.trouble(req.GetNodeId())
}

func (n *fakeNode) PromoteMember(_ context.Context, req *pb.PromoteMemberRequest) (*pb.PromoteMemberResponse, error) {
	return &pb.PromoteMemberResponse{Header: n.header()}, n.trouble(req.GetNodeId())
}

func (n *fakeNode) DemoteMember(_ context.Context, req *pb.DemoteMemberRequest) (*pb.DemoteMemberResponse, error) {
	return &pb.DemoteMemberResponse{Header: n.header()}, n.trouble(req.GetNodeId())
}

func (n *fakeNode) TransferLeadership(_ context.Context, req *pb.TransferLeadershipRequest) (*pb.TransferLeadershipResponse, error) {
	return &pb.TransferLeadershipResponse{Header: n.header(), LeaderId: req.GetTo()}, n.trouble(req.GetTo())
}

func (n *fakeNode) SaveSnapshot(_ *pb.SaveSnapshotRequest, stream grpc.ServerStreamingServer[pb.SaveSnapshotResponse]) error {
	for chunk := range slices.Chunk(n.archive, 7) {
		if err := stream.Send(&pb.SaveSnapshotResponse{Chunk: chunk}); err != nil {
			return err
		}
	}
	return nil
}

func (n *fakeNode) RestoreSnapshot(stream grpc.ClientStreamingServer[pb.RestoreSnapshotRequest, pb.RestoreSnapshotResponse]) error {
	var got []byte
	for {
		msg, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		got = append(got, msg.GetChunk()...)
	}
	if string(got) != string(n.archive) {
		return hastate.ToStatus(fmt.Errorf("%w: the archive is damaged", hastate.ErrInvalid))
	}
	return stream.SendAndClose(&pb.RestoreSnapshotResponse{Header: n.header(), Records: 3})
}

func (n *fakeNode) GetPrimary(_ context.Context, req *pb.GetPrimaryRequest) (*pb.GetPrimaryResponse, error) {
	return &pb.GetPrimaryResponse{Header: n.header(), Primary: n.primaryOf(req.GetGroup())}, n.trouble(req.GetGroup())
}

func (n *fakeNode) GetGroup(_ context.Context, req *pb.GetGroupRequest) (*pb.GetGroupResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	g := proto.CloneOf(n.group)
	g.Name = req.GetGroup()
	return &pb.GetGroupResponse{Header: n.header(), Group: g, Instances: n.instances(), Primary: n.primaryOf(g.GetName())}, n.trouble(req.GetGroup())
}

func (n *fakeNode) ListGroups(context.Context, *pb.ListGroupsRequest) (*pb.ListGroupsResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return &pb.ListGroupsResponse{Header: n.header(), Groups: []*pb.Group{proto.CloneOf(n.group)}, Instances: n.instances()}, n.trouble("")
}

func (n *fakeNode) Watch(req *pb.WatchRequest, stream grpc.ServerStreamingServer[pb.WatchResponse]) error {
	sent := []*pb.WatchResponse{
		{Header: n.header(), Revision: 68, Group: n.group, Primary: n.primaryOf("chat")},
		{Header: n.header(), Revision: 69, Heartbeat: true, Primaries: []*pb.Primary{n.primaryOf("chat")}},
		{Header: n.header(), Revision: 70, Group: n.group, Primary: n.primaryOf("empty"), Transition: transition("chat", "n2")},
	}
	for _, m := range sent {
		if m.GetRevision() > req.GetAfterRevision() {
			if err := stream.Send(m); err != nil {
				return err
			}
		}
	}
	<-stream.Context().Done()
	return nil
}

func (n *fakeNode) Configure(_ context.Context, req *pb.ConfigureRequest) (*pb.ConfigureResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if req.GetPolicy() != nil {
		n.group.Policy = req.GetPolicy()
		n.group.TtlMs = req.GetPolicy().GetTtlMs()
	}
	if req.GetDesiredModel() != nil || req.GetClearDesiredModel() {
		n.group.DesiredModel = req.GetDesiredModel()
	}
	return &pb.ConfigureResponse{Header: n.header(), Group: proto.CloneOf(n.group)}, n.trouble(req.GetGroup())
}

func transition(group, to string) *pb.Transition {
	tr := &pb.Transition{
		Group: group, Number: 4, Kind: pb.TransitionKind_TRANSITION_KIND_SWITCHOVER, Outcome: pb.TransitionOutcome_TRANSITION_OUTCOME_SERVING,
		From: "n1", To: to, EpochBefore: 41, Epoch: 52, Reason: "kernel update", DetectedBy: "operator",
		GrantedUnixMs: time.Date(2026, 3, 1, 2, 0, 0, 0, time.UTC).UnixMilli(), GrantMs: 12, PromoteMs: 340, ServeMs: 9,
	}
	if to == "bad" {
		tr.Outcome, tr.Detail = pb.TransitionOutcome_TRANSITION_OUTCOME_FAILED, "promote timed out"
	}
	return tr
}

func (n *fakeNode) Switchover(_ context.Context, req *pb.SwitchoverRequest) (*pb.SwitchoverResponse, error) {
	if req.GetTo() == "n9" {
		return nil, n.trouble("missing")
	}
	tr := transition(req.GetGroup(), req.GetTo())
	if req.GetReason() != "" {
		tr.Reason = req.GetReason()
	}
	return &pb.SwitchoverResponse{Header: n.header(), Transition: tr}, n.trouble(req.GetGroup())
}

func (n *fakeNode) Failover(_ context.Context, req *pb.FailoverRequest) (*pb.FailoverResponse, error) {
	tr := transition(req.GetGroup(), req.GetTo())
	tr.Kind = pb.TransitionKind_TRANSITION_KIND_FORCED
	return &pb.FailoverResponse{Header: n.header(), Transition: tr}, n.trouble(req.GetGroup())
}

func (n *fakeNode) Pause(_ context.Context, req *pb.PauseRequest) (*pb.PauseResponse, error) {
	return &pb.PauseResponse{Header: n.header()}, n.trouble(req.GetGroup())
}

func (n *fakeNode) Resume(_ context.Context, req *pb.ResumeRequest) (*pb.ResumeResponse, error) {
	return &pb.ResumeResponse{Header: n.header()}, n.trouble(req.GetGroup())
}

func (n *fakeNode) History(_ context.Context, req *pb.HistoryRequest) (*pb.HistoryResponse, error) {
	return &pb.HistoryResponse{Header: n.header(), Transitions: []*pb.Transition{transition(req.GetGroup(), "n2")}}, n.trouble(req.GetGroup())
}

func (n *fakeNode) Register(_ context.Context, req *pb.RegisterRequest) (*pb.RegisterResponse, error) {
	if req.GetModel().GetRef().GetVersion() == "v7" && req.GetModel().GetRef().GetDigest() != digest {
		return nil, hastate.ToStatus(fmt.Errorf("%w: llama:v7 has another digest", hastate.ErrAlreadyExists))
	}
	return &pb.RegisterResponse{Header: n.header(), Model: req.GetModel()}, nil
}

func (n *fakeNode) GetModel(_ context.Context, req *pb.GetModelRequest) (*pb.GetModelResponse, error) {
	if req.GetName() != "llama" || (req.GetVersion() != "v7" && req.GetAlias() != "champion") {
		return nil, n.trouble("missing")
	}
	return &pb.GetModelResponse{Header: n.header(), Model: n.model, Aliases: []string{"champion"}}, nil
}

func (n *fakeNode) ListModels(context.Context, *pb.ListModelsRequest) (*pb.ListModelsResponse, error) {
	return &pb.ListModelsResponse{Header: n.header(), Models: []*pb.ModelVersion{n.model}, Aliases: []*pb.ModelAlias{n.alias}}, nil
}

func (n *fakeNode) SetAlias(_ context.Context, req *pb.SetAliasRequest) (*pb.SetAliasResponse, error) {
	if req.GetIfVersion() != "" && req.GetIfVersion() != "v7" {
		return nil, hastate.ToStatus(&hastate.ConflictError{Key: "llama@champion", Reason: "it points to v7"})
	}
	return &pb.SetAliasResponse{Header: n.header(), Alias: &pb.ModelAlias{Name: req.GetName(), Alias: req.GetAlias(), Version: req.GetVersion()}}, nil
}

func (n *fakeNode) DeleteAlias(_ context.Context, req *pb.DeleteAliasRequest) (*pb.DeleteAliasResponse, error) {
	return &pb.DeleteAliasResponse{Header: n.header()}, n.trouble(req.GetAlias())
}
