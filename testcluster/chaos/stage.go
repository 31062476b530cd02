// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/rig"
)

// askTimeout bounds one question to one node.
const askTimeout = time.Second

// stage is the cluster that a run breaks, as the run knows it. It belongs to the
// goroutine of the run.
type stage struct {
	o      options
	rig    *rig.Rig
	client *client.Client
	conns  map[string]*grpc.ClientConn
	web    *http.Client
	groups []string
	// members are the hosts whose nodes belong to the cluster; the others are
	// spare.
	members []*rig.Host
	// starts is how the node of a host is started.
	starts map[*rig.Host]rig.NodeStart
	// downed are the hosts whose node this run has ended, or not started: any other
	// node that is not running has ended by itself.
	downed map[*rig.Host]bool
	// ended are nodes that ended by themselves; the run looks and empties it.
	ended []exited
	// joined counts the nodes that were ever made, for their names.
	joined int
	// say tells people what happens.
	say func(format string, args ...any)
}

func openStage(ctx context.Context, o options, dir, images string, say func(string, ...any)) (*stage, error) {
	s := &stage{
		o: o, conns: map[string]*grpc.ClientConn{}, web: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, starts: map[*rig.Host]rig.NodeStart{}, downed: map[*rig.Host]bool{}, say: say,
	}
	for i := range o.groups {
		s.groups = append(s.groups, fmt.Sprintf("g%d", i+1))
	}
	var err error
	s.rig, err = rig.Open(ctx, rig.Options{
		Hosts: o.nodes + 1, Voters: o.nodes, Groups: s.groups, Dir: dir, Hanode: o.hanode, Model: []string{o.self, "model"},
		Profile: o.profile, Root: o.root, Images: images, Seed: o.seed,
	})
	if err != nil {
		return nil, fmt.Errorf("make the hosts: %w", err)
	}
	hosts := s.rig.Hosts()
	s.members = slices.Clone(hosts[:o.nodes])
	s.joined = o.nodes
	var endpoints []string
	for _, h := range s.members {
		endpoints = append(endpoints, h.GRPC())
	}
	for _, h := range hosts {
		s.downed[h] = true
		s.starts[h] = rig.NodeStart{Expect: o.nodes, Join: endpoints, WatchdogOff: o.watchdogOff}
	}
	if s.client, err = client.Dial(client.Options{
		Endpoints: s.rig.Endpoints(), DialOptions: s.dial(), AttemptTimeout: 500 * time.Millisecond, Name: "chaos",
	}); err != nil {
		return nil, errors.Join(err, s.rig.Close())
	}
	return s, nil
}

// start brings the cluster up for the first time.
func (s *stage) start(ctx context.Context) error {
	for _, h := range s.members {
		if err := s.startHost(h); err != nil {
			return err
		}
	}
	if err := s.waitWhole(ctx); err != nil {
		return err
	}
	for _, g := range s.groups {
		if err := s.neverHold(ctx, g); err != nil {
			return fmt.Errorf("configure %s: %w", g, err)
		}
	}
	return nil
}

// neverHold switches off the hold after repeated failovers: here they repeat.
func (s *stage) neverHold(ctx context.Context, group string) error {
	return s.call(ctx, client.Repeatable, askTimeout, func(ctx context.Context, cc grpc.ClientConnInterface) error {
		groups := pb.NewGroupServiceClient(cc)
		reply, err := groups.GetGroup(ctx, &pb.GetGroupRequest{Group: group})
		if err != nil {
			return err
		}
		policy := reply.GetGroup().GetPolicy()
		if policy == nil {
			policy = &pb.GroupPolicy{}
		}
		policy.MaxFailovers = 0
		_, err = groups.Configure(ctx, &pb.ConfigureRequest{Group: group, Policy: policy})
		return err
	})
}

func (s *stage) close() error {
	errs := []error{s.client.Close()}
	for _, c := range s.conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(append(errs, s.rig.Close())...)
}

// startHost starts what does not run on a host.
func (s *stage) startHost(h *rig.Host) error {
	for _, g := range s.groups {
		if p := h.Model(g); p == nil || !p.Running() {
			if err := h.StartModel(g); err != nil {
				return err
			}
		}
	}
	return s.startNode(h)
}

func (s *stage) startNode(h *rig.Host) error {
	if p := h.Node(); p != nil && p.Running() {
		return nil
	}
	s.downed[h] = false
	return h.StartNode(s.starts[h])
}

// kill ends processes of hosts, all at once as far as that goes.
func (s *stage) kill(nodes, models bool, hosts ...*rig.Host) error {
	var errs []error
	each := func(do func(p process) error) {
		for _, h := range hosts {
			if p := h.Node(); nodes && p != nil {
				errs = append(errs, do(p))
			}
			for _, g := range s.groups {
				if p := h.Model(g); models && p != nil {
					errs = append(errs, do(p))
				}
			}
		}
	}
	if nodes {
		for _, h := range hosts {
			s.downed[h] = true
		}
	}
	each(func(p process) error { return p.Signal(syscall.SIGKILL) })
	each(func(p process) error { return p.Kill() })
	return errors.Join(errs...)
}

// process is the part of proc.Process that faults use.
type process interface {
	Signal(sig syscall.Signal) error
	Kill() error
	Running() bool
}

// signal sends a signal to what runs on hosts.
func (s *stage) signal(sig syscall.Signal, nodes, models bool, hosts ...*rig.Host) error {
	var errs []error
	for _, h := range hosts {
		if p := h.Node(); nodes && p != nil {
			errs = append(errs, p.Signal(sig))
		}
		for _, g := range s.groups {
			if p := h.Model(g); models && p != nil {
				errs = append(errs, p.Signal(sig))
			}
		}
	}
	return errors.Join(errs...)
}

// dial are the options of connections to nodes: plaintext, and no waiting when a
// node is started again.
func (s *stage) dial() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: askTimeout,
		}),
	}
}

func (s *stage) conn(address string) (*grpc.ClientConn, error) {
	if c, ok := s.conns[address]; ok {
		return c, nil
	}
	c, err := grpc.NewClient("passthrough:///"+address, s.dial()...)
	if err == nil {
		s.conns[address] = c
	}
	return c, err
}

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

// servers are the addresses of the members' model servers, by group.
func (s *stage) servers() map[string][]string {
	all := map[string][]string{}
	for _, g := range s.groups {
		for _, h := range s.members {
			all[g] = append(all[g], h.ModelAddress(g))
		}
	}
	return all
}

// tails is the end of what the nodes printed.
func (s *stage) tails() string {
	var b strings.Builder
	for _, h := range s.rig.Hosts() {
		if p := h.Node(); p != nil {
			fmt.Fprintf(&b, "--- %s ---\n%s\n", h.NodeID(), lastLines(p.Tail(), 6))
		}
	}
	return b.String()
}
