// SPDX-License-Identifier: Apache-2.0

package propose

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
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// newNode makes a node that runs until the test ends.
func newNode(t *testing.T, id raft.ServerID, r *fakeRaft, peers *fakePeers, change ...func(*NodeConfig)) *Node {
	t.Helper()
	cfg := NodeConfig{ID: id, Raft: r, Peers: peers, Local: newBatcher(t, r), Grace: 50 * time.Millisecond}
	for _, c := range change {
		c(&cfg)
	}
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	runUntilCleanup(t, n.Run)
	return n
}

// pair is a leader n1 and a follower n2 that forwards to it.
func pair(t *testing.T) (leader, follower *Node, lr, fr *fakeRaft, peers *fakePeers) {
	t.Helper()
	lr, fr, peers = newFakeRaft(t), newFakeRaft(t), &fakePeers{}
	fr.set(raft.Follower, "n1")
	leader = newNode(t, "n1", lr, peers)
	follower = newNode(t, "n2", fr, peers)
	peers.serve(t, "n1", &peerServer{node: leader})
	return leader, follower, lr, fr, peers
}

func TestNode_Forwards(t *testing.T) {
	_, follower, lr, _, _ := pair(t)
	lr.answerAll(t)
	var wg sync.WaitGroup
	for w := range 20 {
		wg.Go(func() {
			for i := range 50 {
				name := fmt.Sprintf("%d-%d", w, i)
				res, err := follower.Propose(t.Context(), named(name))
				if err != nil || res.GetMessage() != name {
					t.Errorf("propose %s: %v, %v", name, res, err)
					return
				}
			}
		})
	}
	wg.Wait()
	_, err := follower.Propose(t.Context(), named("\xff"))
	wantIs(t, err, hastate.ErrInvalid)
}

func TestNode_BrokenStream(t *testing.T) {
	lr, fr, peers := newFakeRaft(t), newFakeRaft(t), &fakePeers{}
	fr.set(raft.Follower, "n1")
	leader := newNode(t, "n1", lr, peers)
	follower := newNode(t, "n2", fr, peers)
	stop := peers.serve(t, "n1", &peerServer{node: leader})
	got := make(chan outcome, 1)
	follower.ProposeAsync(named("a"), func(res *pb.Result, err error) { got <- outcome{res, err} })
	f := lr.next()
	stop()
	wantIs(t, (<-got).err, hastate.ErrOutcomeUnknown)
	f.ok()
	// Nothing can be sent now: certainly not applied.
	_, err := follower.ProposeOnce(t.Context(), named("b"))
	wantIs(t, err, hastate.ErrNotLeader)
	var nl *hastate.NotLeaderError
	if !errors.As(err, &nl) || nl.LeaderID != "n1" {
		t.Fatalf("error does not name the leader: %v", err)
	}
}

// TestNode_LeaderHangs: a leader that takes commands and never answers is given
// up at the deadline, and left when another leads.
func TestNode_LeaderHangs(t *testing.T) {
	_, follower, lr, fr, peers := pair(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := follower.ProposeOnce(ctx, named("a"))
	wantIs(t, err, hastate.ErrOutcomeUnknown)
	stuck := lr.next()

	got := make(chan outcome, 1)
	follower.ProposeAsync(named("b"), func(res *pb.Result, err error) { got <- outcome{res, err} })
	stuck2 := lr.next()
	r3 := newFakeRaft(t)
	third := newNode(t, "n3", r3, peers)
	r3.answerAll(t)
	peers.serve(t, "n3", &peerServer{node: third})
	fr.set(raft.Follower, "n3")
	res, err := follower.Propose(t.Context(), named("c"))
	if err != nil || res.GetMessage() != "c" {
		t.Fatalf("propose at the new leader: %v, %v", res, err)
	}
	wantIs(t, (<-got).err, hastate.ErrOutcomeUnknown)
	stuck.ok()
	stuck2.ok()
}

func TestNode_NoLeader(t *testing.T) {
	r := newFakeRaft(t)
	r.set(raft.Follower, "")
	n := newNode(t, "n1", r, &fakePeers{})
	_, err := n.ProposeOnce(t.Context(), named("a"))
	wantIs(t, err, hastate.ErrNoLeader)
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Millisecond)
	defer cancel()
	_, err = n.Propose(ctx, named("a"))
	wantIs(t, err, hastate.ErrNoLeader)
}

func TestNode_RetriesWhenCertain(t *testing.T) {
	r := newFakeRaft(t)
	r.set(raft.Follower, "")
	n := newNode(t, "n1", r, &fakePeers{})
	got := make(chan outcome, 1)
	go func() {
		res, err := n.Propose(t.Context(), named("a"))
		got <- outcome{res, err}
	}()
	r.set(raft.Leader, "n1")
	r.next().fail(raft.ErrLeadershipTransferInProgress)
	r.next().ok()
	if o := <-got; o.err != nil {
		t.Fatal(o.err)
	}
}

// TestNode_UnknownIsRetriedOnlyWithRequestID: without one a repetition could
// apply the command twice.
func TestNode_UnknownIsRetriedOnlyWithRequestID(t *testing.T) {
	r := newFakeRaft(t)
	n := newNode(t, "n1", r, &fakePeers{})
	propose := func(ctx context.Context, cmd *pb.Command) chan outcome {
		got := make(chan outcome, 1)
		go func() {
			res, err := n.Propose(ctx, cmd)
			got <- outcome{res, err}
		}()
		return got
	}
	got := propose(t.Context(), named("a"))
	r.next().fail(raft.ErrLeadershipLost)
	wantIs(t, (<-got).err, hastate.ErrOutcomeUnknown)
	if len(r.futures) != 0 {
		t.Fatal("a command without a request id was proposed twice")
	}

	cmd := named("b")
	cmd.Request = &pb.RequestId{Client: 1, Seq: 1}
	got = propose(t.Context(), cmd)
	r.next().fail(raft.ErrLeadershipLost)
	r.next().ok()
	if o := <-got; o.err != nil {
		t.Fatal(o.err)
	}

	// An attempt that certainly failed does not make an earlier one certain.
	ctx, cancel := context.WithCancel(t.Context())
	got = propose(ctx, cmd)
	r.next().fail(raft.ErrLeadershipLost)
	r.set(raft.Follower, "")
	wait.Until(t, 5*time.Second, func() error {
		if _, err := n.ProposeOnce(ctx, named("probe")); !IsNotLeader(err) {
			return err
		}
		return nil
	})
	cancel()
	wantIs(t, (<-got).err, hastate.ErrOutcomeUnknown)
}

func TestNode_ForwardQueueFullAtLeader(t *testing.T) {
	lr, fr, peers := newFakeRaft(t), newFakeRaft(t), &fakePeers{}
	fr.set(raft.Follower, "n1")
	leader := newNode(t, "n1", lr, peers, func(c *NodeConfig) {
		c.Local = newBatcher(t, lr, func(b *BatcherConfig) { b.QueueCommands = 1 })
	})
	follower := newNode(t, "n2", fr, peers)
	peers.serve(t, "n1", &peerServer{node: leader})
	got := make(chan outcome, 16)
	done := func(res *pb.Result, err error) { got <- outcome{res, err} }
	var futures []*fakeFuture
	for range MaxInFlight {
		follower.ProposeAsync(named("a"), done)
		futures = append(futures, lr.next())
	}
	for range 2 {
		follower.ProposeAsync(named("b"), done)
	}
	wantIs(t, (<-got).err, hastate.ErrLimit)
	for _, f := range futures {
		f.ok()
	}
	lr.next().ok()
	for range 3 {
		if o := <-got; o.err != nil {
			t.Fatal(o.err)
		}
	}
}
