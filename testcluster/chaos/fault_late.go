// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/rig"
)

func lateFaults() []fault {
	return []fault{
		{kind: "late-grant", family: "process", weight: 2, alone: true, what: "a Grant waits at its leader for a CPU, until leadership has moved away and back and another was granted", inject: lateGrant},
	}
}

// aside is a delay that makes a candidate answer later than a coordinator waits,
// and that lets heartbeats through.
const aside = 100 * time.Millisecond

// lateGrant brings two Grants into the log that were decided on the same record.
// A leader that is beside the primary's host loses it, decides, and then its
// goroutine gets no CPU. Another leader, which does not reach the first candidate,
// decides for a second one. The former one leads again when the CPU comes: its
// Grant, whose candidate has consented not long ago, must be refused for what it
// was decided on. The second candidate hears late of what is committed then.
func lateGrant(ctx context.Context, s *stage, d *draw) (broken, error) {
	group := d.group(s)
	old := s.primary(ctx, group)
	if old == nil {
		return broken{}, errNobody
	}
	// The best of equal candidates is the one whose name comes first.
	others := slices.DeleteFunc(slices.Clone(s.members), func(h *rig.Host) bool { return h == old })
	slices.SortFunc(others, func(a, b *rig.Host) int { return strings.Compare(a.NodeID(), b.NodeID()) })
	first, next := others[0], others[1+d.IntN(len(others)-1)]
	b := broken{what: fmt.Sprintf("the Grant of %s to %s waits at the leader %s, while %s leads", group, first.NodeID(), old.NodeID(), next.NodeID())}
	if err := s.lead(ctx, old); err != nil {
		return b, err
	}
	apart := func(p rig.Policy) error {
		return errors.Join(s.between(index(first), index(next), p), s.between(index(next), index(first), p))
	}
	if err := apart(rig.Policy{Delay: aside}); err != nil {
		return b, err
	}
	epochs, err := s.epochs(ctx)
	if err != nil {
		return b, err
	}
	if err := old.Control(ctx, []byte(`{"hold_grant":true}`)); err != nil {
		return b, err
	}
	b.then = func(ctx context.Context) error {
		late := s.lateBehind(ctx, group, epochs[group], old, first, next)
		return errors.Join(late, old.Control(ctx, []byte(`{"hold_grant":false}`)), sleep(ctx, d.lease))
	}
	b.lost = []string{group}
	return b, old.Model(group).Kill()
}

// lateBehind lets the Grant that waits at old come behind that of another leader.
func (s *stage) lateBehind(ctx context.Context, group string, epoch uint64, old, first, next *rig.Host) error {
	const patience = time.Second // the consent of the first candidate lasts no longer
	vacant := func(g *pb.Group) bool { return g.GetPhase() == pb.GroupPhase_GROUP_PHASE_VACANT }
	if _, err := s.awaitGroup(ctx, group, patience, vacant); err != nil {
		return err
	}
	// Its coordinator decides meanwhile; nothing outside shows when it has.
	if err := sleep(ctx, 2*lookEvery); err != nil {
		return err
	}
	if err := s.transfer(ctx, next); err != nil {
		return err
	}
	g, err := s.awaitGroup(ctx, group, patience, func(g *pb.Group) bool { return g.GetEpoch() > epoch && !vacant(g) })
	if err != nil {
		return err
	}
	second, ok := s.rig.Host(g.GetHolder())
	if !ok || second == first {
		return fmt.Errorf("%s was granted to %s, as before", group, g.GetHolder())
	}
	if err := s.transfer(ctx, old); err != nil || second == old {
		return err
	}
	return s.between(index(old), index(second), rig.Policy{Delay: aside})
}

// index is a host as an end of a link.
func index(h *rig.Host) []int { return []int{h.Index()} }

// awaitGroup waits for a record of a group.
func (s *stage) awaitGroup(ctx context.Context, group string, patience time.Duration, fits func(*pb.Group) bool) (*pb.Group, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(lookEvery / 2)
	defer tick.Stop()
	for {
		groups, _, err := s.records(ctx)
		if g := groups[group]; err == nil && fits(g) {
			return g, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s did not come to where it should within %v: it is %v", group, patience, groups[group])
		case <-tick.C:
		}
	}
}
