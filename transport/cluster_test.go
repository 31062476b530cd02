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
	old := c.leader()
	c.apply(old, 200)
	c.equal(old)

	// While it leads, evidence follows the clock.
	fresh := func(n *raftNode, t0 clock.Instant) error {
		if at, ok := n.transport.QuorumSentAt(n.CurrentTerm(), c.voters()); !ok || at < t0 {
			return fmt.Errorf("the newest evidence is %d before the question", t0-at)
		}
		return nil
	}
	t0 := clock.Boot{}.Now()
	wait.Until(t, long, func() error { return fresh(old, t0) })

	c.net.Isolate(old.id)
	cut := clock.Boot{}.Now() // whatever is answered now was sent before
	next := c.leader(old)
	if err := fresh(old, cut); err == nil {
		t.Error("a leader that nobody hears has evidence")
	}
	c.apply(next, 200)
	wait.Until(t, long, func() error {
		if old.State() == raft.Leader {
			return errors.New("the old leader still leads")
		}
		return nil
	})

	c.net.Heal()
	c.apply(c.leader(), 10)
	c.equal(c.leader())
}

func TestClusterOneWayPartition(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	f := c.followers(l)[0]
	// Its answers are lost: the leader must not count them, and goes on with
	// the other.
	c.net.Cut(f.id, l.id)
	c.apply(l, 50)
	c.net.Heal()
	l = c.leader()
	c.apply(l, 50)
	c.equal(l)
}

// raft#612: a follower that rejects an append in the middle of a pipeline is
// replicated to again.
func TestClusterPipelineIsNotWedged(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	c.apply(l, 50)
	c.equal(l)
	f := c.followers(l)[0]
	for range 3 {
		f.log.broken.Store(true)
		failed := f.log.failed.Load()
		c.apply(l, 500)
		wait.Until(t, long, func() error {
			if f.log.failed.Load() == failed {
				return errors.New("the follower has rejected nothing")
			}
			return nil
		})
		f.log.broken.Store(false)
		c.apply(l, 500)
		c.equal(l)
	}
	if c.net.Sent(l.id, f.id, KindPipeline) == 0 {
		t.Error("no pipeline was used")
	}
}

// A follower that was away gets what it missed, as a snapshot if need be, and
// then appends.
func TestClusterSnapshot(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	f := c.followers(l)[0]
	c.net.Isolate(f.id)
	c.apply(l, 300)
	if err := l.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	c.apply(l, 20)
	c.net.Heal()
	c.equal(c.leader())
	f.fsm.mu.Lock()
	restored := f.fsm.restored
	f.fsm.mu.Unlock()
	if restored == 0 {
		t.Error("no snapshot was installed")
	}
	l = c.leader()
	c.apply(l, 20)
	c.equal(l)
}

func TestClusterLeadershipTransfer(t *testing.T) {
	c := newCluster(t, 3)
	old := c.leader()
	to := c.followers(old)[0]
	c.apply(old, 20)
	if err := old.LeadershipTransferToServer(to.id, raft.ServerAddress(to.id)).Error(); err != nil {
		t.Fatal(err)
	}
	next := c.leader()
	if next == old {
		t.Error("the leadership was not transferred")
	}
	c.apply(next, 20)
	c.equal(next)
}

// A node that is not fit to lead loses its leadership, and cannot get it back.
func TestClusterLeaderIsWithheld(t *testing.T) {
	c := newCluster(t, 3)
	old := c.leader()
	old.stalled.Store(true)
	next := c.leader(old)
	c.apply(next, 20)
	if old.State() == raft.Leader {
		t.Error("it still leads")
	}
	old.stalled.Store(false)
	c.equal(c.leader())
}

// Shutdown does not wait for peers that are away.
func TestClusterShutdownWhileParked(t *testing.T) {
	c := newCluster(t, 3)
	l := c.leader()
	f := c.followers(l)[0]
	c.net.Refuse(l.id, f.id)
	c.apply(l, 20)
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
