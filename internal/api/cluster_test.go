// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func TestCluster_StatusWithoutLeader(t *testing.T) {
	r := newRig(t, "n1", func(c *Config) {
		c.Problems = func() []string { return []string{"extra"} }
	})
	serving(r)
	r.putGroup(&pb.Group{Name: "default", Phase: pb.GroupPhase_GROUP_PHASE_VACANT, Held: true, Paused: true, PauseReason: "works"}, nil)
	r.lock(func() { r.rstate, r.leader, r.readErr = raft.Candidate, "", &hastate.NotLeaderError{} })
	res, err := pb.NewClusterServiceClient(r.conn).Status(t.Context(), &pb.StatusRequest{WithHash: true})
	if err != nil {
		t.Fatal(err)
	}
	if res.GetRaftState() != "Candidate" || res.GetLastLogIndex() != 11 || !strings.HasPrefix(res.GetStateHash(), "01") || res.GetProfile() != "fast" || res.GetHeader() == nil {
		t.Fatalf("status %v", res)
	}
	all := strings.Join(res.GetProblems(), "\n")
	for _, want := range []string{"no leader", "no primary", "is held", "is paused: works", "extra"} {
		if !strings.Contains(all, want) {
			t.Errorf("problems do not say %q:\n%s", want, all)
		}
	}
}

func TestCluster_StatusProblems(t *testing.T) {
	r := newRig(t, "n1")
	serving(r)
	r.members = []*pb.Member{{NodeId: "n1", Reachable: true}, {NodeId: "n2", Reachable: true}, {NodeId: "n3", Address: "h:3"}}
	ready := pb.InstanceState_INSTANCE_STATE_READY
	want := &pb.ModelRef{Name: "m", Version: "2", Digest: "new"}
	r.lock(func() {
		r.groups["default"].DesiredModel = want
		r.instances = []*pb.Instance{
			{Group: "default", NodeId: "n1", State: ready, Model: want, Tags: &pb.InstanceTags{NoFailover: true}},
			{Group: "default", NodeId: "n2", State: ready, Model: &pb.ModelRef{Name: "m", Version: "1", Digest: "old"}},
			{Group: "default", NodeId: "n3", State: ready, Model: want},
		}
	})
	problems := func() string {
		t.Helper()
		res, err := pb.NewClusterServiceClient(r.conn).Status(t.Context(), &pb.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(res.GetProblems(), "\n")
	}
	all := problems()
	for _, want := range []string{
		"member n3 at h:3 does not answer", "primary n2 does not have the desired model m version 2", "no standby could take over",
		"instance of n3 is not ready (DOWN, its node does not answer)", "n1 cannot say how old its state is",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("problems do not say %q:\n%s", want, all)
		}
	}
	// The record itself is as it was.
	if st := r.Instances("default")[2].GetState(); st != ready {
		t.Errorf("the record of n3 is %v", st)
	}
	groups := pb.NewGroupServiceClient(r.conn)
	one, err := groups.GetGroup(t.Context(), &pb.GetGroupRequest{})
	if err != nil || one.GetInstances()[2].GetState() != pb.InstanceState_INSTANCE_STATE_DOWN {
		t.Errorf("%v, %v", one, err)
	}
	list, err := groups.ListGroups(t.Context(), &pb.ListGroupsRequest{})
	if err != nil || list.GetInstances()[2].GetState() != pb.InstanceState_INSTANCE_STATE_DOWN || list.GetInstances()[0].GetState() != ready {
		t.Errorf("%v, %v", list, err)
	}
	r.members[2].Reachable = true
	r.instances[1].Model = want
	r.lock(func() { r.fresh = 1 })
	if all := problems(); all != "" {
		t.Errorf("problems although all is well:\n%s", all)
	}
	r.clock.Advance(10 * time.Second)
	if all := problems(); !strings.Contains(all, "group default: its lease has run out as far as this node knows") {
		t.Errorf("problems do not tell of the lease:\n%s", all)
	}
}

func TestCluster_Members(t *testing.T) {
	leader, follower := newRig(t, "n1"), newRig(t, "n2")
	leader.members = []*pb.Member{{NodeId: "n1", Reachable: true}, {NodeId: "n2"}}
	follower.follow(leader, "n1")
	c := pb.NewClusterServiceClient(follower.conn)
	res, err := c.ListMembers(t.Context(), &pb.ListMembersRequest{})
	if err != nil || len(res.GetMembers()) != 2 {
		t.Fatalf("%v, %v", res, err)
	}
	if added, err := c.AddMember(t.Context(), &pb.AddMemberRequest{NodeId: "n4", Address: "h:1", Replica: true}); err != nil || added.GetMember().GetNodeId() != "n4" {
		t.Fatalf("%v, %v", added, err)
	}
	leader.lock(func() {
		if !slices.Equal(leader.moves, []string{"add n4 h:1 true"}) {
			t.Errorf("did %v", leader.moves)
		}
	})
	for _, address := range []string{"", "h", ":1", "h:0"} {
		_, err := c.AddMember(t.Context(), &pb.AddMemberRequest{NodeId: "n4", Address: address})
		wantIs(t, err, hastate.ErrInvalid)
	}
	_, err = c.PromoteMember(t.Context(), &pb.PromoteMemberRequest{NodeId: "n2"})
	wantIs(t, err, hastate.ErrPrecondition)
	_, err = c.PromoteMember(t.Context(), &pb.PromoteMemberRequest{})
	wantIs(t, err, hastate.ErrInvalid)
	if _, err = c.RemoveMember(t.Context(), &pb.RemoveMemberRequest{NodeId: "n2"}); err != nil {
		t.Fatal(err)
	}
	if res, err := c.TransferLeadership(t.Context(), &pb.TransferLeadershipRequest{To: "n2"}); err != nil || res.GetLeaderId() != "n2" {
		t.Fatalf("%v, %v", res, err)
	}
	// A panic is answered, and the node goes on. Whether it had an effect is not
	// known to the node that passed the call on.
	_, err = c.DemoteMember(t.Context(), &pb.DemoteMemberRequest{NodeId: "n2"})
	wantIs(t, err, hastate.ErrOutcomeUnknown)
	_, err = pb.NewClusterServiceClient(leader.conn).DemoteMember(t.Context(), &pb.DemoteMemberRequest{NodeId: "n2"})
	wantCode(t, err, codes.Internal)
	st, err := pb.NewClusterServiceClient(leader.conn).Status(t.Context(), &pb.StatusRequest{})
	if err != nil || !strings.Contains(strings.Join(st.GetProblems(), "\n"), "n2") {
		t.Fatalf("%v, %v", st.GetProblems(), err)
	}
}

func TestCluster_Snapshots(t *testing.T) {
	leader, follower := newRig(t, "n1"), newRig(t, "n2")
	follower.follow(leader, "n1")
	follower.archive = bytes.Repeat([]byte("0123456789"), 100_000)
	c := pb.NewClusterServiceClient(follower.conn)
	save, err := c.SaveSnapshot(timed(t), &pb.SaveSnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	for {
		res, err := save.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(res.GetChunk()) > maxChunk {
			t.Fatalf("chunk of %d bytes", len(res.GetChunk()))
		}
		got = append(got, res.GetChunk()...)
	}
	if !bytes.Equal(got, follower.archive) {
		t.Fatalf("%d bytes came, %d were saved", len(got), len(follower.archive))
	}
	restore := func(chunk []byte) (*pb.RestoreSnapshotResponse, error) {
		s, err := c.RestoreSnapshot(timed(t))
		if err != nil {
			t.Fatal(err)
		}
		for rest := chunk; len(rest) > 0; {
			n := min(len(rest), maxChunk)
			if s.Send(&pb.RestoreSnapshotRequest{Chunk: rest[:n]}) != nil {
				break
			}
			rest = rest[n:]
		}
		return s.CloseAndRecv()
	}
	res, err := restore(got)
	if err != nil || res.GetRecords() != uint64(len(got)) || res.GetHeader().GetNodeId() != "n1" {
		t.Fatalf("%v, %v", res, err)
	}
	leader.lock(func() {
		if !bytes.Equal(leader.archive, got) {
			t.Errorf("the leader restored %d bytes", len(leader.archive))
		}
	})
	follower.lock(func() { follower.leader = "" })
	_, err = restore([]byte("x"))
	wantIs(t, err, hastate.ErrNoLeader)
}

func TestModel(t *testing.T) {
	r := newRig(t, "n1")
	c := pb.NewModelServiceClient(r.conn)
	digest := "sha256:" + strings.Repeat("a", 64)
	m := &pb.ModelVersion{Ref: &pb.ModelRef{Name: "m", Version: "1", Digest: digest}}
	r.models = []*pb.ModelVersion{m}
	r.aliases = []*pb.ModelAlias{{Name: "m", Alias: "champion", Version: "1"}}
	if res, err := c.Register(t.Context(), &pb.RegisterRequest{Model: m}); err != nil || res.GetModel().GetRef().GetDigest() != digest {
		t.Fatalf("%v, %v", res, err)
	}
	_, err := c.Register(t.Context(), &pb.RegisterRequest{Model: &pb.ModelVersion{Ref: &pb.ModelRef{Name: "m", Version: "1"}}})
	wantIs(t, err, hastate.ErrInvalid)
	_, err = c.Register(t.Context(), &pb.RegisterRequest{})
	wantIs(t, err, hastate.ErrInvalid)
	for _, req := range []*pb.GetModelRequest{{Name: "m", Version: "1"}, {Name: "m", Alias: "champion"}} {
		if res, err := c.GetModel(t.Context(), req); err != nil || !slices.Equal(res.GetAliases(), []string{"champion"}) {
			t.Fatalf("%v, %v", res, err)
		}
	}
	_, err = c.GetModel(t.Context(), &pb.GetModelRequest{Name: "m"})
	wantIs(t, err, hastate.ErrInvalid)
	_, err = c.GetModel(t.Context(), &pb.GetModelRequest{Name: "m", Alias: "none"})
	wantIs(t, err, hastate.ErrNotFound)
	if res, err := c.SetAlias(t.Context(), &pb.SetAliasRequest{Name: "m", Alias: "champion", Version: "1"}); err != nil || res.GetAlias().GetVersion() != "1" {
		t.Fatalf("%v, %v", res, err)
	}
	if _, err := c.DeleteAlias(t.Context(), &pb.DeleteAliasRequest{Name: "m", Alias: "x"}); err != nil {
		t.Fatal(err)
	}
	if res, err := c.ListModels(t.Context(), &pb.ListModelsRequest{}); err != nil || len(res.GetModels()) != 1 {
		t.Fatalf("%v, %v", res, err)
	}
	r.lock(func() {
		r.apply = func(*pb.Command) (*pb.Result, error) {
			return &pb.Result{Code: pb.ResultCode_RESULT_CODE_ALREADY_EXISTS, Message: "m 1"}, nil
		}
	})
	_, err = c.Register(t.Context(), &pb.RegisterRequest{Model: m})
	wantIs(t, err, hastate.ErrAlreadyExists)
}

func TestPeer(t *testing.T) {
	r := newRig(t, "n1")
	c := pb.NewPeerServiceClient(r.conn)
	r.lock(func() { r.holders = map[string]Holder{"here": &fakeHolder{}} })
	if res, err := c.Canvass(t.Context(), &pb.CanvassRequest{Group: "here"}); err != nil || !res.GetPresent() {
		t.Fatalf("%v, %v", res, err)
	}
	if res, err := c.Canvass(t.Context(), &pb.CanvassRequest{Group: "x"}); err != nil || res.GetPresent() {
		t.Fatalf("%v, %v", res, err)
	}
	if res, err := c.Nominate(t.Context(), &pb.NominateRequest{Group: "x"}); err != nil || res.GetConsent() || res.GetReason() == "" {
		t.Fatalf("%v, %v", res, err)
	}
	// A group that is not here was not fenced here.
	if res, err := c.Fence(t.Context(), &pb.FenceRequest{Group: "x", Epoch: 5}); err != nil || res.GetFenced() {
		t.Fatalf("%v, %v", res, err)
	}
	if res, err := c.Fence(t.Context(), &pb.FenceRequest{Group: "here", Epoch: 5}); err != nil || !res.GetFenced() {
		t.Fatalf("%v, %v", res, err)
	}
	_, err := c.Granted(t.Context(), &pb.GrantedRequest{Group: &pb.Group{Name: "x"}})
	wantIs(t, err, hastate.ErrNotFound)
	if res, err := c.ReadIndex(t.Context(), &pb.ReadIndexRequest{}); err != nil || res.GetIndex() != 9 {
		t.Fatalf("%v, %v", res, err)
	}
	if res, err := c.Hello(t.Context(), &pb.HelloRequest{}); err != nil || res.GetNodeId() != "n1" {
		t.Fatalf("%v, %v", res, err)
	}
	if res, err := c.Join(t.Context(), &pb.JoinRequest{NodeId: "n4", Address: "h:1"}); err != nil || res.GetClusterId() != "c1" {
		t.Fatalf("%v, %v", res, err)
	}
	r.lock(func() { r.rstate, r.leader = raft.Follower, "n2" })
	_, err = c.Join(t.Context(), &pb.JoinRequest{NodeId: "n4", Address: "h:1"})
	var nl *hastate.NotLeaderError
	if !errors.As(hastate.FromStatus(err), &nl) || nl.LeaderID != "n2" {
		t.Fatalf("the newcomer is not told who leads: %v", err)
	}
}

func TestHealth(t *testing.T) {
	r := newRig(t, "n2")
	c := healthpb.NewHealthClient(r.conn)
	is := func(name string, want healthpb.HealthCheckResponse_ServingStatus) {
		t.Helper()
		wait.Until(t, 10*time.Second, func() error {
			res, err := c.Check(t.Context(), &healthpb.HealthCheckRequest{Service: name})
			if err != nil {
				return err
			}
			if res.GetStatus() != want {
				return fmt.Errorf("%q is %v, want %v", name, res.GetStatus(), want)
			}
			return nil
		})
	}
	const up, down = healthpb.HealthCheckResponse_SERVING, healthpb.HealthCheckResponse_NOT_SERVING
	holder := &fakeHolder{holds: true}
	is("", up)
	is(HealthReady, up)
	is(HealthPrimary, down)
	r.lock(func() { r.holders = map[string]Holder{"default": holder} })
	serving(r)
	is(HealthPrimary, up)
	is(HealthPrimary+"/default", up)
	// The record alone is not enough: the holder's own lease counts.
	r.lock(func() { r.holders = map[string]Holder{"default": &fakeHolder{}} })
	for _, name := range []string{HealthPrimary, HealthPrimary + "/default"} { // at once
		res, err := c.Check(t.Context(), &healthpb.HealthCheckRequest{Service: name})
		if err != nil || res.GetStatus() != down {
			t.Fatalf("%s: %v, %v", name, res, err)
		}
	}
	r.lock(func() { r.rstate, r.leader = raft.Follower, "" })
	is(HealthReady, down)
	is("", up)
	r.lock(func() { r.leader, r.commit = "n1", 1000 })
	is(HealthReady, down)
	r.change(func(uint64) Event { r.applied = 900; return Event{} })
	is(HealthReady, up)
}

func TestInterceptor_Deadline(t *testing.T) {
	r := newRig(t, "n1")
	for method, want := range map[string]bool{
		pb.GroupService_GetPrimary_FullMethodName: true, pb.GroupService_Watch_FullMethodName: false,
		pb.SessionService_Pipeline_FullMethodName: false, pb.ClusterService_SaveSnapshot_FullMethodName: true,
	} {
		ctx, cancel := r.services.withDeadline(context.Background(), method)
		if _, ok := ctx.Deadline(); ok != want {
			t.Errorf("%s: deadline %v, want %v", method, ok, want)
		}
		cancel()
	}
	if ours(pb.RaftService_Heartbeat_FullMethodName) || ours(healthpb.Health_Check_FullMethodName) || !ours(pb.PeerService_Hello_FullMethodName) {
		t.Error("the interceptors concern the wrong methods")
	}
	if _, err := New(Config{}); err == nil {
		t.Error("an empty configuration was accepted")
	}
}
