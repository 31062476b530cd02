// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/election"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// serving makes a group with a primary on n2.
func serving(r *rig) *pb.Group {
	g := &pb.Group{Name: "default", Phase: pb.GroupPhase_GROUP_PHASE_SERVING, Holder: "n2", Epoch: 40, TtlMs: 1000, LastRenew: 50}
	r.putGroup(g, nil)
	r.change(func(uint64) Event {
		r.instances = []*pb.Instance{
			{Group: "default", NodeId: "n1", Address: "other:1"},
			{Group: "default", NodeId: "n2", Address: "addr:2", Model: &pb.ModelRef{Name: "m"}},
		}
		return Event{Instance: r.instances[1]}
	})
	return g
}

func wantIs(tb testing.TB, err, target error) {
	tb.Helper()
	if got := hastate.FromStatus(err); !errors.Is(got, target) {
		tb.Fatalf("got error %v, want %v", err, target)
	}
}

func wantCode(tb testing.TB, err error, code codes.Code) {
	tb.Helper()
	if status.Code(err) != code {
		tb.Fatalf("got error %v, want code %v", err, code)
	}
}

func TestGroup_GetPrimary(t *testing.T) {
	r := newRig(t, "n1")
	c := pb.NewGroupServiceClient(r.conn)
	_, err := c.GetPrimary(t.Context(), &pb.GetPrimaryRequest{})
	wantIs(t, err, hastate.ErrNotFound)
	if !strings.Contains(err.Error(), "hactl group set default") {
		t.Fatalf("the error does not say what to do: %v", err)
	}
	serving(r)
	r.clock.Advance(10 * time.Second)
	r.lock(func() { r.stored = r.clock.Now().Add(-300 * time.Millisecond) })
	res, err := c.GetPrimary(t.Context(), &pb.GetPrimaryRequest{})
	if err != nil {
		t.Fatal(err)
	}
	p := res.GetPrimary()
	if p.GetNodeId() != "n2" || p.GetAddress() != "addr:2" || p.GetEpoch() != 40 || p.GetModel().GetName() != "m" {
		t.Fatalf("primary %v", p)
	}
	if want := uint32((election.HolderTTL(time.Second) - 300*time.Millisecond).Milliseconds()); p.GetValidForMs() != want {
		t.Fatalf("valid for %d ms, want %d", p.GetValidForMs(), want)
	}
	if h := res.GetHeader(); h.GetClusterId() != "c1" || h.GetNodeId() != "n1" || h.GetTerm() != 7 || h.GetRevision() != 2 {
		t.Fatalf("header %v", h)
	}
	if res.GetStaleness() != nil || r.reads != 2 {
		t.Fatalf("%d linearizable reads, staleness %v", r.reads, res.GetStaleness())
	}
	r.clock.Advance(time.Second)
	r.lock(func() { r.rstate, r.readErr = raft.Follower, &hastate.NotLeaderError{} })
	res, err = c.GetPrimary(t.Context(), &pb.GetPrimaryRequest{Level: pb.ReadLevel_READ_LEVEL_LOCAL})
	if err != nil {
		t.Fatal(err)
	}
	if p := res.GetPrimary(); p.GetNodeId() != "" || p.GetAddress() != "" || p.GetEpoch() != 40 {
		t.Fatalf("a primary whose lease has run out here is named: %v", p)
	}
	if res.GetPrimary().GetValidForMs() != 0 || res.GetStaleness() == nil || res.GetStaleness().GetLeaderKnown() {
		t.Fatalf("old local answer %v", res)
	}
	_, err = c.GetPrimary(t.Context(), &pb.GetPrimaryRequest{})
	wantIs(t, err, hastate.ErrNoLeader)
	_, err = c.GetPrimary(t.Context(), &pb.GetPrimaryRequest{Level: 99})
	wantIs(t, err, hastate.ErrInvalid)
	// Vacant: nobody is named.
	r.putGroup(&pb.Group{Name: "default", Phase: pb.GroupPhase_GROUP_PHASE_VACANT, Epoch: 40, TtlMs: 1000}, nil)
	res, err = c.GetPrimary(t.Context(), &pb.GetPrimaryRequest{Level: pb.ReadLevel_READ_LEVEL_LOCAL})
	if err != nil || res.GetPrimary().GetNodeId() != "" || res.GetPrimary().GetEpoch() != 40 {
		t.Fatalf("vacant: %v, %v", res, err)
	}
}

func TestGroup_Configure(t *testing.T) {
	r := newRig(t, "n1")
	c := pb.NewGroupServiceClient(r.conn)
	serving(r)
	for name, req := range map[string]*pb.ConfigureRequest{
		"ttl":     {Policy: &pb.GroupPolicy{TtlMs: 1}},
		"both":    {DesiredModel: &pb.ModelRef{Name: "m", Version: "1"}, ClearDesiredModel: true},
		"digest":  {DesiredModel: &pb.ModelRef{Name: "m", Version: "1", Digest: "md5:1"}},
		"model":   {DesiredModel: &pb.ModelRef{Name: "m"}},
		"request": {Request: &pb.RequestId{Client: 1}},
		"name":    {Group: "a\x00b"},
		"space":   {Group: "a b"},
		"slash":   {Group: "a/b"},
	} {
		if _, err := c.Configure(t.Context(), req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(r.commands) != 0 {
		t.Fatalf("bad requests were proposed: %v", r.commands)
	}
	res, err := c.Configure(t.Context(), &pb.ConfigureRequest{Request: &pb.RequestId{Client: 1, Seq: 2}, Policy: &pb.GroupPolicy{MaxLag: 3}})
	if err != nil || res.GetGroup().GetName() != "default" {
		t.Fatalf("%v, %v", res, err)
	}
	cmd := r.commands[0]
	if cmd.GetRequest().GetSeq() != 2 || cmd.GetConfigureGroup().GetGroup() != "default" || cmd.GetConfigureGroup().GetPolicy().GetMaxLag() != 3 {
		t.Fatalf("proposed %v", cmd)
	}
	if r.deadline <= 0 || r.deadline > DefaultDeadline {
		t.Fatalf("the call had %v left", r.deadline)
	}
	r.lock(func() {
		r.apply = func(*pb.Command) (*pb.Result, error) {
			return &pb.Result{Code: pb.ResultCode_RESULT_CODE_NOT_FOUND, Message: "group x"}, nil
		}
	})
	_, err = c.Pause(t.Context(), &pb.PauseRequest{Group: "x"})
	wantIs(t, err, hastate.ErrNotFound)
	_, err = c.Resume(t.Context(), &pb.ResumeRequest{Group: "x"})
	wantIs(t, err, hastate.ErrNotFound)
	_, err = c.Pause(t.Context(), &pb.PauseRequest{Group: "x", Reason: strings.Repeat("x", 300)})
	wantIs(t, err, hastate.ErrLimit)
}

func TestGroup_MoveIsForwardedOnce(t *testing.T) {
	leader, follower := newRig(t, "n1"), newRig(t, "n2")
	serving(leader)
	follower.follow(leader, "n1")
	c := pb.NewGroupServiceClient(follower.conn)
	res, err := c.Switchover(t.Context(), &pb.SwitchoverRequest{To: "n3", Reason: "why", AtUnixMs: time.Now().Add(30 * time.Millisecond).UnixMilli()})
	if err != nil || res.GetTransition().GetTo() != "n3" || res.GetHeader().GetNodeId() != "n1" {
		t.Fatalf("%v, %v", res, err)
	}
	if _, err = c.Failover(t.Context(), &pb.FailoverRequest{Force: true}); err != nil {
		t.Fatal(err)
	}
	leader.lock(func() {
		if strings.Join(leader.moves, "; ") != "switchover default n3 why; failover force=true default  " {
			t.Errorf("the leader did %q", leader.moves)
		}
	})
	// Errors keep their meaning on the way.
	_, err = c.Switchover(t.Context(), &pb.SwitchoverRequest{Group: "nope"})
	wantIs(t, err, hastate.ErrNotFound)
	// Two nodes that take each other for the leader: no circle.
	leader.follow(follower, "n2")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err = c.Failover(ctx, &pb.FailoverRequest{}); err == nil {
		t.Fatal("a call was answered without a leader")
	}
	follower.lock(func() {
		if len(follower.moves) != 0 {
			t.Errorf("the follower did %q", follower.moves)
		}
	})
}

func TestGroup_SwitchoverAt(t *testing.T) {
	r := newRig(t, "n1")
	serving(r)
	c := pb.NewGroupServiceClient(r.conn)
	_, err := c.Switchover(t.Context(), &pb.SwitchoverRequest{AtUnixMs: time.Now().Add(25 * time.Hour).UnixMilli()})
	wantIs(t, err, hastate.ErrInvalid)
	_, err = c.Switchover(t.Context(), &pb.SwitchoverRequest{AtUnixMs: -1})
	wantIs(t, err, hastate.ErrInvalid)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err = c.Switchover(ctx, &pb.SwitchoverRequest{AtUnixMs: time.Now().Add(time.Hour).UnixMilli()})
	wantIs(t, err, hastate.ErrInvalid)
	if _, err = c.Switchover(t.Context(), &pb.SwitchoverRequest{AtUnixMs: 1}); err != nil {
		t.Fatalf("a time in the past means now: %v", err)
	}
}

func TestGroup_History(t *testing.T) {
	r := newRig(t, "n1")
	serving(r)
	r.history = []*pb.Transition{{Number: 2}, {Number: 1}}
	c := pb.NewGroupServiceClient(r.conn)
	res, err := c.History(t.Context(), &pb.HistoryRequest{})
	if err != nil || len(res.GetTransitions()) != 2 {
		t.Fatalf("%v, %v", res, err)
	}
	_, err = c.History(t.Context(), &pb.HistoryRequest{Limit: 1000})
	wantIs(t, err, hastate.ErrLimit)
	got, err := c.GetGroup(t.Context(), &pb.GetGroupRequest{})
	if err != nil || len(got.GetInstances()) != 2 || got.GetPrimary().GetNodeId() != "n2" {
		t.Fatalf("%v, %v", got, err)
	}
	all, err := c.ListGroups(t.Context(), &pb.ListGroupsRequest{})
	if err != nil || len(all.GetGroups()) != 1 {
		t.Fatalf("%v, %v", all, err)
	}
}
