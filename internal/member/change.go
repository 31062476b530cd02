// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// laterError is a refusal that may not stand for long.
type laterError struct{ text string }

func (e *laterError) Error() string { return e.text }

// Is makes it a precondition that does not hold.
func (e *laterError) Is(target error) bool { return target == hastate.ErrPrecondition }

func later(format string, args ...any) error { return &laterError{text: fmt.Sprintf(format, args...)} }

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %s", hastate.ErrPrecondition, fmt.Sprintf(format, args...))
}

func notMember(id string) error {
	return fmt.Errorf("%w: %s is not a member of this cluster", hastate.ErrNotFound, id)
}

// change runs fn on the leader while no other change is under way.
func (m *Membership) change(ctx context.Context, fn func(context.Context, *plan) error) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, DefaultTimeout)
		defer cancel()
	}
	if !m.leads() {
		return m.notLeader()
	}
	select {
	case m.changing <- struct{}{}:
	case <-ctx.Done():
		return later("another change of the membership is under way: try again when it is done")
	}
	defer func() { <-m.changing }()
	conf, index := m.cfg.State.Configuration()
	if index == 0 {
		return later("the configuration of the cluster is not known yet: try again")
	}
	m.awaitAnswers(ctx, conf)
	return fn(ctx, &plan{conf: conf, index: index, records: m.records()})
}

// awaitAnswers gives the members the time to answer a leader that has just begun. It has
// asked them nothing before, and would refuse what a whole cluster can do: the demotion
// of the former leader, for example, which has stepped aside for it. It waits until all
// have answered, at most two heartbeats from the first look in a term on.
func (m *Membership) awaitAnswers(ctx context.Context, conf raft.Configuration) {
	term, _ := m.cfg.Barrier()
	m.mu.Lock()
	if m.lookedTerm != term {
		m.lookedTerm, m.lookedAt = term, time.Now()
	}
	left := 2*m.cfg.Heartbeat - time.Since(m.lookedAt)
	m.mu.Unlock()
	silent := func(s raft.Server) bool { return !m.reachable(s.ID) }
	if left <= 0 || !slices.ContainsFunc(conf.Servers, silent) {
		return
	}
	limit := time.NewTimer(left)
	defer limit.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for slices.ContainsFunc(conf.Servers, silent) {
		select {
		case <-ctx.Done():
			return
		case <-limit.C:
			return
		case <-tick.C:
		}
	}
}

// plan is what one change is decided on.
type plan struct {
	conf raft.Configuration
	// index is that of conf's entry: if it is not the newest any more, raft
	// refuses the change.
	index   uint64
	records map[raft.ServerID]*pb.Member
}

func (p *plan) server(id raft.ServerID) (raft.Server, bool) {
	for _, s := range p.conf.Servers {
		if s.ID == id {
			return s, true
		}
	}
	return raft.Server{}, false
}

// voters are the voters after a change: without one, and with another; either
// may be empty.
func (p *plan) voters(without, with raft.ServerID) []raft.ServerID {
	var out []raft.ServerID
	for _, s := range p.conf.Servers {
		if s.Suffrage == raft.Voter && s.ID != without && s.ID != with {
			out = append(out, s.ID)
		}
	}
	if with != "" {
		out = append(out, with)
	}
	return out
}

// margin is how many of the voters that answer may fail until there is no
// majority; negative if there is none now.
func (m *Membership) margin(voters []raft.ServerID) (margin, healthy int) {
	for _, id := range voters {
		if m.reachable(id) {
			healthy++
		}
	}
	return healthy - (len(voters)/2 + 1), healthy
}

// canCommit refuses a change to voters of which no majority answers: raft would
// wait for it for ever, and with it everything else.
func (m *Membership) canCommit(voters []raft.ServerID) error {
	if margin, healthy := m.margin(voters); margin < 0 {
		return later("only %d of the %d voters that there would be answer, %d are needed: bring the others back first", healthy, len(voters), len(voters)/2+1)
	}
	return nil
}

// commit waits for a change of Raft's configuration.
func (m *Membership) commit(ctx context.Context, begin func(timeout time.Duration) raft.IndexFuture) error {
	deadline, _ := ctx.Deadline()
	timeout := time.Until(deadline)
	if timeout <= 0 {
		return m.notLeader()
	}
	done := make(chan error, 1)
	// raft answers when it is decided, or when it stops leading; nothing else can
	// end the wait for its future.
	go func() { done <- begin(timeout).Error() }()
	select {
	case err := <-done:
		return m.outcome(err)
	case <-ctx.Done():
		return &hastate.OutcomeUnknownError{Reason: "the change of the membership was begun and is not confirmed"}
	}
}

// outcome says what an error of raft means for the change.
func (m *Membership) outcome(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrEnqueueTimeout):
		return m.notLeader()
	case errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return later("leadership is being handed over: try again")
	}
	return &hastate.OutcomeUnknownError{Reason: fmt.Sprintf("change the membership: %v", err)}
}

// record writes a member record.
func (m *Membership) record(ctx context.Context, rec *pb.Member) error {
	return m.propose(ctx, &pb.Command{Op: &pb.Command_SetMember{SetMember: &pb.SetMember{Member: rec}}})
}

// forget deletes a member record; that there is none is no error.
func (m *Membership) forget(ctx context.Context, id raft.ServerID) error {
	err := m.propose(ctx, &pb.Command{Op: &pb.Command_DeleteMember{DeleteMember: &pb.DeleteMember{NodeId: string(id)}}})
	if errors.Is(err, hastate.ErrNotFound) {
		return nil
	}
	return err
}

func (m *Membership) propose(ctx context.Context, cmd *pb.Command) error {
	res, err := m.cfg.Proposer.Propose(ctx, cmd)
	if err != nil {
		return err
	}
	return hastate.FromResult(res, "", 0)
}
