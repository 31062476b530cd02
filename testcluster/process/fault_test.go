// SPDX-License-Identifier: Apache-2.0

//go:build process

package process

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hastate/hastate/internal/proc"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// TestFaults breaks one cluster in one way after the other; after each it must
// be whole again.
func TestFaults(t *testing.T) {
	c := newCluster(t, options{models: true})
	for _, f := range []struct {
		name  string
		fault func(t *testing.T, c *cluster)
	}{
		{"model server killed", modelKilled},
		{"node killed", nodeKilled},
		{"host killed", hostKilled},
		{"node restarted within its lease", restartedWithinLease},
		{"model server restarted within its lease", modelRestarted},
		{"primary's node stopped for longer than its lease", nodeFrozen},
		{"primary's host stopped for longer than its lease", hostFrozen},
		{"model server stopped for longer than its lease", modelFrozen},
		{"leader stopped", leaderFrozen},
	} {
		ok := t.Run(f.name, func(t *testing.T) {
			c := c.as(t)
			f.fault(t, c)
			c.isWhole()
		})
		if !ok {
			t.FailNow() // the rest would only say so again
		}
	}
}

func modelKilled(t *testing.T, c *cluster) {
	h, epoch := c.serves()
	kill(t, h.model)
	to, next := c.moved(h, epoch)
	c.over(h, epoch)
	tr := c.transition(next)
	if tr.GetFrom() != h.id || tr.GetTo() != to.id || !strings.Contains(tr.GetReason(), "gone") {
		t.Fatalf("the history says %v", tr)
	}
	c.startModel(h)
}

// nodeKilled leaves a model server without the node beside it: it has to end by
// itself when its lease does.
func nodeKilled(t *testing.T, c *cluster) {
	h, epoch := c.serves()
	kill(t, h.node)
	c.moved(h, epoch)
	c.over(h, epoch)
	c.startNode(h)
}

func hostKilled(t *testing.T, c *cluster) {
	h, epoch := c.serves()
	kill(t, h.node, h.model)
	c.moved(h, epoch)
	c.over(h, epoch)
	c.startModel(h)
	c.startNode(h)
}

// restartedWithinLease: a node that comes back at once does not know when it
// asked for the lease that the log says it has, so it must not act on it.
func restartedWithinLease(t *testing.T, c *cluster) {
	h, epoch := c.serves()
	kill(t, h.node)
	c.startNode(h)
	eventually(t, "the next primary", func() error {
		if p, err := h.probe(t.Context(), "/primary"); err == nil && p.OK && p.Epoch == epoch {
			t.Fatalf("%s acts on the lease of the process before it: %+v", h.id, p)
		}
		p, err := c.client.Primary(t.Context(), "")
		switch {
		case noPrimary(err), err == nil && p.Epoch <= epoch:
			return fmt.Errorf("epoch %d: %w", p.Epoch, errors.Join(err, errors.New("not yet")))
		}
		return err
	})
	c.over(h, epoch)
}

// modelRestarted: a model server that comes back has forgotten its epoch.
func modelRestarted(t *testing.T, c *cluster) {
	h, epoch := c.serves()
	kill(t, h.model)
	c.startModel(h)
	c.serving(epoch)
	c.over(h, epoch)
}

func nodeFrozen(t *testing.T, c *cluster) {
	h, epoch := c.serves()
	freeze(t, h.node)
	c.moved(h, epoch)
	c.over(h, epoch) // its model server has not heard anything from it
	thaw(t, h.node)
	c.over(h, epoch)
}

func hostFrozen(t *testing.T, c *cluster) {
	h, epoch := c.serves()
	freeze(t, h.model, h.node)
	c.moved(h, epoch)
	thaw(t, h.model) // alone: nobody tells it anything
	c.over(h, epoch)
	thaw(t, h.node)
	c.over(h, epoch)
}

func modelFrozen(t *testing.T, c *cluster) {
	h, epoch := c.serves()
	freeze(t, h.model)
	c.moved(h, epoch)
	thaw(t, h.model)
	c.over(h, epoch)
}

// leaderFrozen stops the leader, wherever the primary is, until another one
// leads.
func leaderFrozen(t *testing.T, c *cluster) {
	old := c.leader()
	_, before := c.serves()
	freeze(t, old.node)
	next := c.leader(old)
	thaw(t, old.node)
	eventually(t, "the old leader to follow", func() error {
		s, err := old.status(t.Context())
		if err == nil && s.GetRaftState() != "Follower" {
			err = errors.New(s.GetRaftState())
		}
		return err
	})
	_, after := c.serves()
	t.Logf("%s led, then %s; epoch %d, then %d", old.id, next.id, before, after)
}

func freeze(t *testing.T, ps ...*proc.Process) {
	t.Helper()
	for _, p := range ps {
		send(t, p, syscall.SIGSTOP)
	}
}

func thaw(t *testing.T, ps ...*proc.Process) {
	t.Helper()
	for _, p := range ps {
		send(t, p, syscall.SIGCONT)
	}
}

// transition is the record of an epoch in the history.
func (c *cluster) transition(epoch uint64) *pb.Transition {
	c.t.Helper()
	var found *pb.Transition
	eventually(c.t, "the history", func() error {
		ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Second)
		defer cancel()
		for _, h := range c.hosts {
			reply, err := pb.NewGroupServiceClient(h.conn).History(ctx, &pb.HistoryRequest{})
			for _, tr := range reply.GetTransitions() {
				if err == nil && tr.GetEpoch() == epoch {
					found = tr
					return nil
				}
			}
		}
		return fmt.Errorf("epoch %d is not in it", epoch)
	})
	return found
}

// TestPowerLoss kills everything at once in the middle of writes: what was
// acknowledged is there afterwards.
func TestPowerLoss(t *testing.T) {
	c := newCluster(t, options{models: true})
	_, epoch := c.serves()
	const writers, each = 8, 25
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	acked := make([]uint64, writers)
	enough := make(chan struct{}, writers)
	var done sync.WaitGroup
	for i := range writers {
		done.Go(func() {
			for seq := uint64(1); ; seq++ {
				_, err := c.client.Sessions("").Put(ctx, &pb.PutRequest{Session: &pb.Session{
					Id: fmt.Sprintf("writer-%d", i), Value: binary.BigEndian.AppendUint64(nil, seq),
				}})
				if err != nil {
					return
				}
				acked[i] = seq
				if seq == each {
					enough <- struct{}{}
				}
			}
		})
	}
	for range writers {
		select {
		case <-enough:
		case <-ctx.Done():
			t.Fatal("the writers do not get on")
		}
	}
	var all []*proc.Process
	for _, h := range c.hosts {
		all = append(all, h.node, h.model)
	}
	kill(t, all...)
	cancel()
	done.Wait()
	for _, h := range c.hosts {
		c.startModel(h)
		c.startNode(h)
	}
	c.leader()
	for i := range writers {
		s, err := c.client.Sessions("").Get(within(t), fmt.Sprintf("writer-%d", i), pb.ReadLevel_READ_LEVEL_LINEARIZABLE)
		if err != nil {
			t.Fatalf("writer %d: %v", i, err)
		}
		// One more than acknowledged may have been under way.
		if got := binary.BigEndian.Uint64(s.GetValue()); got < acked[i] || got > acked[i]+1 {
			t.Errorf("writer %d: %d was acknowledged, %d is there", i, acked[i], got)
		}
	}
	c.serving(epoch)
	c.isWhole()
}
