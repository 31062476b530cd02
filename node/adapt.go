// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/fsm"
	"github.com/hastate/hastate/internal/api"
	"github.com/hastate/hastate/internal/holder"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// entries gives what was proposed to Raft, past the fault of a test.
type entries struct {
	*raft.Raft
	before func(entry []byte)
}

// Apply implements propose.Applier.
func (e entries) Apply(entry []byte, timeout time.Duration) raft.ApplyFuture {
	if e.before != nil {
		e.before(entry)
	}
	return e.Raft.Apply(entry, timeout)
}

// state gives the API its view of the state machine.
type state struct{ *fsm.Machine }

// Sessions reads one page.
func (s state) Sessions(q api.SessionQuery) (api.SessionPage, error) {
	page, err := s.Machine.Sessions(fsm.SessionQuery(q))
	return api.SessionPage(page), err
}

// Subscribe delivers what changes after a revision.
func (s state) Subscribe(after uint64) (api.Feed, error) {
	f, err := s.Machine.Subscribe(after)
	if err != nil {
		return nil, err
	}
	return feed{f}, nil
}

// feed translates events.
type feed struct{ *fsm.Feed }

func (f feed) Next(ctx context.Context) ([]api.Event, error) {
	events, err := f.Feed.Next(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]api.Event, len(events))
	for i, e := range events {
		out[i] = api.Event{Revision: e.Revision, Group: e.Group, Transition: e.Transition, Instance: e.Instance, Session: e.Session}
	}
	return out, nil
}

// holders finds the lease holders beside this node for PeerService.
type holders struct{ n *Node }

// For returns the holder of a group.
func (h holders) For(group string) (api.Holder, bool) {
	if group == "" {
		group = hastate.DefaultGroup
	}
	found, ok := h.n.holders[group]
	return peerHolder{n: h.n, h: found}, ok
}

// peerHolder gives a holder the form of PeerService.
type peerHolder struct {
	n *Node
	h *holder.Holder
}

func (p peerHolder) Canvass(ctx context.Context, _ *pb.CanvassRequest) (*pb.CanvassResponse, error) {
	r := p.h.Canvass(ctx)
	if !p.n.serving() {
		r.Unwilling, r.Reason = true, reasonStalled
	}
	return r, nil
}

func (p peerHolder) Nominate(ctx context.Context, req *pb.NominateRequest) (*pb.NominateResponse, error) {
	if !p.n.serving() {
		// It could not renew: its proposals wait behind that write, if it leads or
		// led, and it learns of nothing that is committed.
		return &pb.NominateResponse{Reason: reasonStalled}, nil
	}
	return p.h.Nominate(ctx, req), nil
}

func (p peerHolder) Granted(ctx context.Context, req *pb.GrantedRequest) (*pb.GrantedResponse, error) {
	p.h.Granted(ctx, req.GetGroup())
	return &pb.GrantedResponse{}, nil
}

func (p peerHolder) Fence(ctx context.Context, req *pb.FenceRequest) (*pb.FenceResponse, error) {
	return p.h.Fence(ctx, req), nil
}

// Holds reports whether the lease is valid now and the instance serves under it.
func (p peerHolder) Holds() bool {
	_, ok := p.h.Primary()
	return ok
}

// groups carries an operator's orders to the coordinator of this leader.
type groups struct{ n *Node }

var errNotLeading = &hastate.NotLeaderError{}

func (g groups) Switchover(ctx context.Context, group, to, reason string) (*pb.Transition, error) {
	c := g.n.leadership.coordinator.Load()
	if c == nil {
		return nil, g.n.notLeader()
	}
	t, err := c.Switchover(ctx, &pb.SwitchoverRequest{Group: group, To: to, Reason: reason})
	return t, g.n.endedBy(err)
}

func (g groups) Failover(ctx context.Context, group, to, reason string, force bool) (*pb.Transition, error) {
	c := g.n.leadership.coordinator.Load()
	if c == nil {
		return nil, g.n.notLeader()
	}
	t, err := c.Failover(ctx, &pb.FailoverRequest{Group: group, To: to, Reason: reason, Force: force})
	return t, g.n.endedBy(err)
}

// notLeader says who leads instead.
func (n *Node) notLeader() error {
	address, id := n.Leader()
	if id == n.cfg.NodeID { // elected, but its barrier is not applied yet
		return errNotLeading
	}
	return &hastate.NotLeaderError{LeaderID: id, LeaderAddress: address}
}

// endedBy turns the end of a coordinator in the middle of an order into an
// unknown outcome: part of the order may have been carried out.
func (n *Node) endedBy(err error) error {
	if errors.Is(err, hastate.ErrClosed) {
		return &hastate.OutcomeUnknownError{Reason: "this node stopped leading in the middle of it"}
	}
	return err
}
