// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/internal/wait"
)

func TestClusterPartition(t *testing.T) {
	c := newCluster(t, 3)
	c.apply(200)
	c.equal()

	// While it leads, evidence follows the clock.
	fresh := func(n *raftNode, t0 clock.Instant) error {
		if at, ok := n.transport.QuorumSentAt(n.CurrentTerm(), c.voters()); !ok || at < t0 {
			return fmt.Errorf("the newest evidence is %d before the question", t0-at)
		}
		return nil
	}
	t0 := clock.Boot{}.Now()
	var old *raftNode
	wait.Until(t, long, func() error {
		old = c.leader()
		return fresh(old, t0)
	})

	c.net.Isolate(old.id)
	cut := clock.Boot{}.Now() // whatever is answered now was sent before
	c.leader(old)
	if err := fresh(old, cut); err == nil {
		t.Error("a leader that nobody hears has evidence")
	}
	c.apply(200, old)
	wait.Until(t, long, func() error {
		if old.State() == raft.Leader {
			return errors.New("the old leader still leads")
		}
		return nil
	})

	c.net.Heal()
	c.apply(10)
	c.equal()
}

func TestClusterOneWayPartition(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	f := c.followers(l)[0]
	// Its answers are lost: the leader must not count them, and goes on with
	// the other.
	c.net.Cut(f.id, l.id)
	c.apply(50)
	c.net.Heal()
	c.apply(50)
	c.equal()
}

// raft#612: a follower that rejects an append in the middle of a pipeline is
// replicated to again.
func TestClusterPipelineIsNotWedged(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	c.apply(50)
	c.equal()
	f := c.followers(l)[0]
	for range 3 {
		f.log.broken.Store(true)
		failed := f.log.failed.Load()
		c.apply(500)
		wait.Until(t, long, func() error {
			if f.log.failed.Load() == failed {
				return errors.New("the follower has rejected nothing")
			}
			return nil
		})
		f.log.broken.Store(false)
		c.apply(500)
		c.equal()
	}
	var sent uint64
	for _, n := range c.nodes {
		sent += c.net.Sent(n.id, f.id, KindPipeline)
	}
	if sent == 0 {
		t.Error("no pipeline was used")
	}
}

// A follower that was away gets what it missed, as a snapshot if need be, and
// then appends.
func TestClusterSnapshot(t *testing.T) {
	c := newCluster(t, 3)
	f := c.followers(c.leader())[0]
	c.net.Isolate(f.id)
	c.apply(300, f)
	for _, n := range c.followers(f) { // whoever leads then
		wait.Until(t, long, func() error { return n.Snapshot().Error() })
	}
	c.apply(20, f)
	c.net.Heal()
	c.equal()
	f.fsm.mu.Lock()
	restored := f.fsm.restored
	f.fsm.mu.Unlock()
	if restored == 0 {
		t.Error("no snapshot was installed")
	}
	c.apply(20)
	c.equal()
}

func TestClusterLeadershipTransfer(t *testing.T) {
	c := newCluster(t, 3)
	c.apply(20)
	var from, to *raftNode
	wait.Until(t, long, func() error {
		from = c.leader()
		to = c.followers(from)[0]
		return from.LeadershipTransferToServer(to.id, raft.ServerAddress(to.id)).Error()
	})
	if c.net.Sent(from.id, to.id, KindTimeoutNow) == 0 {
		t.Error("the leadership went another way")
	}
	c.apply(20)
	c.equal()
}

// A node that is not fit to lead loses its leadership, and cannot get it back.
func TestClusterLeaderIsWithheld(t *testing.T) {
	c := newCluster(t, 3)
	old := c.leader()
	old.stalled.Store(true)
	c.apply(20, old)
	if old.State() == raft.Leader {
		t.Error("it still leads")
	}
	old.stalled.Store(false)
	c.equal()
}

// Shutdown does not wait for peers that are away.
func TestClusterShutdownWhileParked(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	f := c.followers(l)[0]
	c.net.Refuse(l.id, f.id)
	c.apply(20)
	p, err := l.transport.peer(f.id)
	if err != nil {
		t.Fatal(err)
	}
	wait.Until(t, long, func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if !p.unreachable {
			return errors.New("nothing waits for it")
		}
		return nil
	})
	done := make(chan error, 1)
	go func() { done <- l.Shutdown().Error() }()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(long):
		t.Fatal("shutdown hangs")
	}
}
