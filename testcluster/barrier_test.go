// SPDX-License-Identifier: Apache-2.0

package testcluster

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/transport"
)

// A new leader has entries that were committed before its term and that it does
// not know to be committed. Until an entry of its own term is applied it answers
// no linearizable read and looks for no primary: TestBarrier fails without the
// barrier in runAsLeader.
func TestBarrier(t *testing.T) {
	t.Parallel()
	c := New(t, Options{})
	c.WaitReady()
	shown := false
	for try := 0; try < tries && !shown && !t.Failed(); try++ {
		old, epoch := c.WaitPrimary(0)
		s := begin(t, c, old, try)
		others := c.Others(old)
		next, third := others[0], others[1]
		if s.commitUnknownTo(next, third) {
			shown = s.leadWithoutCommit(next, third)
		}
		c.Network.Heal()
		for _, m := range c.Members {
			m.Log.Heal()
		}
		c.WaitLeader()
		if !shown {
			epoch = 0 // the lease may not have run out
		}
		c.WaitPrimary(epoch)
	}
	if !shown && !t.Failed() {
		t.Skipf("the scene did not come about in %d tries: nothing shown", tries)
	}
}

// commitUnknownTo lets the old leader acknowledge "new" with the vote of next,
// which has the entry and does not know that it is committed. The third has
// nothing of it.
func (s *scene) commitUnknownTo(next, third *Member) bool {
	s.t.Helper()
	n := s.c.Network
	n.CutBoth(raftID(s.old), raftID(third))
	next.Log.Stall()
	conn := dial(s.t, s.old)
	ctx, cancel := context.WithTimeout(s.t.Context(), 4*Calm.Heartbeat)
	defer cancel()
	acknowledged := make(chan error, 1)
	go func() {
		_, err := pb.NewSessionServiceClient(conn).Put(ctx, &pb.PutRequest{Session: &pb.Session{Id: s.key, Value: []byte("new")}})
		acknowledged <- err
	}()
	before := next.Node().Raft().LastIndex()
	wait.Until(s.t, Patience, func() error {
		if !next.Log.Hanging() {
			return fmt.Errorf("%s writes nothing to its log", next.ID)
		}
		return nil
	})
	// What has left the old leader by now tells of no commit of these entries:
	// only next can make one, and has not written them yet.
	n.Cut(raftID(s.old), raftID(next))
	next.Log.Heal()
	if err := <-acknowledged; err != nil {
		s.t.Logf("the entry was not acknowledged: %v", err)
		return false
	}
	n.Isolate(raftID(s.old))
	got, _, err := next.Node().Machine().Session("default", s.key)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(got.GetValue()) == "old" && next.Node().Raft().LastIndex() > before
}

const (
	canvassKind  = pb.PeerService_Canvass_FullMethodName
	nominateKind = pb.PeerService_Nominate_FullMethodName
)

// leadWithoutCommit lets next lead while nobody confirms its entries to it, until
// the lease of the primary has run out for it.
func (s *scene) leadWithoutCommit(next, third *Member) bool {
	s.t.Helper()
	n := s.c.Network
	asked := func() uint64 {
		return n.Sent(raftID(next), raftID(third), canvassKind) + n.Sent(raftID(next), raftID(third), nominateKind)
	}
	before := asked()
	held := n.HoldResponses(raftID(next), raftID(third), transport.KindAppend, transport.KindPipeline)
	defer held.Release()
	r := next.Node().Raft()
	wait.Until(s.t, Patience, func() error {
		if r.State() != raft.Leader {
			return fmt.Errorf("%s does not lead", next.ID)
		}
		return nil
	})
	term := r.CurrentTerm()
	conns := []*Member{next, third}
	for end := time.Now().Add(Calm.Lease + Calm.Lease/4); time.Now().Before(end); {
		for _, m := range conns {
			ctx, cancel := context.WithTimeout(s.t.Context(), Calm.Heartbeat/2)
			got, err := read(ctx, dial(s.t, m), s.key)
			cancel()
			if err == nil {
				s.t.Errorf("%s answers a linearizable read with %q before %s has committed an entry of its term", m.ID, got, next.ID)
				return false
			}
		}
	}
	if r.State() != raft.Leader || r.CurrentTerm() != term || held.Count() == 0 {
		return false
	}
	if now := asked(); now != before {
		s.t.Errorf("%s asked %d times for a candidate before it has committed an entry of its term", next.ID, now-before)
	}
	held.Release()
	wait.Until(s.t, Patience, func() error {
		ctx, cancel := context.WithTimeout(s.t.Context(), Patience)
		defer cancel()
		got, err := read(ctx, dial(s.t, next), s.key)
		if err == nil && got != "new" {
			s.t.Fatalf("%s answers with %q after \"new\" was acknowledged", next.ID, got)
		}
		return err
	})
	wait.Until(s.t, Patience, func() error {
		if asked() == before {
			return errors.New("nobody is asked to be primary")
		}
		return nil
	})
	return true
}
