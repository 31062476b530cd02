// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/rig"
)

// status asks one node.
func (s *stage) status(ctx context.Context, h *rig.Host, withHash bool) (*pb.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	conn, err := s.conn(h.GRPC())
	if err != nil {
		return nil, err
	}
	return pb.NewClusterServiceClient(conn).Status(ctx, &pb.StatusRequest{WithHash: withHash})
}

// leader is the host whose node leads, as itself and one other say; nil if that
// cannot be found out now.
func (s *stage) leader(ctx context.Context) *rig.Host {
	votes := map[string]int{}
	for _, h := range s.members {
		if p := h.Node(); p == nil || !p.Running() {
			continue
		}
		if st, err := s.status(ctx, h, false); err == nil && st.GetLeaderId() != "" {
			votes[st.GetLeaderId()]++
		}
	}
	for id, n := range votes {
		if h, ok := s.rig.Host(id); ok && n >= 2 {
			return h
		}
	}
	return nil
}

// call asks the cluster.
func (s *stage) call(ctx context.Context, kind client.Kind, timeout time.Duration, fn func(context.Context, grpc.ClientConnInterface) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return s.client.Call(ctx, kind, fn)
}

// records are the groups' records, linearizable.
func (s *stage) records(ctx context.Context) (map[string]*pb.Group, []*pb.Instance, error) {
	var reply *pb.ListGroupsResponse
	err := s.call(ctx, client.Repeatable, 2*time.Second, func(ctx context.Context, cc grpc.ClientConnInterface) (err error) {
		reply, err = pb.NewGroupServiceClient(cc).ListGroups(ctx, &pb.ListGroupsRequest{})
		return err
	})
	groups := map[string]*pb.Group{}
	for _, g := range reply.GetGroups() {
		groups[g.GetName()] = g
	}
	return groups, reply.GetInstances(), err
}

// primary is the host that serves a group, nil if that cannot be found out now.
func (s *stage) primary(ctx context.Context, group string) *rig.Host {
	groups, _, err := s.records(ctx)
	if err != nil {
		return nil
	}
	h, ok := s.rig.Host(groups[group].GetHolder())
	if !ok {
		return nil
	}
	return h
}

// held are the groups whose primary is on one of the hosts.
func (s *stage) held(ctx context.Context, hosts ...*rig.Host) []string {
	groups, _, err := s.records(ctx)
	if err != nil {
		return nil
	}
	var names []string
	for _, name := range s.groups {
		for _, h := range hosts {
			if groups[name].GetHolder() == h.NodeID() {
				names = append(names, name)
			}
		}
	}
	return names
}

// elsewhere are the groups whose primary is at a member, but not at one of these.
func (s *stage) elsewhere(ctx context.Context, these ...*rig.Host) []string {
	return s.held(ctx, slices.DeleteFunc(slices.Clone(s.members), func(h *rig.Host) bool { return slices.Contains(these, h) })...)
}

// epochs are the newest epochs of all groups.
func (s *stage) epochs(ctx context.Context) (map[string]uint64, error) {
	groups, _, err := s.records(ctx)
	if err != nil {
		return nil, err
	}
	epochs := map[string]uint64{}
	for name, g := range groups {
		epochs[name] = g.GetEpoch()
	}
	return epochs, nil
}

// transitions are what the history keeps of all groups, oldest first.
func (s *stage) transitions(ctx context.Context) ([]*pb.Transition, error) {
	var all []*pb.Transition
	for _, g := range s.groups {
		err := s.call(ctx, client.Repeatable, 5*time.Second, func(ctx context.Context, cc grpc.ClientConnInterface) error {
			reply, err := pb.NewGroupServiceClient(cc).History(ctx, &pb.HistoryRequest{Group: g, Limit: hastate.MaxHistory})
			all = append(all, reply.GetTransitions()...)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("read the history of %s: %w", g, err)
		}
	}
	slices.SortFunc(all, func(a, b *pb.Transition) int {
		if c := strings.Compare(a.GetGroup(), b.GetGroup()); c != 0 {
			return c
		}
		return int(a.GetNumber()) - int(b.GetNumber()) //nolint:gosec // small
	})
	return all, nil
}

// waitNewLeader waits until other nodes follow another leader, which has
// committed in its term: it answers a linearizable read.
func (s *stage) waitNewLeader(ctx context.Context, old *rig.Host) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		err := s.newLeader(ctx, old)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

func (s *stage) newLeader(ctx context.Context, old *rig.Host) error {
	for _, h := range s.members {
		if h == old {
			continue
		}
		st, err := s.status(ctx, h, false)
		if err != nil {
			return err
		}
		if st.GetLeaderId() == "" || st.GetLeaderId() == old.NodeID() {
			return fmt.Errorf("%s follows %q", h.NodeID(), st.GetLeaderId())
		}
		conn, err := s.conn(h.GRPC())
		if err != nil {
			return err
		}
		timed, cancel := context.WithTimeout(ctx, askTimeout)
		_, err = pb.NewGroupServiceClient(conn).ListGroups(timed, &pb.ListGroupsRequest{})
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}
