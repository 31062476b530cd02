// SPDX-License-Identifier: Apache-2.0

package member

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func TestReconcile_Records(t *testing.T) {
	w := newWorld("n1", "n2", "n3")
	m := newMembership(t, w)
	w.records["n2"].Role = pb.MemberRole_MEMBER_ROLE_REPLICA // a crash in between
	w.records["n2"].Address = "before:1"                     // it has moved
	w.records["n8"] = &pb.Member{NodeId: "n8", Address: "n8:1", Role: pb.MemberRole_MEMBER_ROLE_VOTER}
	delete(w.records, "n3") // never seen with data
	w.seen["n3"] = Seen{}
	reconcile(t, m)
	wait.Until(t, 5*time.Second, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		switch n2 := w.records["n2"]; {
		case n2.GetRole() != pb.MemberRole_MEMBER_ROLE_VOTER || n2.GetAddress() != "n2:1":
			return fmt.Errorf("n2 is recorded as %v", n2)
		case w.records["n8"] != nil:
			return errors.New("n8 is no member and has a record")
		case w.records["n3"] != nil:
			return errors.New("n3 has a record and was never seen with data")
		}
		return nil
	})
	w.locked(func() { w.seen["n3"] = Seen{Applied: 5, Version: "v1"} })
	wait.Until(t, 5*time.Second, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.records["n3"].GetAddress() != "n3:1" {
			return errors.New("n3 has no record")
		}
		return nil
	})
	// When all is as it should be, nothing is written.
	story := w.story()
	for range 3 {
		if err := m.pass(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.story(); got != story {
		t.Fatalf("wrote %q after %q", got, story)
	}
}

func TestMembers(t *testing.T) {
	w := newWorld("n1", "n2", "n3")
	m := newMembership(t, w)
	w.silence("n3")
	got := m.Members()
	if len(got) != 3 || !got[0].GetLeader() || !got[1].GetReachable() || got[2].GetReachable() || got[2].GetLastContactMs() != 3_600_000 {
		t.Fatalf("members %v", got)
	}
	w.locked(func() { w.state, w.leader = raft.Follower, "n2" })
	got = m.Members()
	if got[0].GetLeader() || !got[1].GetLeader() || !got[0].GetReachable() || !got[2].GetReachable() {
		t.Fatalf("members as a follower sees them %v", got)
	}
	if got[0].GetAppliedIndex() != 4711 {
		t.Fatalf("this node has applied %d", got[0].GetAppliedIndex())
	}
	w.locked(func() { w.seen["n3"] = Seen{Applied: 3, Age: heardFor + time.Second} })
	if got = m.Members(); got[2].GetReachable() || got[2].GetLastContactMs() != 4000 || got[2].GetAppliedIndex() != 3 {
		t.Fatalf("a member that a follower has not heard from lately: %v", got[2])
	}
}

// TestMembers_NeverAnswered: a node that never answered was not heard from just
// now.
func TestMembers_NeverAnswered(t *testing.T) {
	w := newWorld("n1", "n2", "n3")
	m := newMembership(t, w)
	w.locked(func() {
		delete(w.answered, "n3")
		delete(w.seen, "n3")
	})
	w.clock.Advance(time.Minute)
	for _, state := range []raft.RaftState{raft.Leader, raft.Follower} {
		w.locked(func() { w.state, w.leader = state, "" })
		if got := m.Members()[2]; got.GetReachable() || got.GetLastContactMs() != 60_000 {
			t.Errorf("as %v: %v", state, got)
		}
	}
}
