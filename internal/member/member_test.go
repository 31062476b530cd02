// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func reconcile(t *testing.T, m *Membership) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Reconcile(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("reconcile: %v", err)
		}
	})
}

func (w *world) suffrage(id raft.ServerID) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.conf.Servers {
		if s.ID == id {
			return s.Suffrage.String() + " " + w.records[string(id)].GetRole().String()
		}
	}
	return "none"
}

func TestAdd_ReplicaThenVoter(t *testing.T) {
	w := newWorld("n1", "n2", "n3")
	m := newMembership(t, w)
	w.newcomer("n4", "n4:1")
	added, err := m.Add(t.Context(), "n4", "n4:1", false)
	if err != nil || added.GetRole() != pb.MemberRole_MEMBER_ROLE_REPLICA || !added.GetPromoteWhenCaughtUp() {
		t.Fatalf("%v, %v", added, err)
	}
	if got := w.story(); got != "record n4, nonvoter n4" {
		t.Fatalf("did %q: the record must come first, and never a voter at once", got)
	}
	w.locked(func() {
		w.answered["n4"] = w.clock.Now()
		w.seen["n4"] = Seen{Applied: w.commit - DefaultCatchUp - 1}
	})
	for range 3 {
		if err := m.pass(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.suffrage("n4"); got != "Nonvoter MEMBER_ROLE_REPLICA" {
		t.Fatalf("n4 is %s before it has caught up", got)
	}
	reconcile(t, m)
	w.locked(func() { w.seen["n4"] = Seen{Applied: w.commit - 5, Version: "v2"} })
	wait.Until(t, 5*time.Second, func() error {
		if got := w.suffrage("n4"); got != "Voter MEMBER_ROLE_VOTER" {
			return fmt.Errorf("n4 is %s", got)
		}
		return nil
	})
	// One that is to stay a replica stays one.
	w.newcomer("n5", "n5:1")
	if _, err := m.Add(t.Context(), "n5", "n5:1", true); err != nil {
		t.Fatal(err)
	}
	w.locked(func() {
		w.answered["n5"], w.seen["n5"] = w.clock.Now(), Seen{Applied: w.commit}
	})
	if err := m.pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := w.suffrage("n5"); got != "Nonvoter MEMBER_ROLE_REPLICA" {
		t.Fatalf("n5 is %s", got)
	}
	// Asked again: nothing new.
	if again, err := m.Add(t.Context(), "n4", "n4:1", false); err != nil || again.GetRole() != pb.MemberRole_MEMBER_ROLE_VOTER {
		t.Fatalf("%v, %v", again, err)
	}
}

func TestAdd_Refusals(t *testing.T) {
	w := newWorld("n1", "n2", "n3")
	m := newMembership(t, w)
	w.newcomer("n4", "n4:1")
	w.at["far:1"] = &pb.HelloResponse{NodeId: "n5", ClusterId: "c2", HasState: true}
	w.at["old:1"] = &pb.HelloResponse{NodeId: "n6", ClusterId: "c1", HasState: true}
	for _, c := range []struct{ id, address, say string }{
		{"n7", "n4:1", "is node n4, not n7"},
		{"n7", "nowhere:1", "nobody answers"},
		{"n5", "far:1", "belongs to cluster c2"},
		{"n6", "old:1", "empty its data folder"},
		{"n7", "n2:1", "is the address of member n2"},
		{"n2", "other:1", "n2 is a member at n2:1"},
		{"n7", "", "needs an id and an address"},
	} {
		_, err := m.Add(t.Context(), c.id, c.address, false)
		if err == nil || !strings.Contains(err.Error(), c.say) {
			t.Errorf("add %s at %s: %v, want %q", c.id, c.address, err, c.say)
		}
	}
	w.silence("n2", "n3")
	_, err := m.Add(t.Context(), "n4", "n4:1", false)
	wantIs(t, err, hastate.ErrPrecondition)
	if w.story() != "" {
		t.Fatalf("did %q", w.story())
	}
}

func TestJoin(t *testing.T) {
	w := newWorld("n1", "n2", "n3")
	m := newMembership(t, w)
	w.newcomer("n4", "n4:1")
	join := func(id, address string, empty bool) error {
		_, err := m.Join(t.Context(), &pb.JoinRequest{NodeId: id, Address: address, Empty: empty, Version: "v1"})
		return err
	}
	// Before the cluster id is in the log there is nothing to be pinned to.
	w.locked(func() { w.unborn = true })
	if err := join("n4", "n4:1", true); status.Code(err) != codes.Unavailable {
		t.Fatalf("a cluster without an id: %v", err)
	}
	w.locked(func() { w.unborn = false })
	if err := join("n4", "n4:1", true); err != nil {
		t.Fatal(err)
	}
	if err := join("n4", "n4:1", true); err != nil {
		t.Fatalf("a second request of the same: %v", err)
	}
	// Not empty and not a member.
	wantIs(t, join("n5", "n5:1", false), hastate.ErrPrecondition)
	// A voter that lost its data.
	err := join("n2", "n2:1", true)
	wantIs(t, err, hastate.ErrPrecondition)
	if !strings.Contains(err.Error(), "remove") {
		t.Fatalf("the refusal does not say what to do: %v", err)
	}
	// One that was lost before anything is known of it.
	w.locked(func() { delete(w.records, "n3"); delete(w.answered, "n3") })
	wantIs(t, join("n3", "n3:1", true), hastate.ErrPrecondition)
	// One of the first configuration that knows why it has none.
	if err := join("n3", "n3:1", false); err != nil {
		t.Fatal(err)
	}
	// Another process with the id of a running one.
	w.locked(func() { w.at["twin:1"] = &pb.HelloResponse{NodeId: "n2", BootId: "other"} })
	err = join("n2", "twin:1", false)
	wantIs(t, err, hastate.ErrAlreadyExists)
	if !strings.Contains(err.Error(), "in use by another running process at n2:1") {
		t.Fatalf("%v", err)
	}
	// The same process at a new address.
	w.locked(func() { w.at["moved:1"] = w.at["n2:1"]; delete(w.at, "n2:1") })
	if err := join("n2", "moved:1", false); err != nil {
		t.Fatal(err)
	}
	if got := w.records["n2"].GetAddress(); got != "moved:1" {
		t.Fatalf("n2 is recorded at %s", got)
	}
	// What may pass is to be tried again.
	w.silence("n2", "n3")
	w.newcomer("n6", "n6:1")
	if err := join("n6", "n6:1", true); status.Code(err) != codes.Unavailable {
		t.Fatalf("got %v", err)
	}
	w.locked(func() { w.barrier = 2 })
	wantIs(t, join("n6", "n6:1", true), hastate.ErrNoLeader)
}

func TestRemove(t *testing.T) {
	w := newWorld("n1", "n2", "n3", "n4", "n5")
	m := newMembership(t, w)
	w.groups = []*pb.Group{{Name: "g", Holder: "n5", Phase: pb.GroupPhase_GROUP_PHASE_SERVING}}
	w.instances = []*pb.Instance{{Group: "g", NodeId: "n4"}, {Group: "g", NodeId: "n5"}}
	wantIs(t, m.Remove(t.Context(), "n8", false), hastate.ErrNotFound)
	wantIs(t, m.Remove(t.Context(), "n5", false), hastate.ErrPrecondition) // a primary
	if err := m.Remove(t.Context(), "n4", false); err != nil {
		t.Fatal(err)
	}
	if got := w.story(); got != "remove n4, instance n4, forget n4" {
		t.Fatalf("did %q", got)
	}
	if err := m.Remove(t.Context(), "n5", true); err != nil {
		t.Fatal(err)
	}
	// Three healthy voters: two could lose none.
	wantIs(t, m.Remove(t.Context(), "n3", false), hastate.ErrPrecondition)
	// A dead one makes nothing worse by going.
	w.silence("n3")
	if err := m.Remove(t.Context(), "n3", false); err != nil {
		t.Fatal(err)
	}
	// Two voters, the other dead: one voter is a majority of one.
	w.silence("n2")
	if err := m.Remove(t.Context(), "n2", false); err != nil {
		t.Fatal(err)
	}
	wantIs(t, m.Remove(t.Context(), "n1", true), hastate.ErrPrecondition)
	wantIs(t, m.Demote(t.Context(), "n1"), hastate.ErrPrecondition)
	if strings.Contains(w.story(), "n1") {
		t.Fatalf("did %q", w.story())
	}
}

// TestRemove_NeverWithoutAMajority: not even by force is a change begun that
// could not commit.
func TestRemove_NeverWithoutAMajority(t *testing.T) {
	w := newWorld("n1", "n2", "n3", "n4")
	m := newMembership(t, w)
	w.silence("n3", "n4")
	wantIs(t, m.Remove(t.Context(), "n2", true), hastate.ErrPrecondition)
	wantIs(t, m.Demote(t.Context(), "n2"), hastate.ErrPrecondition)
	if w.story() != "" {
		t.Fatalf("did %q", w.story())
	}
	// The dead ones can go: with n1 and n2 of n1, n2, n4 there is a majority.
	if err := m.Remove(t.Context(), "n3", false); err != nil {
		t.Fatal(err)
	}
}

func TestPromoteAndDemote(t *testing.T) {
	w := newWorld("n1", "n2", "n3")
	w.add("n4", raft.Nonvoter)
	m := newMembership(t, w)
	w.locked(func() { w.seen["n4"] = Seen{Applied: 5} })
	err := m.Promote(t.Context(), "n4")
	wantIs(t, err, hastate.ErrPrecondition)
	if !strings.Contains(err.Error(), "9995 log entries behind") {
		t.Fatal(err)
	}
	w.locked(func() { w.seen["n4"] = Seen{Applied: w.commit, Age: time.Minute} })
	wantIs(t, m.Promote(t.Context(), "n4"), hastate.ErrPrecondition)
	w.locked(func() { w.seen["n4"] = Seen{Applied: w.commit} })
	if err := m.Promote(t.Context(), "n4"); err != nil {
		t.Fatal(err)
	}
	if err := m.Promote(t.Context(), "n4"); err != nil {
		t.Fatal(err)
	}
	if err := m.Demote(t.Context(), "n2"); err != nil {
		t.Fatal(err)
	}
	if got := w.suffrage("n2"); got != "Nonvoter MEMBER_ROLE_REPLICA" {
		t.Fatalf("n2 is %s", got)
	}
	if got := w.story(); got != "voter n4, record n4, demote n2, record n2" {
		t.Fatalf("did %q", got)
	}
}

func TestLeaderStepsAside(t *testing.T) {
	for name, call := range map[string]func(*Membership) error{
		"remove": func(m *Membership) error { return m.Remove(t.Context(), "n1", true) },
		"demote": func(m *Membership) error { return m.Demote(t.Context(), "n1") },
	} {
		w := newWorld("n1", "n2", "n3")
		m := newMembership(t, w)
		w.locked(func() { w.seen["n2"] = Seen{Applied: 1} })
		err := call(m)
		var nl *hastate.NotLeaderError
		if !errors.As(err, &nl) || nl.LeaderID != "n3" {
			t.Fatalf("%s: %v", name, err)
		}
		if got := w.story(); got != "transfer n3" {
			t.Fatalf("%s: did %q, want a transfer to the most up-to-date voter", name, got)
		}
	}
}

// TestChange_OfALeaderThatHasJustBegun: nobody has answered it yet, which is no reason
// to refuse what a whole cluster can do.
func TestChange_OfALeaderThatHasJustBegun(t *testing.T) {
	for name, call := range map[string]func(*Membership) error{
		"demote":     func(m *Membership) error { return m.Demote(t.Context(), "n2") },
		"remove":     func(m *Membership) error { return m.Remove(t.Context(), "n2", true) },
		"step aside": func(m *Membership) error { return m.Demote(t.Context(), "n1") },
		"transfer": func(m *Membership) error {
			_, err := m.Transfer(t.Context(), "n3")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld("n1", "n2", "n3")
			m := newMembership(t, w)
			m.cfg.Heartbeat = time.Minute
			w.locked(func() { clear(w.answered) })
			done := make(chan error, 1)
			go func() { done <- call(m) }()
			// It is waiting once it has looked.
			wait.Until(t, 10*time.Second, func() error {
				m.mu.Lock()
				defer m.mu.Unlock()
				if m.lookedTerm != 3 {
					return errors.New("it does not look who answers")
				}
				return nil
			})
			w.locked(func() { w.answered["n2"], w.answered["n3"] = w.clock.Now(), w.clock.Now() })
			if err := <-done; err != nil && name != "step aside" || w.story() == "" {
				t.Fatalf("did %q: %v", w.story(), err)
			}
		})
	}
}

// TestLeaderStepsAside_NotInVain: leadership stays where it is if the removal is
// refused anyway.
func TestLeaderStepsAside_NotInVain(t *testing.T) {
	w := newWorld("n1", "n2", "n3", "n4", "n5")
	w.groups = []*pb.Group{{Name: "g", Holder: "n1", Phase: pb.GroupPhase_GROUP_PHASE_SERVING}}
	m := newMembership(t, w)
	err := m.Remove(t.Context(), "n1", false)
	wantIs(t, err, hastate.ErrPrecondition)
	if got := w.story(); got != "" || !strings.Contains(err.Error(), "primary of group g") {
		t.Fatalf("did %q: %v", got, err)
	}
}

func TestTransfer(t *testing.T) {
	w := newWorld("n1", "n2", "n3")
	w.add("r4", raft.Nonvoter)
	m := newMembership(t, w)
	transfer := func(to string) error {
		_, err := m.Transfer(t.Context(), to)
		return err
	}
	if err := transfer("n1"); err != nil {
		t.Fatal(err)
	}
	w.silence("n3")
	wantIs(t, transfer("n3"), hastate.ErrPrecondition)
	wantIs(t, transfer("r4"), hastate.ErrPrecondition)
	wantIs(t, transfer("n8"), hastate.ErrNotFound)
	if w.story() != "" {
		t.Fatalf("did %q", w.story())
	}
	// One that does not come about is not tried again in this term.
	w.locked(func() {
		w.transfer = func(raft.ServerID) error { return errors.New("leadership transfer timeout") }
	})
	wantIs(t, transfer("n2"), hastate.ErrPrecondition)
	err := transfer("n2")
	wantIs(t, err, hastate.ErrPrecondition)
	if w.story() != "transfer n2" {
		t.Fatalf("did %q", w.story())
	}
	w.locked(func() { w.transfer, w.term, w.barrier = nil, 4, 4 })
	if to, err := m.Transfer(t.Context(), ""); err != nil || to != "n2" {
		t.Fatalf("%s, %v", to, err)
	}
	wantIs(t, transfer("n3"), hastate.ErrNotLeader)
}

func TestChange_OutcomesOfRaft(t *testing.T) {
	for _, c := range []struct{ raft, want error }{
		{raft.ErrNotLeader, hastate.ErrNoLeader},
		{raft.ErrLeadershipTransferInProgress, hastate.ErrPrecondition},
		{raft.ErrLeadershipLost, hastate.ErrOutcomeUnknown},
		{errors.New("write log: input/output error"), hastate.ErrOutcomeUnknown},
	} {
		w := newWorld("n1", "n2", "n3", "n4", "n5")
		w.raftErr = c.raft
		wantIs(t, newMembership(t, w).Remove(t.Context(), "n5", false), c.want)
	}
	// A configuration that is older than raft's: raft refuses the change.
	w := newWorld("n1", "n2", "n3", "n4", "n5")
	w.known = 6
	if err := newMembership(t, w).Remove(t.Context(), "n5", false); err == nil || w.story() != "" {
		t.Fatalf("%v, did %q", err, w.story())
	}
	// No index at all.
	w = newWorld("n1", "n2", "n3", "n4", "n5")
	w.index = 0
	wantIs(t, newMembership(t, w).Remove(t.Context(), "n5", false), hastate.ErrPrecondition)
}

func TestChange_OneAtATime(t *testing.T) {
	w := newWorld("n1", "n2", "n3", "n4", "n5")
	m := newMembership(t, w)
	m.changing <- struct{}{}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	wantIs(t, m.Remove(ctx, "n5", false), hastate.ErrPrecondition)
	<-m.changing
	if err := m.Remove(t.Context(), "n5", false); err != nil {
		t.Fatal(err)
	}
}
