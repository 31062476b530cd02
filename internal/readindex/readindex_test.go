// SPDX-License-Identifier: Apache-2.0

package readindex

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/wait"
)

type answer struct {
	index uint64
	err   error
}

// ask starts one request.
func ask(ctx context.Context, l *Leader) chan answer {
	got := make(chan answer, 1)
	go func() {
		index, err := l.Index(ctx)
		got <- answer{index, err}
	}()
	return got
}

func wantOpen(t *testing.T, w *world, got chan answer) {
	t.Helper()
	w.mu.Lock()
	n := w.looked + 3
	w.mu.Unlock()
	wait.Until(t, 5*time.Second, w.looks(n))
	select {
	case a := <-got:
		t.Fatalf("answered %v without evidence", a)
	default:
	}
}

func TestLeader_SingleVoter(t *testing.T) {
	w := newWorld("n1")
	l := newLeader(t, w, time.Second)
	runUntilCleanup(t, l.Run)
	if index, err := l.Index(t.Context()); err != nil || index != 7 {
		t.Fatalf("got %d, %v", index, err)
	}
}

// TestLeader_StaleEvidence: answers to appends sent before the request do not
// count, even if they come after it (X1 in the notes on Raft).
func TestLeader_StaleEvidence(t *testing.T) {
	w := newWorld("n1", "n2", "n3")
	w.sent["n2"] = w.clock.Now()
	w.clock.Advance(time.Millisecond)
	l := newLeader(t, w, 10*time.Second)
	runUntilCleanup(t, l.Run)
	got := ask(t.Context(), l)
	<-w.kicks
	wantOpen(t, w, got)
	w.answer("n3", w.clock.Now()-1) // sent before, answered now
	wantOpen(t, w, got)
	w.answer("n3", w.clock.Now())
	if a := <-got; a.err != nil || a.index != 7 {
		t.Fatalf("got %v", a)
	}
}

// TestLeader_NonvoterEvidence: only voters count (X2).
func TestLeader_NonvoterEvidence(t *testing.T) {
	w := newWorld("n1", "n2", "n3")
	w.servers = append(w.servers, raft.Server{ID: "r4", Suffrage: raft.Nonvoter}, raft.Server{ID: "r5", Suffrage: raft.Staging})
	l := newLeader(t, w, 10*time.Second)
	runUntilCleanup(t, l.Run)
	got := ask(t.Context(), l)
	<-w.kicks
	w.answer("r4", w.clock.Now())
	w.answer("r5", w.clock.Now())
	wantOpen(t, w, got)
	w.answer("n2", w.clock.Now())
	if a := <-got; a.err != nil {
		t.Fatal(a.err)
	}
}

// TestLeader_Deposed: a leader that lost its term answers nobody, even with all
// the evidence and even if it leads again.
func TestLeader_Deposed(t *testing.T) {
	for name, depose := range map[string]func(w *world){
		"follower":     func(w *world) { w.state = raft.Follower },
		"other term":   func(w *world) { w.term = 4; w.state = raft.Follower },
		"leader again": func(w *world) { w.term = 5 },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld("n1", "n2", "n3")
			l := newLeader(t, w, 10*time.Second)
			runUntilCleanup(t, l.Run)
			got := ask(t.Context(), l)
			<-w.kicks
			// The evidence of the former term is complete at the same moment.
			now := w.clock.Now()
			w.locked(func() {
				depose(w)
				w.sent["n2"], w.sent["n3"] = now, now
			})
			a := <-got
			if !errors.Is(a.err, hastate.ErrNoLeader) {
				t.Fatalf("a deposed leader answered %v", a)
			}
		})
	}
}

func TestLeader_Barrier(t *testing.T) {
	w := newWorld("n1", "n2", "n3")
	w.barrier = 2 // of a former time as leader
	w.sent["n2"] = w.clock.Now()
	l := newLeader(t, w, 10*time.Second)
	runUntilCleanup(t, l.Run)
	got := ask(t.Context(), l)
	select {
	case <-w.kicks:
		t.Fatal("a round began before the barrier")
	case <-time.After(20 * time.Millisecond):
	}
	w.locked(func() { w.barrier, w.commit = 3, 9 })
	if a := <-got; a.err != nil || a.index != 9 {
		t.Fatalf("got %v", a)
	}
	w.locked(func() { w.barrier, w.term, w.commit = 0, 4, 10 })
	short := newLeader(t, w, 30*time.Millisecond)
	runUntilCleanup(t, short.Run)
	if _, err := short.Index(t.Context()); !errors.Is(err, hastate.ErrNoLeader) {
		t.Fatalf("got %v", err)
	}
}

// TestLeader_RequestsShareTheNextRound: a request never gets the index of a
// round that began before it.
func TestLeader_RequestsShareTheNextRound(t *testing.T) {
	w := newWorld("n1", "n2", "n3")
	l := newLeader(t, w, 10*time.Second)
	runUntilCleanup(t, l.Run)
	first := ask(t.Context(), l)
	<-w.kicks
	w.clock.Advance(time.Millisecond)
	w.locked(func() { w.commit = 20 }) // a write is acknowledged
	const n = 50
	var later []chan answer
	for range n {
		later = append(later, ask(t.Context(), l))
	}
	w.answer("n2", w.clock.Now().Add(-time.Millisecond))
	if a := <-first; a.err != nil || a.index != 7 {
		t.Fatalf("first round: %v", a)
	}
	<-w.kicks
	w.answer("n2", w.clock.Now())
	for _, got := range later {
		if a := <-got; a.err != nil || a.index != 20 {
			t.Fatalf("a later request got %v", a)
		}
	}
	if extra := len(w.kicks); extra > n/2 {
		t.Fatalf("%d rounds for %d requests", extra, n)
	}
}

func TestLeader_TimesOut(t *testing.T) {
	w := newWorld("n1", "n2", "n3")
	l := newLeader(t, w, 20*time.Millisecond)
	runUntilCleanup(t, l.Run)
	if _, err := l.Index(t.Context()); !errors.Is(err, hastate.ErrNoLeader) {
		t.Fatalf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Index(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}

// TestLeader_LastCommand: the state machine never sees Raft's own entries.
func TestLeader_LastCommand(t *testing.T) {
	w := newWorld("n1")
	w.own = map[uint64]raft.LogType{7: raft.LogBarrier, 6: raft.LogNoop, 5: raft.LogConfiguration}
	l := newLeader(t, w, time.Second)
	runUntilCleanup(t, l.Run)
	if index, err := l.Index(t.Context()); err != nil || index != 4 {
		t.Fatalf("got %d, %v; want the command below Raft's own entries", index, err)
	}
	w.locked(func() { w.own[5] = 255 }) // compacted
	if index, err := l.Index(t.Context()); err != nil || index != 5 {
		t.Fatalf("got %d, %v", index, err)
	}
}

func newNode(t *testing.T, w *world, peers fakePeers) *Node {
	t.Helper()
	n, err := New(NodeConfig{Raft: w, Peers: peers, Leader: newLeader(t, w, time.Second), State: w})
	if err != nil {
		t.Fatal(err)
	}
	runUntilCleanup(t, n.Run)
	return n
}

func TestNode_Read(t *testing.T) {
	leaderWorld, followerWorld := newWorld("n1"), newWorld("n1", "n2")
	followerWorld.state = raft.Follower
	peers := fakePeers{}
	leader, follower := newNode(t, leaderWorld, peers), newNode(t, followerWorld, peers)
	peers.serve(t, "n1", &peerServer{node: leader})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := leader.Read(t.Context()); err != nil {
				t.Error(err)
			}
			if err := follower.Read(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := followerWorld.waitedFor(); len(got) != 20 || got[0] != 7 {
		t.Fatalf("the follower waited for %v", got)
	}
}

// A leader that hangs is not waited for once another one leads.
func TestNode_ReadLeavesAFormerLeader(t *testing.T) {
	leaderWorld, followerWorld := newWorld("n1"), newWorld("n1", "n2")
	followerWorld.state = raft.Follower
	peers, hung := fakePeers{}, &hungServer{asked: make(chan struct{}, 1)}
	leader, follower := newNode(t, leaderWorld, peers), newNode(t, followerWorld, peers)
	follower.cfg.Ask = time.Hour
	peers.serve(t, "n1", hung)
	peers.serve(t, "n2", &peerServer{node: leader})
	done := make(chan error, 1)
	go func() { done <- follower.Read(t.Context()) }()
	<-hung.asked
	followerWorld.locked(func() { followerWorld.leader = "n2" })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestNode_ReadRetries(t *testing.T) {
	w := newWorld("n1")
	w.state, w.leader = raft.Follower, ""
	n := newNode(t, w, fakePeers{})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	err := n.Read(ctx)
	if !errors.Is(err, hastate.ErrNoLeader) {
		t.Fatalf("got %v", err)
	}
	if got := w.waitedFor(); len(got) != 0 {
		t.Fatalf("a failed read waited for %v", got)
	}
	done := make(chan error, 1)
	go func() { done <- n.Read(t.Context()) }()
	w.locked(func() { w.state, w.leader = raft.Leader, "n1" })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	// A node that does not lead does not answer others, nor does it ask on.
	w.locked(func() { w.state, w.leader = raft.Follower, "n2" })
	if _, err := n.ServeReadIndex(t.Context()); !errors.Is(err, hastate.ErrNoLeader) {
		t.Fatal(fmt.Errorf("served without leading: %w", err))
	}
}
