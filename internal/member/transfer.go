// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
)

// Transfer hands leadership to a voter that answers, the most up-to-date one if
// to is empty, and returns who leads then. It does nothing if that node leads
// already.
func (m *Membership) Transfer(ctx context.Context, to string) (string, error) {
	if m.cfg.Raft.State() != raft.Leader {
		return "", m.notLeader()
	}
	if to == string(m.cfg.ID) {
		return to, nil
	}
	var leader string
	err := m.change(ctx, func(ctx context.Context, p *plan) error {
		target, err := m.target(p, raft.ServerID(to))
		if err != nil {
			return err
		}
		if err := m.oncePerTerm(); err != nil {
			return err
		}
		leader = string(target.ID)
		return m.hand(ctx, target)
	})
	if err != nil {
		return "", err
	}
	return leader, nil
}

// target chooses the next leader.
func (m *Membership) target(p *plan, to raft.ServerID) (raft.Server, error) {
	if to != "" {
		s, ok := p.server(to)
		switch {
		case !ok:
			return raft.Server{}, notMember(string(to))
		case s.Suffrage != raft.Voter:
			return raft.Server{}, refuse("%s is a replica and cannot lead: promote it first", to)
		case !m.reachable(to):
			return raft.Server{}, later("%s does not answer: leadership can only go to a node that does", to)
		}
		return s, nil
	}
	var best raft.Server
	var newest uint64
	for _, s := range p.conf.Servers {
		if s.Suffrage != raft.Voter || s.ID == m.cfg.ID || !m.reachable(s.ID) {
			continue
		}
		seen, _ := m.cfg.Seen(s.ID)
		if best.ID == "" || seen.Applied > newest {
			best, newest = s, seen.Applied
		}
	}
	if best.ID == "" {
		return raft.Server{}, later("no other voter answers: leadership can go to nobody")
	}
	return best, nil
}

// oncePerTerm refuses a second transfer in one term. raft's mark of a transfer
// under way can outlive one that was given up, and then blocks every write of
// the next term in which this node leads; not to try twice keeps it rare.
func (m *Membership) oncePerTerm() error {
	term := m.cfg.Raft.CurrentTerm()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.transferTerm == term {
		return later("a handover was tried in term %d already and has not come about: look at the log of the node that was to lead", term)
	}
	m.transferTerm = term
	return nil
}

// hand performs the transfer.
func (m *Membership) hand(ctx context.Context, to raft.Server) error {
	done := make(chan error, 1)
	// raft ends the transfer itself after an election timeout.
	go func() { done <- m.cfg.Raft.LeadershipTransferToServer(to.ID, to.Address).Error() }()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("hand leadership to %s: %w", to.ID, later("%v", err))
		}
	case <-ctx.Done():
		return &hastate.OutcomeUnknownError{Reason: fmt.Sprintf("leadership was offered to %s, which has not taken it yet", to.ID)}
	}
	m.cfg.Logger.Info("leadership handed over", "to", to.ID)
	m.awaitLeader(ctx, to.ID)
	return nil
}

// awaitLeader waits until this node has heard from the new leader, at most two
// heartbeats: what follows is easier for callers who then know whom to ask.
func (m *Membership) awaitLeader(ctx context.Context, id raft.ServerID) {
	limit := time.NewTimer(2 * m.cfg.Heartbeat)
	defer limit.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, leader := m.cfg.Raft.LeaderWithID(); leader == id {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-limit.C:
			return
		case <-tick.C:
		}
	}
}
