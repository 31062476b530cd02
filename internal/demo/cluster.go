// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/hastate/hastate/client"
	"github.com/hastate/hastate/internal/proc"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const (
	nodes = 3
	// portsPerHost: the node's gRPC and HTTP, the model's HTTP and gRPC.
	portsPerHost = 4
	seed         = 7
	// MaxBasePort is the largest base port that leaves room for all.
	MaxBasePort = 65536 - nodes*portsPerHost
)

// host is one node with the model server beside it.
type host struct {
	id                               string
	grpc, nodeHTTP, http, instanceRP string
	node, model                      *proc.Process
}

// cluster is three hosts on loopback.
type cluster struct {
	options  Options
	dir      string
	timeline *timeline
	hosts    []*host
	client   *client.Client
	web      *http.Client
	// background are calls that run beside the stream; stop waits for them.
	background sync.WaitGroup
	// newLeaderAt is when another leader than the killed one was first seen; set
	// by a call in background.
	newLeaderAt time.Time
}

func (c *cluster) say(format string, args ...any) {
	if !c.options.JSON {
		fmt.Fprintf(c.options.Out, format+"\n", args...)
	}
}

// start starts the processes; a cluster that could not start whole is stopped by
// its owner.
func (c *cluster) start(ctx context.Context) error {
	ports, err := c.ports()
	if err != nil {
		return err
	}
	at := func(i int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[i])) }
	var join []string
	for i := range nodes {
		first := i * portsPerHost
		h := &host{id: fmt.Sprintf("n%d", i+1), grpc: at(first), nodeHTTP: at(first + 1), http: at(first + 2), instanceRP: at(first + 3)}
		c.hosts = append(c.hosts, h)
		join = append(join, h.grpc)
	}
	c.web = &http.Client{Transport: &http.Transport{DialContext: (&net.Dialer{Timeout: time.Second}).DialContext, ResponseHeaderTimeout: 2 * time.Second}}
	if c.client, err = client.Dial(client.Options{Endpoints: join, AttemptTimeout: 300 * time.Millisecond, Name: "demo"}); err != nil {
		return err
	}
	for _, h := range c.hosts {
		if err := c.startHost(h, strings.Join(join, ",")); err != nil {
			return err
		}
	}
	return c.waitMembers(ctx)
}

func (c *cluster) ports() ([]int, error) {
	if c.options.BasePort == 0 {
		return proc.Ports(nodes * portsPerHost)
	}
	var ports []int
	for i := range nodes * portsPerHost {
		port := c.options.BasePort + i
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			return nil, fmt.Errorf("port %d is not free: %w: stop what uses it, or choose another --base-port", port, err)
		}
		_ = l.Close()
		ports = append(ports, port)
	}
	return ports, nil
}

func (c *cluster) startHost(h *host, join string) (err error) {
	model := proc.Spec{Name: "model server of " + h.id, Path: c.options.Textserver, Args: []string{
		"--http", h.http, "--grpc", h.instanceRP, "--hastate", h.grpc + "," + join, "--name", h.id,
		"--seed", strconv.Itoa(seed), "--token-delay", pace.String(), "--allow-faults",
	}}
	if model.Path == "" {
		model.Path, model.Args = c.options.Hanode, append([]string{"textserver"}, model.Args...)
	}
	if h.model, err = proc.Start(model); err != nil {
		return err
	}
	h.node, err = proc.Start(proc.Spec{Name: "node " + h.id, Path: c.options.Hanode, Args: []string{
		"run", "--node-id", h.id, "--data-dir", filepath.Join(c.dir, h.id), "--listen", h.grpc, "--http-listen", h.nodeHTTP,
		"--bootstrap-expect", strconv.Itoa(nodes), "--join", join, "--profile", c.options.Profile,
		"--instance-kind", "grpc", "--instance-target", h.instanceRP, "--instance-address", h.http,
		"--instance-interval", "100ms",
	}})
	return err
}

// waitMembers waits until every host has an instance that is ready, so that each
// can be promoted.
func (c *cluster) waitMembers(ctx context.Context) error {
	return c.poll(ctx, "all model servers to be ready", func() error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		ready := 0
		err := c.client.Call(ctx, client.Repeatable, func(ctx context.Context, cc grpc.ClientConnInterface) error {
			reply, err := pb.NewGroupServiceClient(cc).ListGroups(ctx, &pb.ListGroupsRequest{})
			for _, in := range reply.GetInstances() {
				if in.GetState() == pb.InstanceState_INSTANCE_STATE_READY {
					ready++
				}
			}
			return err
		})
		if err == nil && ready < nodes {
			err = fmt.Errorf("%d of %d are ready", ready, nodes)
		}
		return err
	})
}

// poll asks until check succeeds; a process that has ended ends the wait.
func (c *cluster) poll(ctx context.Context, what string, check func() error) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		for _, h := range c.hosts {
			for _, p := range []*proc.Process{h.node, h.model} {
				if p != nil && !p.Running() && c.timeline.quiet() {
					return fmt.Errorf("%s ended by itself with exit code %d", p.Spec.Name, p.ExitCode())
				}
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w (last: %w)", what, ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// waitServing waits for a primary that serves under an epoch above.
func (c *cluster) waitServing(ctx context.Context, above uint64) (client.Primary, error) {
	var p client.Primary
	err := c.poll(ctx, "a primary that serves", func() error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		var err error
		if p, err = c.client.Primary(ctx, ""); err != nil {
			return err
		}
		if !p.Serving() || p.Epoch <= above {
			return fmt.Errorf("%s under epoch %d, %s", p.NodeID, p.Epoch, p.Phase)
		}
		return nil
	})
	return p, err
}

func (c *cluster) host(id string) (*host, bool) {
	for _, h := range c.hosts {
		if h.id == id {
			return h, true
		}
	}
	return nil, false
}

func (c *cluster) primaryHost(ctx context.Context) (*host, error) {
	p, err := c.client.Primary(ctx, "")
	if err != nil {
		return nil, err
	}
	h, ok := c.host(p.NodeID)
	if !ok {
		return nil, fmt.Errorf("the primary is %q, which is none of ours", p.NodeID)
	}
	return h, nil
}

// leader asks the nodes that run who leads; empty if nobody knows.
func (c *cluster) leader(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var leader string
	_ = c.client.Call(ctx, client.Repeatable, func(ctx context.Context, cc grpc.ClientConnInterface) error {
		reply, err := pb.NewClusterServiceClient(cc).Status(ctx, &pb.StatusRequest{})
		leader = reply.GetLeaderId()
		return err
	}) // no answer is the same as not known
	return leader
}

func (c *cluster) waitLeaderNot(ctx context.Context, id string) error {
	return c.poll(ctx, "another leader than "+id, func() error {
		if l := c.leader(ctx); l == "" || l == id {
			return fmt.Errorf("%q leads", l)
		}
		return nil
	})
}

// watch writes what the cluster says of its primary into the timeline.
func (c *cluster) watch(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() { c.watchLeader(ctx) })
	done.Go(func() {
		type standing struct {
			phase   pb.GroupPhase
			epoch   uint64
			revoked bool
		}
		var before standing
		// It ends with ctx: a watch that breaks before is only less to tell.
		_ = c.client.WatchGroups(ctx, nil, 0, func(w *pb.WatchResponse) error {
			now, g := time.Now(), w.GetGroup()
			is := standing{g.GetPhase(), g.GetEpoch(), g.GetRevoked()}
			if g == nil || is == before { // a heartbeat, or something else changed
				return nil
			}
			before = is
			switch g.GetPhase() {
			case pb.GroupPhase_GROUP_PHASE_VACANT:
				c.timeline.add(now, "%s released: %s", g.GetLastHolder(), g.GetReleaseReason())
			case pb.GroupPhase_GROUP_PHASE_GRANTED:
				if !g.GetRevoked() {
					c.timeline.add(now, "granted to %s, epoch %d: %s", g.GetHolder(), g.GetEpoch(), w.GetTransition().GetReason())
				}
			case pb.GroupPhase_GROUP_PHASE_SERVING:
				c.timeline.add(now, "%s was promoted and serves under epoch %d", g.GetHolder(), g.GetEpoch())
			}
			return nil
		})
	})
	return func() { cancel(); done.Wait() }
}

// watchLeader writes each new leader into the timeline.
func (c *cluster) watchLeader(ctx context.Context) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	before := c.leader(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if id := c.leader(ctx); id != "" && id != before {
			before = id
			c.timeline.add(time.Now(), "%s leads", id)
		}
	}
}

// phases fills in the milliseconds of the transition that followed the fault,
// from the cluster's own history; its wall clock is ours, on one machine.
func (c *cluster) phases(ctx context.Context, r *Result, faulted time.Time) error {
	if !faults[r.Fault].moves {
		c.background.Wait()
		ms := c.newLeaderAt.Sub(faulted).Milliseconds()
		r.DetectedMillis, r.GrantedMillis, r.ServingMillis = ms, ms, ms
		return nil
	}
	return c.poll(ctx, "the history of the transition", func() error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		return c.client.Call(ctx, client.Repeatable, func(ctx context.Context, cc grpc.ClientConnInterface) error {
			reply, err := pb.NewGroupServiceClient(cc).History(ctx, &pb.HistoryRequest{})
			if err != nil {
				return err
			}
			for _, t := range reply.GetTransitions() {
				if t.GetEpoch() == r.EpochAfter && t.GetOutcome() == pb.TransitionOutcome_TRANSITION_OUTCOME_SERVING {
					zero := faulted.UnixMilli()
					r.GrantedMillis = t.GetGrantedUnixMs() - zero
					r.DetectedMillis = max(r.GrantedMillis-int64(t.GetGrantMs()), 0) //nolint:gosec // a duration
					r.ServingMillis = t.GetEndedUnixMs() - zero
					return nil
				}
			}
			return errors.New("not in the history yet")
		})
	})
}

// hints says what a person may try on the cluster that was kept.
func (c *cluster) hints(w interface{ Write([]byte) (int, error) }) {
	var up []string
	for _, h := range c.hosts {
		if h.node.Running() {
			up = append(up, h.grpc)
		}
	}
	hactl := c.options.Hactl
	fmt.Fprintf(w, "\nThe cluster is left running; Ctrl-C ends it. Three things to try:\n")
	fmt.Fprintf(w, "  export HACTL_ENDPOINTS=%s\n", strings.Join(up, ","))
	fmt.Fprintf(w, "  %s status\n  %s history\n  %s switchover\n", hactl, hactl, hactl)
}

// stop ends everything that start has started.
func (c *cluster) stop() error {
	var errs []error
	if c.client != nil {
		errs = append(errs, c.client.Close())
	}
	c.background.Wait()
	if c.web != nil {
		c.web.CloseIdleConnections()
	}
	for _, h := range c.hosts {
		for _, p := range []*proc.Process{h.node, h.model} {
			if p != nil {
				errs = append(errs, p.Kill())
			}
		}
	}
	return errors.Join(errs...)
}

// lastLines keeps the end of a text.
func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// tails is the end of what the processes printed, for a demo that failed.
func (c *cluster) tails() string {
	var b strings.Builder
	for _, h := range c.hosts {
		for _, p := range []*proc.Process{h.node, h.model} {
			if p != nil {
				fmt.Fprintf(&b, "--- %s ---\n%s\n", p.Spec.Name, lastLines(p.Tail(), 12))
			}
		}
	}
	return b.String()
}
