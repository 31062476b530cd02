// SPDX-License-Identifier: Apache-2.0

package member

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Join takes in a node that asks for it, or finds that it belongs here already.
// A refusal that may not stand for long is UNAVAILABLE: the node is to ask again.
func (m *Membership) Join(ctx context.Context, req *pb.JoinRequest) (*pb.JoinResponse, error) {
	var cluster string
	err := m.change(ctx, func(ctx context.Context, p *plan) error {
		// A new cluster's first leader has yet to write it: the answer pins the node.
		if cluster = m.cfg.State.ClusterID(); cluster == "" {
			return later("the cluster has just begun and has no id yet: try again")
		}
		if s, ok := p.server(raft.ServerID(req.GetNodeId())); ok {
			return m.comeBack(ctx, p, s, req)
		}
		if !req.GetEmpty() {
			return refuse("node %s has data and is not a member of this cluster (it was removed, or is of another one): empty its data folder, then let it join", req.GetNodeId())
		}
		return m.takeIn(ctx, p, req.GetNodeId(), req.GetAddress(), req.GetReplica(), req.GetVersion())
	})
	var wait *laterError
	switch {
	case errors.As(err, &wait):
		return nil, status.Error(codes.Unavailable, wait.Error())
	case err != nil:
		return nil, err
	}
	return &pb.JoinResponse{ClusterId: cluster}, nil
}

// Add takes in a running, empty node that an operator names.
func (m *Membership) Add(ctx context.Context, id, address string, replica bool) (*pb.Member, error) {
	err := m.change(ctx, func(ctx context.Context, p *plan) error {
		s, ok := p.server(raft.ServerID(id))
		if !ok {
			return m.takeIn(ctx, p, id, address, replica, "")
		}
		if was := p.records[s.ID].GetAddress(); was != "" && was != address {
			return fmt.Errorf("%w: %s is a member at %s: if it has moved, start it at its new address; if it is lost, remove it first", hastate.ErrAlreadyExists, id, was)
		}
		if s.Suffrage == raft.Voter {
			return nil
		}
		return m.record(ctx, &pb.Member{
			NodeId: id, Address: address, Role: pb.MemberRole_MEMBER_ROLE_REPLICA, PromoteWhenCaughtUp: !replica, Version: p.records[s.ID].GetVersion(),
		})
	})
	if err != nil {
		return nil, err
	}
	for _, one := range m.Members() {
		if one.GetNodeId() == id {
			return one, nil
		}
	}
	return nil, &hastate.OutcomeUnknownError{Reason: fmt.Sprintf("%s was added and is not a member any more", id)}
}

// comeBack is a member that asks to join.
func (m *Membership) comeBack(ctx context.Context, p *plan, s raft.Server, req *pb.JoinRequest) error {
	rec := p.records[s.ID]
	if err := m.notTwice(ctx, s.ID, rec.GetAddress(), req.GetAddress()); err != nil {
		return err
	}
	if req.GetEmpty() && s.Suffrage == raft.Voter {
		// What it has forgotten, a majority may rely on. One that begins the cluster
		// with others and has no data yet knows that, and does not call itself empty.
		return refuse("node %s is a voter and comes back without its data: remove it first (hactl member remove %s), then let it join", s.ID, s.ID)
	}
	if rec == nil || rec.GetAddress() == req.GetAddress() {
		return nil
	}
	m.cfg.Logger.Info("member has moved", "node", s.ID, "from", rec.GetAddress(), "to", req.GetAddress())
	return m.record(ctx, &pb.Member{
		NodeId: rec.GetNodeId(), Address: req.GetAddress(), Role: rec.GetRole(), PromoteWhenCaughtUp: rec.GetPromoteWhenCaughtUp(),
		Version: cmp.Or(req.GetVersion(), rec.GetVersion()),
	})
}

// notTwice refuses a node whose id another running process has: two processes
// with one id could vote twice in a term.
func (m *Membership) notTwice(ctx context.Context, id raft.ServerID, was, now string) error {
	if was == "" || was == now {
		return nil
	}
	old, err := m.cfg.Greet(ctx, was)
	if err != nil || old.GetNodeId() != string(id) {
		return nil // nobody answers there, or somebody else
	}
	fresh, err := m.cfg.Greet(ctx, now)
	if err == nil && fresh.GetBootId() == old.GetBootId() {
		return nil // one process with two addresses
	}
	return fmt.Errorf("%w: node id %s is in use by another running process at %s: give this one its own id, or stop the other", hastate.ErrAlreadyExists, id, was)
}

// takeIn adds a node as a replica; Reconcile makes it a voter later, unless it is
// to stay one.
func (m *Membership) takeIn(ctx context.Context, p *plan, id, address string, replica bool, version string) error {
	if id == "" || address == "" {
		return fmt.Errorf("%w: a member needs an id and an address", hastate.ErrInvalid)
	}
	for _, rec := range p.records {
		if rec.GetAddress() == address && rec.GetNodeId() != id {
			if _, ok := p.server(raft.ServerID(rec.GetNodeId())); ok {
				return fmt.Errorf("%w: %s is the address of member %s: give each node its own, or remove %s first", hastate.ErrAlreadyExists, address, rec.GetNodeId(), rec.GetNodeId())
			}
		}
	}
	if err := m.inspect(ctx, id, address); err != nil {
		return err
	}
	if err := m.canCommit(p.voters("", "")); err != nil {
		return err
	}
	// The record first: it tells every node where to reach the newcomer.
	rec := &pb.Member{NodeId: id, Address: address, Role: pb.MemberRole_MEMBER_ROLE_REPLICA, PromoteWhenCaughtUp: !replica, Version: version}
	if err := m.record(ctx, rec); err != nil {
		return fmt.Errorf("record member %s: %w", id, err)
	}
	err := m.commit(ctx, func(timeout time.Duration) raft.IndexFuture {
		return m.cfg.Raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(id), p.index, timeout)
	})
	if err != nil {
		return fmt.Errorf("add %s: %w", id, err)
	}
	m.cfg.Logger.Info("member added", "node", id, "address", address, "stays_replica", replica)
	return nil
}

// inspect checks that the newcomer is who it is said to be, and empty.
func (m *Membership) inspect(ctx context.Context, id, address string) error {
	hello, err := m.cfg.Greet(ctx, address)
	if err != nil {
		return later("nobody answers at %s, where node %s is said to be: start it there, or correct its address: %v", address, id, err)
	}
	own := m.cfg.State.ClusterID()
	switch other := hello.GetClusterId(); {
	case hello.GetNodeId() != id:
		return refuse("at %s is node %s, not %s: correct the address or the id", address, hello.GetNodeId(), id)
	case other != "" && other != own:
		return refuse("node %s belongs to cluster %s, this is cluster %s: empty its data folder to move it here", id, other, own)
	case hello.GetHasState():
		return refuse("node %s has data and is not a member of this cluster: empty its data folder, then add it", id)
	}
	return nil
}
