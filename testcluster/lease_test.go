// SPDX-License-Identifier: Apache-2.0

package testcluster

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"github.com/hastate/hastate/internal/wait"
	"github.com/hastate/hastate/transport"
)

// These tests set scenes in which raft's VerifyLeader is wrong, or in which a
// new leader comes sooner after it than a heartbeat timeout, and look whether
// anything of ours believes it. Leases are the monitor's business: it fails the
// test if one is valid while another is, or after the commit of a newer grant.

// tries bounds how often a scene is set up until it comes about.
const tries = 6

// scene is one attempt.
type scene struct {
	t *testing.T
	c *Cluster
	// old leads at first, next after it.
	old, next *Member
	term      uint64
	key       string
}

// begin makes the given member lead, with a value of this try in the state.
func begin(t *testing.T, c *Cluster, old *Member, try int) *scene {
	t.Helper()
	s := &scene{t: t, c: c, old: old, key: fmt.Sprintf("try-%d", try)}
	makeLead(t, c, old)
	put(t, old, s.key, "old")
	s.term = old.Node().Raft().CurrentTerm()
	return s
}

// fooled reports whether the old leader still takes itself for one.
func (s *scene) leadsOn() bool {
	r := s.old.Node().Raft()
	return r.State() == raft.Leader && r.CurrentTerm() == s.term
}

// reads asks members linearizably, all at once, and returns what to call to have
// the answers judged: the new value or an error are right, the old value is not.
func (s *scene) reads(among ...*Member) (judge func()) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*Calm.Heartbeat)
	done := make(chan error, len(among))
	for _, m := range among {
		conn := dial(s.t, m)
		go func(conn grpc.ClientConnInterface) {
			got, err := read(ctx, conn, s.key)
			if err == nil && got != "new" {
				done <- fmt.Errorf("a linearizable read at %s is answered with %q after \"new\" was acknowledged", m.ID, got)
				return
			}
			done <- nil
		}(conn)
	}
	return func() {
		s.t.Helper()
		defer cancel()
		for range among {
			if err := <-done; err != nil {
				s.t.Error(err)
			}
		}
	}
}

// elected waits until one of the others leads and has committed a new value,
// calling meanwhile over and over; nil if that takes longer than patience.
func (s *scene) elected(patience time.Duration, meanwhile func(), among ...*Member) bool {
	s.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); time.Now().Before(end); <-tick.C {
		meanwhile()
		for _, m := range among {
			if !m.Node().Leading() {
				continue
			}
			s.next = m
			ctx, cancel := context.WithTimeout(s.t.Context(), time.Until(end))
			defer cancel()
			return tryPut(ctx, dial(s.t, m), s.key, "new") == nil
		}
	}
	return false
}

// mend ends a try: all is in order and somebody else's epoch serves.
func (s *scene) mend(epoch uint64, elsewhere ...*Member) {
	s.t.Helper()
	s.c.WaitPrimary(epoch, elsewhere...)
	s.c.Network.Heal()
	s.c.WaitLeader()
	s.c.WaitPrimary(epoch)
}

func waitHeld(t *testing.T, held ...*transport.Held) {
	t.Helper()
	wait.Until(t, Patience, func() error {
		for _, h := range held {
			if h.Count() == 0 {
				return errors.New("no response is held yet")
			}
		}
		return nil
	})
}

// verify asks raft whether its leader leads, answers being under way that are
// delivered by deliver only after it was asked.
func verify(m *Member, deliver func()) bool {
	future := m.Node().Raft().VerifyLeader()
	timer := time.NewTimer(20 * time.Millisecond)
	defer timer.Stop()
	<-timer.C // VerifyLeader does not say when it has begun
	deliver()
	return future.Error() == nil
}

// X1: a deposed leader finds an answer in the network that is older than the
// question and takes it for one to it.
func TestLease_DeposedLeaderWithAnswersUnderWay(t *testing.T) {
	t.Parallel()
	c := New(t, Options{})
	c.WaitReady()
	shown := false
	for try := 0; try < tries && !shown && !t.Failed(); try++ {
		old, epoch := c.WaitPrimary(0)
		s := begin(t, c, old, try)
		others := c.Others(old)
		first := c.Network.HoldResponses(raftID(old), raftID(others[0]), transport.KindAppend, transport.KindPipeline)
		second := c.Network.HoldResponses(raftID(old), raftID(others[1]), transport.KindAppend, transport.KindPipeline)
		waitHeld(t, first, second)
		c.Network.Isolate(raftID(old))
		// The first answer counts as a contact: the old leader goes on for another
		// LeaderLease although nobody hears it any more.
		due := time.Now().Add(Calm.LeaderLease * 9 / 10)
		if s.elected(4*Calm.Heartbeat, func() {
			if time.Now().After(due) {
				first.Release()
			}
		}, others...) && s.leadsOn() {
			judge := s.reads(old)
			shown = verify(old, second.Release) && s.leadsOn()
			judge()
		}
		first.Release()
		second.Release()
		s.mend(epoch, others...)
	}
	if !shown {
		t.Skipf("in %d tries VerifyLeader was never wrong about a deposed leader: nothing shown", tries)
	}
}

// X2: replicas vote for a deposed leader in VerifyLeader.
func TestLease_OnlyReplicasReachable(t *testing.T) {
	t.Parallel()
	c := New(t, Options{})
	c.WaitReady()
	replicas := []*Member{c.Join("r1", true), c.Join("r2", true)}
	c.WaitReady()
	voters := c.Members[:3]
	shown := false
	for try := 0; try < tries && !shown && !t.Failed(); try++ {
		// The primary is a replica on the wrong side.
		epoch := makePrimary(t, c, replicas[0])
		old := voters[try%len(voters)]
		s := begin(t, c, old, try)
		var others []*Member
		for _, v := range voters {
			if v != old {
				others = append(others, v)
			}
		}
		contact := c.Network.HoldResponses(raftID(old), raftID(others[0]), transport.KindAppend, transport.KindPipeline)
		waitHeld(t, contact)
		for _, a := range append([]*Member{old}, replicas...) {
			for _, b := range others {
				c.Network.CutBoth(raftID(a), raftID(b))
			}
		}
		due := time.Now().Add(Calm.LeaderLease * 9 / 10)
		if s.elected(4*Calm.Heartbeat, func() {
			if time.Now().After(due) {
				contact.Release()
			}
		}, others...) && s.leadsOn() {
			judge := s.reads(append([]*Member{old}, replicas...)...)
			shown = verify(old, func() {}) && s.leadsOn()
			judge()
		}
		contact.Release()
		s.mend(epoch, others...)
	}
	if !shown {
		t.Skipf("in %d tries replicas never vouched for a deposed leader: nothing shown", tries)
	}
}

// X3: what a majority has promised to a leader does not bind the leader's own
// vote: another one leads within a heartbeat timeout of a right VerifyLeader. A
// lease that was taken to be exclusive for that long would not be.
func TestLease_NewLeaderSoonAfterVerifyLeader(t *testing.T) {
	t.Parallel()
	c := New(t, Options{})
	c.WaitReady()
	shown := false
	for try := 0; try < tries && !shown && !t.Failed(); try++ {
		old, epoch := c.WaitPrimary(0)
		s := begin(t, c, old, try)
		others := c.Others(old)
		if !verify(old, func() {}) {
			continue
		}
		verified := time.Now()
		if err := old.Node().TransferLeadership(within(t), others[0].ID); err != nil {
			continue
		}
		c.Network.Isolate(raftID(old))
		if s.elected(Patience, func() {}, others...) {
			_, holds := primary(old.Node())
			shown = time.Since(verified) < Calm.Heartbeat && holds
			s.reads(old)()
		}
		s.mend(epoch, others...)
	}
	if !shown {
		t.Skipf("in %d tries no leader came within a heartbeat timeout: nothing shown", tries)
	}
}
