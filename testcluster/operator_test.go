// SPDX-License-Identifier: Apache-2.0

package testcluster

import (
	"context"
	"errors"
	"testing"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/node"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func offWatchdog(c *node.Config) { c.Faults.WatchdogOff = true }

func TestSwitchover(t *testing.T) {
	t.Parallel()
	c := New(t, Options{})
	c.WaitReady()
	// Any node takes the order.
	groups := pb.NewGroupServiceClient(dial(t, c.Others(c.WaitLeader())[0]))
	var to *Member
	ordered(t, c, func(first *Member, epoch uint64) error {
		to = c.Others(first)[1]
		reply, err := groups.Switchover(within(t), &pb.SwitchoverRequest{To: to.ID, Reason: "test"})
		if err != nil {
			return err
		}
		tr := reply.GetTransition()
		if tr.GetKind() != pb.TransitionKind_TRANSITION_KIND_SWITCHOVER || tr.GetFrom() != first.ID || tr.GetTo() != to.ID ||
			tr.GetEpoch() <= epoch || tr.GetOutcome() != pb.TransitionOutcome_TRANSITION_OUTCOME_SERVING {
			t.Fatalf("transition %v", tr)
		}
		stays(t, c, to, tr.GetEpoch())
		return nil
	})
	// To itself is refused with words.
	if _, err := groups.Switchover(within(t), &pb.SwitchoverRequest{To: to.ID}); err == nil {
		t.Fatal("a switchover to the primary itself succeeded")
	}
	if _, err := groups.Switchover(within(t), &pb.SwitchoverRequest{To: "nobody"}); err == nil {
		t.Fatal("a switchover to an unknown node succeeded")
	}
}

func TestSwitchover_TargetCannotServe(t *testing.T) {
	t.Parallel()
	c := New(t, Options{})
	c.WaitReady()
	first, _ := c.WaitPrimary(0)
	to := c.Others(first)[0]
	to.Instance.RefusePromotion(true)
	groups := pb.NewGroupServiceClient(dial(t, first))
	if _, err := groups.Switchover(within(t), &pb.SwitchoverRequest{To: to.ID}); err == nil {
		t.Fatal("a switchover to an instance that refuses succeeded")
	}
	// Never to nobody.
	if p, _ := c.WaitPrimary(0); p == to {
		t.Fatalf("%s serves although it refuses", to.ID)
	}
}

func TestFailoverOrdered(t *testing.T) {
	t.Parallel()
	c := New(t, Options{})
	c.WaitReady()
	groups := pb.NewGroupServiceClient(dial(t, c.Members[0]))
	ordered(t, c, func(first *Member, epoch uint64) error {
		reply, err := groups.Failover(within(t), &pb.FailoverRequest{Reason: "test"})
		if err != nil {
			return err
		}
		if tr := reply.GetTransition(); tr.GetKind() != pb.TransitionKind_TRANSITION_KIND_FORCED || tr.GetTo() == first.ID {
			t.Fatalf("transition %v", tr)
		}
		c.WaitPrimary(epoch)
		return nil
	})
}

func TestPause_StopsAutomaticFailover(t *testing.T) {
	t.Parallel()
	c := New(t, Options{})
	c.WaitReady()
	first, epoch := c.WaitPrimary(0)
	other := c.Others(first)[0]
	groups := pb.NewGroupServiceClient(dial(t, other))
	if _, err := groups.Pause(within(t), &pb.PauseRequest{Reason: "maintenance"}); err != nil {
		t.Fatal(err)
	}
	first.Instance.Kill()
	waitVacant(t, c, other)
	// The same instance may come back, nobody else.
	first.Instance.Restart()
	p, next := c.WaitPrimary(epoch)
	if p != first {
		t.Fatalf("%s took over a paused group", p.ID)
	}
	first.Instance.Kill()
	waitVacant(t, c, other)
	if _, err := groups.Resume(within(t), &pb.ResumeRequest{}); err != nil {
		t.Fatal(err)
	}
	if p, _ := c.WaitPrimary(next); p == first {
		t.Fatal("the dead instance is primary")
	}
}

func waitVacant(t *testing.T, c *Cluster, m *Member) {
	t.Helper()
	f, err := m.Node().Machine().Subscribe(m.Node().Machine().Revision())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx := within(t)
	for {
		if g, _ := m.Node().Machine().Group(hastate.DefaultGroup); g.GetPhase() == pb.GroupPhase_GROUP_PHASE_VACANT {
			return
		}
		if _, err := f.Next(ctx); err != nil {
			t.Fatalf("wait for a vacant group: %v", err)
		}
	}
}

func TestSessions_ExactlyOnceOverPartitions(t *testing.T) {
	t.Parallel()
	c := New(t, Options{NoInstances: true})
	c.WaitLeader()
	sessions := c.Client().Sessions(hastate.DefaultGroup)
	ctx := within(t)
	var revision uint64
	for i := range 30 {
		if i%10 == 5 {
			leader := c.WaitLeader()
			c.Network.Isolate(raftID(leader))
			defer c.Network.Heal()
		}
		if i%10 == 9 {
			c.Network.Heal()
		}
		r, err := sessions.Put(ctx, &pb.PutRequest{
			Session: &pb.Session{Id: "s", Value: []byte{byte(i)}}, IfRevision: revision, IfAbsent: revision == 0,
		})
		if err != nil {
			t.Fatalf("put %d: %v", i, err)
		}
		revision = r.GetRevision()
	}
	s, err := sessions.Get(ctx, "s", pb.ReadLevel_READ_LEVEL_LINEARIZABLE)
	if err != nil || s.GetValue()[0] != 29 || s.GetRevision() != revision {
		t.Fatalf("got %v, %v", s, err)
	}
}

func TestSessions_StaleEpochIsFenced(t *testing.T) {
	t.Parallel()
	c := New(t, Options{})
	c.WaitReady()
	first, epoch := c.WaitPrimary(0)
	sessions := c.Client().Sessions(hastate.DefaultGroup)
	if _, err := sessions.Put(within(t), &pb.PutRequest{Session: &pb.Session{Id: "s", Epoch: epoch}}); err != nil {
		t.Fatal(err)
	}
	first.Instance.Kill()
	_, next := c.WaitPrimary(epoch)
	_, err := sessions.Put(within(t), &pb.PutRequest{Session: &pb.Session{Id: "s", Epoch: epoch}})
	var fenced *hastate.FencedError
	if !errors.As(err, &fenced) || fenced.NewestEpoch != next {
		t.Fatalf("got %v, want fenced by %d", err, next)
	}
}

func TestWriteWithoutQuorum(t *testing.T) {
	t.Parallel()
	c := New(t, Options{NoInstances: true})
	leader := c.WaitLeader()
	for _, m := range c.Others(leader) {
		m.Stop()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*Calm.Heartbeat)
	defer cancel()
	_, err := pb.NewSessionServiceClient(dial(t, leader)).Put(ctx, &pb.PutRequest{Session: &pb.Session{Group: "default", Id: "s"}})
	err = hastate.FromStatus(err)
	if !errors.Is(err, hastate.ErrNoLeader) && !errors.Is(err, hastate.ErrNotLeader) && !errors.Is(err, hastate.ErrOutcomeUnknown) && !errors.Is(err, context.DeadlineExceeded) && err == nil {
		t.Fatalf("got %v", err)
	}
}
