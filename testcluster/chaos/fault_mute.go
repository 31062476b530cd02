// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/rig"
)

const (
	// muteTimes is how often leadership moves in one round of muteLeader.
	muteTimes = 4
	// muteSteps is in how many steps the answers to it get late: few are under way at
	// a time, and no gap between two of them may be as long as a leader's lease.
	muteSteps = 20
)

// muteLeader has a leader hear of its successor while it has every reason to
// believe that it leads, and then a write. It is not heard any more, so that another
// is elected; the answers to what it sent before are late, so that it leads on for as
// long; what its successor says is not. Nothing else happens meanwhile, and wakes it
// up: clients reach nobody, and without model servers no primary renews a lease. A
// write that one of the electors has sent to it before is the next thing that it does
// as a leader, if it still thinks that it is one (hashicorp/raft#695).
func muteLeader(ctx context.Context, s *stage, d *draw) (broken, error) {
	b := broken{what: fmt.Sprintf("without model servers, the leader is not heard and hears its successor first, %d times", muteTimes), lost: s.held(ctx, s.members...)}
	groups, _, err := s.records(ctx)
	if err != nil {
		return broken{}, errors.Join(errNobody, err)
	}
	group := d.group(s)
	write := &pb.ConfigureRequest{Group: group, Policy: groups[group].GetPolicy()}
	b.then = func(ctx context.Context) error {
		for range muteTimes {
			if err := s.muteOnce(ctx, d, write); err != nil {
				return err
			}
		}
		return nil
	}
	return b, s.kill(false, true, s.members...)
}

// muteOnce moves leadership in that way once.
func (s *stage) muteOnce(ctx context.Context, d *draw, write *pb.ConfigureRequest) error {
	share := d.Float64()
	leader, err := s.awaitLeader(ctx)
	if err != nil {
		return err
	}
	these, others := s.sides(one(leader))
	hosts := s.rig.Hosts()
	// The voters stand for election in the order of their ids, and the last of a
	// majority to do so wins.
	slices.SortFunc(others, func(a, b int) int { return cmp.Compare(hosts[a].NodeID(), hosts[b].NodeID()) })
	successor := len(s.members) / 2
	late := slices.Concat(others[:successor], others[successor+1:])
	forward := func(timeout time.Duration) error {
		conn, err := s.conn(hosts[late[0]].GRPC())
		if err != nil {
			return err
		}
		timed, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		_, err = pb.NewGroupServiceClient(conn).Configure(timed, write)
		return err
	}
	if err := forward(askTimeout); err != nil { // the stream to the leader must be there
		return err
	}
	if err := s.between([]int{rig.Hub}, slices.Concat(these, others), rig.Policy{Cut: true}); err != nil {
		return err
	}
	// More than a heartbeat timeout and an election, less than a leader waits.
	delay := d.lease/3 + time.Duration(share*float64(d.lease)/30)
	for i := range muteSteps {
		if err := s.between(late, these, rig.Policy{Delay: delay * time.Duration(i+1) / muteSteps}); err != nil {
			return err
		}
		if err := sleep(ctx, d.lease/30); err != nil {
			return err
		}
	}
	if err := s.between(these, others, rig.Policy{Cut: true}); err != nil {
		return err
	}
	if err := s.between([]int{rig.Hub}, late[:1], rig.Policy{}); err != nil {
		return err
	}
	cut := time.Now()
	err = forward(d.lease * 2 / 3)
	s.say("  a write that %s has sent to %s: %v", hosts[late[0]].NodeID(), leader.NodeID(), err)
	return errors.Join(sleep(ctx, time.Until(cut.Add(d.lease*2/3))), s.rig.HealLinks())
}

// awaitLeader waits until it is known who leads.
func (s *stage) awaitLeader(ctx context.Context) (*rig.Host, error) {
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		if h := s.leader(ctx); h != nil {
			return h, nil
		}
		select {
		case <-ctx.Done():
			return nil, errNobody
		case <-tick.C:
		}
	}
}
