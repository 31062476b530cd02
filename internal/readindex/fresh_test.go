// SPDX-License-Identifier: Apache-2.0

package readindex

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// lagging is a state that gets to an index when the test says so.
type lagging struct {
	asked chan uint64
	there chan struct{}
}

func newLagging() lagging { return lagging{make(chan uint64), make(chan struct{})} }

func (s lagging) WaitApplied(ctx context.Context, index uint64) error {
	select {
	case s.asked <- index:
	case <-ctx.Done():
	}
	select {
	case <-s.there:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// slowServer takes a minute of the asking node's time for an answer, and gets it
// from the state as it was at first.
type slowServer struct {
	peerServer
	clock *clock.Fake
}

func (s *slowServer) ReadIndex(ctx context.Context, req *pb.ReadIndexRequest) (*pb.ReadIndexResponse, error) {
	res, err := s.peerServer.ReadIndex(ctx, req)
	s.clock.Advance(time.Minute)
	return res, err
}

// newFollower is a node that asks a leader, whose log is committed up to 7.
func newFollower(t *testing.T, state Applied) (*world, *Node) {
	t.Helper()
	peers, w := fakePeers{}, newWorld("n1", "n2")
	w.state = raft.Follower
	peers.serve(t, "n1", &slowServer{peerServer{node: newNode(t, newWorld("n1"), peers)}, &w.clock})
	n, err := New(NodeConfig{Raft: w, Peers: peers, Leader: newLeader(t, w, time.Second), State: state})
	if err != nil {
		t.Fatal(err)
	}
	runUntilCleanup(t, n.Run)
	return w, n
}

func wantFresh(t *testing.T, n *Node, at clock.Instant, ok bool, when string) {
	t.Helper()
	if a, o := n.FreshAsOf(); a != at || o != ok {
		t.Fatalf("%s: fresh as of %v, %v, want %v, %v", when, a, o, at, ok)
	}
}

// TestNode_FreshOnlyOnceApplied: that a follower knows how far the log is committed
// makes its state no newer.
func TestNode_FreshOnlyOnceApplied(t *testing.T) {
	for name, confirm := range map[string]func(*Node, context.Context){
		"refresh": (*Node).refresh,
		"read":    func(n *Node, ctx context.Context) { _ = n.Read(ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			state := newLagging()
			w, n := newFollower(t, state)
			wantFresh(t, n, 0, false, "it has just started")
			var last clock.Instant
			for range 2 {
				began := w.clock.Now()
				done := make(chan struct{})
				go func() {
					defer close(done)
					confirm(n, t.Context())
				}()
				if index := <-state.asked; index != 7 {
					t.Fatalf("it waits for %d", index)
				}
				w.clock.Advance(time.Hour)
				wantFresh(t, n, last, last != 0, "it is catching up")
				close(state.there)
				<-done
				wantFresh(t, n, began, true, "it has caught up with where the log was when it asked")
				last = began
				state.there = make(chan struct{})
				n.cfg.State = state
			}
		})
	}
}

// TestNode_FreshAfterAFailedRound: a round that got no answer, or that did not get as
// far as the answer, shows nothing.
func TestNode_FreshAfterAFailedRound(t *testing.T) {
	state := newLagging()
	w, n := newFollower(t, state)
	w.locked(func() { w.leader = "" })
	n.refresh(t.Context())
	wantFresh(t, n, 0, false, "there was no leader to ask")
	w.locked(func() { w.leader = "n1" })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.refresh(ctx)
	}()
	<-state.asked
	cancel()
	<-done
	wantFresh(t, n, 0, false, "it did not catch up")
}

// TestNode_FreshAfterStepDown: the age goes on from the last majority that confirmed
// the former leader, and not from when it noticed.
func TestNode_FreshAfterStepDown(t *testing.T) {
	for name, look := range map[string]func(*Node, context.Context){
		"local read":    func(n *Node, _ context.Context) { n.FreshAsOf() },
		"nobody looked": (*Node).refresh,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld("n1", "n2", "n3")
			n := newNode(t, w, fakePeers{})
			look(n, t.Context())
			wantFresh(t, n, 0, false, "no majority has answered the new leader")
			last := w.clock.Now()
			w.answer("n2", last)
			w.clock.Advance(time.Minute)
			look(n, t.Context())
			w.locked(func() { w.state, w.leader = raft.Follower, "" })
			w.clock.Advance(time.Minute)
			wantFresh(t, n, last, true, "it leads no more")
			w.locked(func() { w.state, w.leader, w.barrier = raft.Leader, "n1", 0 })
			wantFresh(t, n, last, true, "it leads again, and nothing of this term is applied")
			if len(w.kicks) != 0 {
				t.Errorf("%d rounds of its own, want what is known anyway", len(w.kicks))
			}
		})
	}
}

// TestNode_KeepFresh: over and over, also when nobody reads.
func TestNode_KeepFresh(t *testing.T) {
	w, n := newFollower(t, newWorld())
	runUntilCleanup(t, func(ctx context.Context) error { return n.KeepFresh(ctx, time.Millisecond) })
	for range 3 {
		began := w.clock.Now()
		wait.Until(t, 15*time.Second, func() error {
			if at, ok := n.fresh.asOf(); !ok || at <= began {
				return fmt.Errorf("fresh as of %v, %v, want later than %v", at, ok, began)
			}
			return nil
		})
	}
}

// TestFresh_OnlyForward: a round that was overtaken takes nothing back.
func TestFresh_OnlyForward(t *testing.T) {
	var f fresh
	if _, ok := f.asOf(); ok {
		t.Fatal("known from the start")
	}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for at := clock.Instant(i + 1); at <= 8000; at += 8 {
				f.advance(at)
				if now, ok := f.asOf(); !ok || now < at {
					t.Errorf("as of %d after %d was noted", now, at)
					return
				}
			}
		})
	}
	all.Wait()
	f.advance(3)
	if at, ok := f.asOf(); !ok || at != 8000 {
		t.Fatalf("as of %d, %v", at, ok)
	}
}
