// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/rig"
)

func memberFaults() []fault {
	const family = "membership"
	return []fault{
		{kind: "member-add-remove", family: family, weight: 2, harmless: true, must: true, exits: refusedJoin, what: "a node is added, gets a vote, and is removed again", inject: addRemove},
		{kind: "member-replace", family: family, weight: 2, must: true, loses: true, exits: refusedJoin, what: "a node dies for good and is replaced by a new one", inject: replaceMember},
		{kind: "demote-promote", family: family, weight: 2, must: true, what: "a node loses its vote and gets it back", inject: demotePromote},
		{kind: "transfer-leader", family: family, weight: 3, harmless: true, must: true, what: "leadership is moved several times", inject: transferLeader},
		{kind: "lost-disk-behind", family: family, weight: 1, alone: true, dark: true, exits: refusedJoin, what: "a voter whose disk was emptied is alone with one that is behind: they must not make a majority", inject: lostDiskBehind},
		{kind: "snapshot-install", family: family, weight: 2, what: "a node is away until the log that it needs is gone, then gets a snapshot", inject: snapshotInstall},
	}
}

func (s *stage) spareHost() *rig.Host {
	for _, h := range s.rig.Hosts() {
		if !slices.Contains(s.members, h) {
			return h
		}
	}
	return nil
}

// addRemove takes a spare host in and out. While it is in it is a member like the
// others, with instances that may be promoted.
func addRemove(ctx context.Context, s *stage, d *draw) (broken, error) {
	h := s.spareHost()
	if h == nil {
		return broken{}, errors.New("no host is spare")
	}
	if err := s.replace(ctx, h); err != nil { // a new node on an empty disk
		return broken{}, err
	}
	b := broken{what: h.NodeID() + " is added, and removed again"}
	b.then = func(ctx context.Context) error {
		defer s.spare(h)
		err := s.waitVoter(ctx, h)
		var gone error
		for range 10 { // it may be in the way of another fault
			if gone = s.removed(ctx, h.NodeID()); gone == nil || sleep(ctx, 200*time.Millisecond) != nil {
				break
			}
		}
		return errors.Join(err, gone, s.kill(true, true, h))
	}
	return b, nil
}

// removed removes a member that may be gone already.
func (s *stage) removed(ctx context.Context, id string) error {
	err := inTime(ctx, memberTimeout, func() error { return s.removeMember(ctx, id) })
	if err != nil && !errors.Is(err, hastate.ErrNotFound) {
		return fmt.Errorf("remove %s: %w", id, err)
	}
	return nil
}

// waitVoter waits until a node has a vote.
func (s *stage) waitVoter(ctx context.Context, h *rig.Host) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	tick := time.NewTicker(2 * lookEvery)
	defer tick.Stop()
	for {
		if st, err := s.status(ctx, h, false); err == nil {
			for _, m := range st.GetMembers() {
				if m.GetNodeId() == h.NodeID() && m.GetRole() == pb.MemberRole_MEMBER_ROLE_VOTER {
					return nil
				}
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s got no vote: %w", h.NodeID(), ctx.Err())
		case <-tick.C:
		}
	}
}

func replaceMember(ctx context.Context, s *stage, d *draw) (broken, error) {
	h, who := d.target(ctx, s)
	old := h.NodeID()
	b := broken{what: who + " dies for good and is replaced", lost: s.held(ctx, h), hold: d.around()}
	b.then = func(ctx context.Context) error {
		// An operator removes the dead voter; if that cannot be done yet, it is
		// done when the cluster is made whole.
		return errors.Join(s.removed(ctx, old), s.replace(ctx, h))
	}
	return b, s.kill(true, true, h)
}

func demotePromote(ctx context.Context, s *stage, d *draw) (broken, error) {
	h, who := d.target(ctx, s)
	b := broken{what: who + " loses its vote for a while", hold: d.lease / 2}
	b.then = func(ctx context.Context) error {
		return inTime(ctx, memberTimeout, func() error { return s.promoteMember(ctx, h.NodeID()) })
	}
	return b, inTime(ctx, memberTimeout, func() error { return s.demoteMember(ctx, h.NodeID()) })
}

func transferLeader(ctx context.Context, s *stage, d *draw) (broken, error) {
	n := 1 + d.IntN(4)
	var errs []error
	for range n {
		errs = append(errs, s.transfer(ctx, d.host(s))) // if it leads already, that is no error
	}
	return broken{what: fmt.Sprintf("leadership is moved %d times", n), hold: d.lease / 2}, errors.Join(errs...)
}

// transfer moves leadership to a host's node.
func (s *stage) transfer(ctx context.Context, h *rig.Host) error {
	err := s.order(ctx, memberTimeout, func(ctx context.Context, cc grpc.ClientConnInterface) error {
		_, err := pb.NewClusterServiceClient(cc).TransferLeadership(ctx, &pb.TransferLeadershipRequest{To: h.NodeID()})
		return err
	})
	if err != nil {
		return fmt.Errorf("move leadership to %s: %w", h.NodeID(), err)
	}
	return nil
}

// lead moves leadership to a host's node, if it does not lead, and waits until it
// does.
func (s *stage) lead(ctx context.Context, h *rig.Host) error {
	if s.leader(ctx) == h {
		return nil
	}
	if err := s.transfer(ctx, h); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for s.leader(ctx) != h {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %s does not lead", errNobody, h.NodeID())
		case <-tick.C:
		}
	}
	return nil
}

// snapshotInstall cuts a node off in the middle of writes, so that its log may
// have a tail that nobody else has, and keeps it away until the others have
// compacted their logs.
func snapshotInstall(ctx context.Context, s *stage, d *draw) (broken, error) {
	h := s.leader(ctx)
	if h == nil {
		return broken{}, errNobody
	}
	b := broken{what: "the leader " + h.NodeID() + " is cut off with a divergent tail, until it needs a snapshot", lost: s.held(ctx, h)}
	these, others := s.sides(one(h))
	if err := s.between(others, these, rig.Policy{Cut: true}); err != nil {
		return b, err
	}
	if err := s.between(these, others, rig.Policy{Cut: true}); err != nil {
		return b, err
	}
	st, err := s.status(ctx, h, false)
	if err != nil {
		return b, err
	}
	b.then = func(ctx context.Context) error {
		if err := sleep(ctx, 2*d.lease); err != nil {
			return err
		}
		if d.IntN(2) == 0 {
			if err := s.kill(true, false, h); err != nil {
				return err
			}
		}
		return s.waitCompacted(ctx, h, st.GetLastLogIndex())
	}
	return b, nil
}

// waitCompacted waits until another node has dropped an index from its log. The
// load writes meanwhile; with little load that may not come.
func (s *stage) waitCompacted(ctx context.Context, but *rig.Host, index uint64) error {
	ctx, cancel := context.WithTimeout(ctx, 12*time.Second)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, h := range s.members {
			if h == but {
				continue
			}
			if first, err := s.metric(ctx, h, "hastate_log_first_index"); err == nil && uint64(first) > index {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			s.say("  nobody compacted its log in time: no snapshot is needed")
			return nil
		case <-tick.C:
		}
	}
}
