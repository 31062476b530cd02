// SPDX-License-Identifier: Apache-2.0

package member

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// passTimeout bounds one pass of Reconcile.
const passTimeout = 10 * time.Second

// Reconcile keeps the member records in step with Raft's configuration and makes
// replicas voters when they have caught up, while this node leads, until ctx
// ends.
func (m *Membership) Reconcile(ctx context.Context) error {
	tick := time.NewTicker(m.cfg.Interval)
	defer tick.Stop()
	var told string
	for {
		if m.leads() {
			err := m.pass(ctx)
			if text := describe(err); text != told {
				if told = text; text != "" && ctx.Err() == nil {
					m.cfg.Logger.Warn("membership is not as it should be", "err", text)
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// describe is the text of an error that is worth a line in the log.
func describe(err error) string {
	if err == nil || errors.Is(err, hastate.ErrNotLeader) || errors.Is(err, hastate.ErrNoLeader) {
		return ""
	}
	return err.Error()
}

// pass does the next thing that there is to do.
func (m *Membership) pass(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, passTimeout)
	defer cancel()
	return m.change(ctx, func(ctx context.Context, p *plan) error {
		for _, s := range p.conf.Servers {
			if want := m.wanted(p, s); want != nil && !proto.Equal(want, agreed(p.records[s.ID])) {
				return m.record(ctx, want)
			}
		}
		for id := range p.records {
			if _, ok := p.server(id); !ok {
				return m.clearUp(ctx, id)
			}
		}
		var last error
		for _, s := range p.conf.Servers {
			if s.Suffrage != raft.Nonvoter || !p.records[s.ID].GetPromoteWhenCaughtUp() || !m.caughtUp(s.ID) {
				continue
			}
			// One change, then look afresh: the plan is old after it.
			if last = m.promote(ctx, p, s); last == nil {
				return nil
			}
		}
		return last
	})
}

// caughtUp reports whether a replica may become a voter now. That one is still
// far behind, or gone, is nothing to complain about.
func (m *Membership) caughtUp(id raft.ServerID) bool {
	seen, ok := m.cfg.Seen(id)
	return ok && seen.Age <= seenFor && m.reachable(id) && seen.Applied > 0 && seen.Applied+m.cfg.CatchUp >= m.cfg.Raft.CommitIndex()
}

// agreed is the part of a record that is replicated.
func agreed(rec *pb.Member) *pb.Member {
	if rec == nil {
		return nil
	}
	return &pb.Member{
		NodeId: rec.GetNodeId(), Address: rec.GetAddress(), Role: rec.GetRole(),
		PromoteWhenCaughtUp: rec.GetPromoteWhenCaughtUp(), Version: rec.GetVersion(),
	}
}

// wanted is the record that a server of the configuration should have; nil if
// that cannot be said yet. A voter gets one only when it has been seen with data:
// before that nobody knows where it is.
func (m *Membership) wanted(p *plan, s raft.Server) *pb.Member {
	rec := p.records[s.ID]
	seen, ok := m.cfg.Seen(s.ID)
	withData := s.ID == m.cfg.ID || (ok && seen.Applied > 0)
	if rec == nil && s.Suffrage == raft.Voter && !withData {
		return nil
	}
	want := &pb.Member{
		NodeId: string(s.ID), Address: rec.GetAddress(), Role: roleOf(s.Suffrage), Version: cmp.Or(seen.Version, rec.GetVersion()),
	}
	if address := m.cfg.Address(s.ID); address != "" && (rec == nil || m.reachable(s.ID)) {
		want.Address = address // it answers there: it may have moved
	}
	if s.ID == m.cfg.ID {
		want.Version = m.cfg.Version
	}
	if want.GetAddress() == "" {
		return nil // nobody knows where it is
	}
	want.PromoteWhenCaughtUp = s.Suffrage != raft.Voter && rec.GetPromoteWhenCaughtUp()
	return want
}
