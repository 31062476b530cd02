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
	// cuts are the links, from and to, that a fault has cut.
	cuts map[[2]int]bool
	// ended are processes that ended by themselves; the run looks and empties it.
	ended []exited
	// joined counts the nodes that were ever made, for their names.
	joined int
	// dir is the folder of the run.
	dir string
	// say tells people what happens.
	say func(format string, args ...any)
}

func openStage(ctx context.Context, o options, dir, images string, say func(string, ...any)) (*stage, error) {
	s := &stage{
		o: o, conns: map[string]*grpc.ClientConn{}, web: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, starts: map[*rig.Host]rig.NodeStart{}, downed: map[*rig.Host]bool{}, cuts: map[[2]int]bool{}, dir: dir, say: say,
	}
	for i := range o.groups {
		s.groups = append(s.groups, fmt.Sprintf("g%d", i+1))
	}
	var err error
	var nodeArgs []string
	if o.logStore != "" {
		nodeArgs = []string{"--log-store", o.logStore}
	}
	s.rig, err = rig.Open(ctx, rig.Options{
		Hosts: o.nodes + 1, Voters: o.nodes, Groups: s.groups, Dir: dir, Hanode: o.hanode, Model: []string{o.self, "model"},
		Profile: o.profile, Root: o.root, Folders: !o.disks, Images: images, Seed: o.seed, NodeArgs: nodeArgs,
	})
	if err != nil {
		return nil, fmt.Errorf("make the hosts: %w", err)
	}
	hosts := s.rig.Hosts()
	s.members = slices.Clone(hosts[:o.nodes])
	s.joined = o.nodes
	endpoints := addresses(s.members)
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

// addresses are where the nodes of hosts are reached.
func addresses(hosts []*rig.Host) []string {
	var all []string
	for _, h := range hosts {
		all = append(all, h.GRPC())
	}
	return all
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
	if err := s.startModels(h); err != nil {
		return err
	}
	return s.startNode(h)
}

// startModels starts the model servers that do not run, and notes those that have ended
// by themselves: this run ends them by a signal only.
func (s *stage) startModels(h *rig.Host) error {
	for _, g := range s.groups {
		p := h.Model(g)
		if p != nil && !p.Running() && p.ExitCode() >= 0 {
			s.ended = append(s.ended, exited{id: "the model server of " + g + " at " + h.NodeID(), code: p.ExitCode(), tail: lastLines(p.Tail(), 12)})
		}
		if p == nil || !p.Running() {
			if err := h.StartModel(g); err != nil {
				return err
			}
		}
	}
	return nil
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
