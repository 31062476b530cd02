// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// nextChange reads until something other than a heartbeat comes.
func nextChange(t *testing.T, w pb.GroupService_WatchClient) *pb.WatchResponse {
	t.Helper()
	for {
		res, err := w.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if !res.GetHeartbeat() {
			return res
		}
	}
}

func timed(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestWatch_StateThenChanges(t *testing.T) {
	r := newRig(t, "n1")
	serving(r)
	r.putGroup(&pb.Group{Name: "other"}, nil)
	c := pb.NewGroupServiceClient(r.conn)
	w, err := c.Watch(timed(t), &pb.WatchRequest{Groups: []string{""}})
	if err != nil {
		t.Fatal(err)
	}
	first, err := w.Recv()
	if err != nil || first.GetGroup().GetName() != "default" || first.GetPrimary().GetAddress() != "addr:2" || first.GetRevision() != 0 {
		t.Fatalf("first: %v, %v", first, err)
	}
	if first.GetHeader().GetNodeId() != "n1" {
		t.Fatalf("header %v", first.GetHeader())
	}
	beat, err := w.Recv()
	if err != nil || !beat.GetHeartbeat() || beat.GetRevision() != 3 || len(beat.GetPrimaries()) != 1 {
		t.Fatalf("heartbeat: %v, %v", beat, err)
	}
	r.putGroup(&pb.Group{Name: "other", Epoch: 5}, nil)
	r.putGroup(&pb.Group{Name: "default", Epoch: 60, Holder: "n1", Phase: pb.GroupPhase_GROUP_PHASE_GRANTED}, &pb.Transition{Number: 4})
	got := nextChange(t, w)
	if got.GetRevision() != 5 || got.GetGroup().GetEpoch() != 60 || got.GetTransition().GetNumber() != 4 || got.GetPrimary().GetAddress() != "other:1" {
		t.Fatalf("change: %v", got)
	}
	// The address of the primary changes: the group is told again.
	r.change(func(uint64) Event {
		r.instances = []*pb.Instance{{Group: "default", NodeId: "n1", Address: "moved:1"}}
		return Event{Instance: r.instances[0]}
	})
	if got := nextChange(t, w); got.GetPrimary().GetAddress() != "moved:1" {
		t.Fatalf("after the move: %v", got)
	}
	// Heartbeats keep coming and say how far the stream is.
	for {
		beat, err := w.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if beat.GetHeartbeat() && beat.GetRevision() == 6 {
			break
		}
	}
	// Resume: only what came after.
	w2, err := c.Watch(timed(t), &pb.WatchRequest{AfterRevision: 4})
	if err != nil {
		t.Fatal(err)
	}
	if got := nextChange(t, w2); got.GetRevision() != 5 || got.GetTransition().GetNumber() != 4 {
		t.Fatalf("resumed: %v", got)
	}
}

// TestWatch_NeverBack: a watch that is behind does not tell of a newer epoch
// before an older one.
func TestWatch_NeverBack(t *testing.T) {
	r := newRig(t, "n1")
	serving(r)
	var from uint64
	r.change(func(rev uint64) Event {
		from = rev - 1
		r.instances = []*pb.Instance{{Group: "default", NodeId: "n1", Address: "moved:1"}}
		return Event{Instance: r.instances[0]}
	})
	r.putGroup(&pb.Group{Name: "default", Epoch: 65, Holder: "n1"}, &pb.Transition{Number: 4})
	r.putGroup(&pb.Group{Name: "default", Epoch: 70, Holder: "n1"}, &pb.Transition{Number: 5})
	w, err := pb.NewGroupServiceClient(r.conn).Watch(timed(t), &pb.WatchRequest{AfterRevision: from})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []uint64{65, 70} {
		if got := nextChange(t, w); got.GetGroup().GetEpoch() != want {
			t.Fatalf("epoch %d, want %d: %v", got.GetGroup().GetEpoch(), want, got)
		}
	}
}

func TestWatch_Compacted(t *testing.T) {
	r := newRig(t, "n1")
	serving(r)
	r.compact()
	w, err := pb.NewGroupServiceClient(r.conn).Watch(timed(t), &pb.WatchRequest{AfterRevision: 1})
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Recv()
	wantIs(t, err, hastate.ErrCompacted)
	// One that falls behind while it runs gets the sum of what it missed.
	w, err = pb.NewGroupServiceClient(r.conn).Watch(timed(t), &pb.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	nextChange(t, w)
	r.replace(&pb.Group{Name: "default", Epoch: 99})
	if got := nextChange(t, w); got.GetGroup().GetEpoch() != 99 {
		t.Fatalf("after falling behind: %v", got)
	}
}

func TestWatchSessions(t *testing.T) {
	r := newRig(t, "n1")
	for i := range 5 {
		r.putSession(&pb.Session{Group: "default", Id: fmt.Sprintf("a%d", i), Owner: "old"})
	}
	r.putSession(&pb.Session{Group: "default", Id: "b"})
	c := pb.NewSessionServiceClient(r.conn)
	w, err := c.WatchSessions(timed(t), &pb.WatchSessionsRequest{Prefix: "a"})
	if err != nil {
		t.Fatal(err)
	}
	res, err := w.Recv()
	if err != nil || len(res.GetEvents()) != 5 || res.GetRevision() != 0 {
		t.Fatalf("state: %v, %v", res, err)
	}
	if res, err = w.Recv(); err != nil || res.GetRevision() != 6 || len(res.GetEvents()) != 0 {
		t.Fatalf("end of state: %v, %v", res, err)
	}
	r.putSession(&pb.Session{Group: "other", Id: "a1"})
	r.putSession(&pb.Session{Group: "default", Id: "a1", Owner: "new"})
	for {
		if res, err = w.Recv(); err != nil {
			t.Fatal(err)
		}
		if len(res.GetEvents()) > 0 {
			break
		}
	}
	if e := res.GetEvents()[0]; e.GetSession().GetOwner() != "new" || e.GetRevision() != 8 || res.GetRevision() != 8 {
		t.Fatalf("change: %v", res)
	}
	r.compact()
	old, err := c.WatchSessions(timed(t), &pb.WatchSessionsRequest{AfterRevision: 2})
	if err != nil {
		t.Fatal(err)
	}
	_, err = old.Recv()
	wantIs(t, err, hastate.ErrCompacted)
}

// A watch that runs when the state is replaced, or that is too slow, is told so.
func TestWatchSessions_CompactedWhileItRuns(t *testing.T) {
	r := newRig(t, "n1")
	w, err := pb.NewSessionServiceClient(r.conn).WatchSessions(timed(t), &pb.WatchSessionsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Recv(); err != nil { // it stands
		t.Fatal(err)
	}
	r.replace(&pb.Group{Name: "default", Epoch: 99})
	for err == nil {
		_, err = w.Recv()
	}
	wantIs(t, err, hastate.ErrCompacted)
}

func TestSessionWatch_MergeKeepsTheLast(t *testing.T) {
	w := &sessionWatch{group: "g", listed: map[string]uint64{"c": 30}}
	ev := func(rev uint64, id string) Event {
		return Event{Revision: rev, Session: &pb.SessionEvent{Revision: rev, Session: &pb.Session{Group: "g", Id: id}}}
	}
	got := w.merge([]Event{ev(1, "a"), ev(2, "b"), ev(3, "a"), {Revision: 4}, ev(5, "c"), ev(31, "c")})
	var text string
	for _, e := range got {
		text += fmt.Sprintf("%s@%d ", e.GetSession().GetId(), e.GetRevision())
	}
	if text != "b@2 a@3 c@31 " {
		t.Fatalf("merged to %q", text)
	}
}
