// SPDX-License-Identifier: Apache-2.0

package member

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Remove takes a node out of the cluster. If that is the leader, it hands
// leadership over and answers NotLeaderError: the new leader is to be asked.
func (m *Membership) Remove(ctx context.Context, id string, force bool) error {
	if err := m.stepAside(ctx, id, func(p *plan, s raft.Server) error { return m.mayLeave(p, s, force) }); err != nil {
		return err
	}
	return m.change(ctx, func(ctx context.Context, p *plan) error {
		s, ok := p.server(raft.ServerID(id))
		if !ok {
			return notMember(id)
		}
		if err := m.mayLeave(p, s, force); err != nil {
			return err
		}
		err := m.commit(ctx, func(timeout time.Duration) raft.IndexFuture {
			return m.cfg.Raft.RemoveServer(s.ID, p.index, timeout)
		})
		if err != nil {
			return fmt.Errorf("remove %s: %w", id, err)
		}
		m.cfg.Logger.Info("member removed", "node", id)
		if err := m.clearUp(ctx, s.ID); err != nil {
			m.cfg.Logger.Warn("records of a removed member are left; they will be removed", "node", id, "err", err)
		}
		return nil
	})
}

// mayLeave checks a removal. Force does not help against a change that could not
// commit.
func (m *Membership) mayLeave(p *plan, s raft.Server, force bool) error {
	if !force {
		for _, g := range m.cfg.State.Groups() {
			if g.GetHolder() == string(s.ID) && g.GetPhase() != pb.GroupPhase_GROUP_PHASE_VACANT {
				return refuse("node %s is the primary of group %s: switch over first, or use force", s.ID, g.GetName())
			}
		}
	}
	if s.Suffrage != raft.Voter {
		return m.canCommit(p.voters("", ""))
	}
	return m.mayLoseVoter(p, s.ID, force)
}

// mayLoseVoter checks that the cluster can do without a voter: that there is
// another, that the rest can commit, and, unless forced, that the rest can still
// lose one if the whole could.
func (m *Membership) mayLoseVoter(p *plan, id raft.ServerID, force bool) error {
	rest := p.voters(id, "")
	if len(rest) == 0 {
		return refuse("%s is the last voter: add another first", id)
	}
	if err := m.canCommit(rest); err != nil {
		return err
	}
	before, _ := m.margin(p.voters("", ""))
	after, _ := m.margin(rest)
	if !force && after < 1 && after < before {
		return refuse("without %s there are %d voters, of which none may fail: add another first, or use force", id, len(rest))
	}
	return nil
}

// clearUp removes what the state keeps of a former member.
func (m *Membership) clearUp(ctx context.Context, id raft.ServerID) error {
	for _, inst := range m.cfg.State.Instances("") {
		if inst.GetNodeId() != string(id) {
			continue
		}
		err := m.propose(ctx, &pb.Command{Op: &pb.Command_RemoveInstance{RemoveInstance: &pb.RemoveInstance{Group: inst.GetGroup(), NodeId: inst.GetNodeId()}}})
		if err != nil {
			// A holder's instance stays until its lease is over.
			m.cfg.Logger.Info("instance of a removed member stays", "node", id, "group", inst.GetGroup(), "err", err)
		}
	}
	return m.forget(ctx, id)
}

// Promote makes a replica that has caught up a voter.
func (m *Membership) Promote(ctx context.Context, id string) error {
	return m.change(ctx, func(ctx context.Context, p *plan) error {
		s, ok := p.server(raft.ServerID(id))
		switch {
		case !ok:
			return notMember(id)
		case s.Suffrage == raft.Voter:
			return nil
		}
		return m.promote(ctx, p, s)
	})
}

func (m *Membership) promote(ctx context.Context, p *plan, s raft.Server) error {
	seen, ok := m.cfg.Seen(s.ID)
	commit := m.cfg.Raft.CommitIndex()
	switch {
	case !ok || seen.Age > seenFor || !m.reachable(s.ID):
		return later("replica %s does not answer: it must be reachable to become a voter", s.ID)
	case seen.Applied+m.cfg.CatchUp < commit:
		return later("replica %s is %d log entries behind, %d are allowed: wait until it has caught up", s.ID, commit-seen.Applied, m.cfg.CatchUp)
	}
	if err := m.canCommit(p.voters("", s.ID)); err != nil {
		return err
	}
	err := m.commit(ctx, func(timeout time.Duration) raft.IndexFuture {
		return m.cfg.Raft.AddVoter(s.ID, s.Address, p.index, timeout)
	})
	if err != nil {
		return fmt.Errorf("promote %s: %w", s.ID, err)
	}
	m.cfg.Logger.Info("replica promoted to voter", "node", s.ID)
	rec := p.records[s.ID]
	return m.record(ctx, &pb.Member{
		NodeId: string(s.ID), Address: cmp.Or(rec.GetAddress(), m.cfg.Address(s.ID)), Role: pb.MemberRole_MEMBER_ROLE_VOTER,
		Version: cmp.Or(seen.Version, rec.GetVersion()),
	})
}

// Demote makes a voter a replica. If that is the leader, it hands leadership over
// and answers NotLeaderError.
func (m *Membership) Demote(ctx context.Context, id string) error {
	if err := m.stepAside(ctx, id, func(p *plan, s raft.Server) error { return m.mayLoseVoter(p, s.ID, true) }); err != nil {
		return err
	}
	return m.change(ctx, func(ctx context.Context, p *plan) error {
		s, ok := p.server(raft.ServerID(id))
		switch {
		case !ok:
			return notMember(id)
		case s.Suffrage != raft.Voter:
			return nil
		}
		if err := m.mayLoseVoter(p, s.ID, true); err != nil {
			return err
		}
		err := m.commit(ctx, func(timeout time.Duration) raft.IndexFuture {
			return m.cfg.Raft.DemoteVoter(s.ID, p.index, timeout)
		})
		if err != nil {
			return fmt.Errorf("demote %s: %w", id, err)
		}
		m.cfg.Logger.Info("voter demoted to replica", "node", id)
		rec := p.records[s.ID]
		return m.record(ctx, &pb.Member{
			NodeId: id, Address: cmp.Or(rec.GetAddress(), m.cfg.Address(s.ID)), Role: pb.MemberRole_MEMBER_ROLE_REPLICA, Version: rec.GetVersion(),
		})
	})
}

// stepAside hands leadership over if id is this node and it leads, so that the
// new leader can do what was asked. Nothing has been done then. may tells whether
// the new leader could: leadership does not move for what would be refused.
func (m *Membership) stepAside(ctx context.Context, id string, may func(*plan, raft.Server) error) error {
	if id != string(m.cfg.ID) || m.cfg.Raft.State() != raft.Leader {
		return nil
	}
	conf, _ := m.cfg.State.Configuration()
	p := &plan{conf: conf}
	s, ok := p.server(m.cfg.ID)
	if !ok {
		return notMember(id)
	}
	m.awaitAnswers(ctx, conf)
	if err := may(p, s); err != nil {
		return err
	}
	if _, err := m.Transfer(ctx, ""); err != nil {
		return fmt.Errorf("%s leads, and could not hand leadership over: %w", id, err)
	}
	return m.notLeader()
}
