// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/coordinate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// followLeadership runs runAsLeader exactly while this node leads: once per
// term, and never two at a time. raft's notifications are complete but block
// raft, so a goroutine only collapses them into the newest.
func (n *Node) followLeadership(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.leadership.wake:
		}
		if !n.leadership.leads.Load() {
			continue
		}
		term, err := n.leadTerm(ctx)
		if err != nil {
			return err
		}
		if n.leadership.leads.Load() && ctx.Err() == nil && n.raft.State() == raft.Leader {
			// Leading still, but the term ended for another reason: begin anew.
			n.log.Warn("leadership restarts", "term", term)
			n.leadership.poke()
		}
	}
}

// leadTerm runs the leader's duties for one term.
func (n *Node) leadTerm(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	term := n.raft.CurrentTerm()
	done := make(chan struct{})
	defer func() { cancel(); <-done }()
	go func() { // ends the duties when leadership or the term ends
		defer close(done)
		defer cancel()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for n.leadership.leads.Load() && n.raft.CurrentTerm() == term {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	err := n.runAsLeader(ctx, term)
	if err != nil && ctx.Err() == nil {
		n.log.Error("leader's duties ended", "term", term, "err", err)
		timer := time.NewTimer(n.cfg.Profile.Heartbeat)
		defer timer.Stop()
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
	}
	return term, nil
}

// runAsLeader is the role as a function: everything that only a leader does
// happens inside it. The barrier comes first: until an entry of its own term is
// applied, a new leader does not know what has been committed before it.
func (n *Node) runAsLeader(ctx context.Context, term uint64) error {
	if err := n.raft.Barrier(barrierTimeout).Error(); err != nil {
		return fmt.Errorf("barrier of term %d: %w", term, err)
	}
	if n.raft.State() != raft.Leader || n.raft.CurrentTerm() != term {
		return nil
	}
	n.leadership.barrier.Store(term)
	defer n.leadership.barrier.Store(0)
	n.leadership.terms.Add(1)
	n.log.Info("leading", "term", term)
	defer n.log.Info("no longer leading", "term", term)

	coordinator, err := coordinate.New(coordinate.Config{
		NodeID: n.cfg.NodeID, Term: term, Nominations: &n.leadership.nominations, State: n.machine, StoredAt: n.logs.StoredAt,
		Proposer: n.proposer, Peers: n.peers, Profile: n.cfg.Profile, Clock: n.cfg.Clock, Logger: n.log,
	})
	if err != nil {
		return err
	}
	n.leadership.coordinator.Store(coordinator)
	defer n.leadership.coordinator.Store(nil)

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.ensureCluster(ctx) })
	g.Go(func() error { return coordinator.Run(ctx) })
	g.Go(func() error { return n.members.Reconcile(ctx) })
	g.Go(func() error { return n.expire(ctx) })
	return g.Wait()
}

// ensureCluster writes the cluster id and this node's member record, once.
func (n *Node) ensureCluster(ctx context.Context) error {
	if n.machine.ClusterID() == "" {
		result, err := n.proposer.Propose(ctx, &pb.Command{Op: &pb.Command_InitCluster{InitCluster: &pb.InitCluster{ClusterId: n.identity.ClusterID()}}})
		if err == nil {
			err = hastate.FromResult(result, "", 0)
		}
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("write the cluster id: %w", err)
		}
	}
	if mine := n.identity.ClusterID(); mine != n.machine.ClusterID() && ctx.Err() == nil {
		return fmt.Errorf("cluster id on disk is %q, in the log %q: this data folder is a mixture of two clusters", mine, n.machine.ClusterID())
	}
	<-ctx.Done()
	return nil
}

// expire proposes the removal of sessions and writers whose time has passed on
// this leader's clock, counted afresh from its takeover: late, never early.
func (n *Node) expire(ctx context.Context) error {
	n.expiry.Reset(n.cfg.Clock.Now())
	defer n.expiry.Stop()
	tick := time.NewTicker(expireInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for {
			due := n.expiry.Due(n.cfg.Clock.Now(), maxExpire)
			if due == nil || len(due.GetSessions())+len(due.GetClients()) == 0 {
				break
			}
			if _, err := n.proposer.Propose(ctx, &pb.Command{Op: &pb.Command_Expire{Expire: due}}); err != nil {
				if ctx.Err() == nil && !errors.Is(err, hastate.ErrNotLeader) && !errors.Is(err, hastate.ErrNoLeader) {
					n.log.Warn("expire", "err", err)
				}
				break
			}
		}
	}
}

const (
	barrierTimeout = 10 * time.Second
	expireInterval = 500 * time.Millisecond
	maxExpire      = 1000
)
