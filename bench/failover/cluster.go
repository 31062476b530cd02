// SPDX-License-Identifier: Apache-2.0

package failover

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/hastate/hastate/client"
	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/internal/proc"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

const (
	hosts = 3
	// portsPerHost: the node's gRPC, the model server's gRPC and HTTP.
	portsPerHost = 3
	// lookEvery is between two looks at something that is waited for, lookTimeout bounds
	// one.
	lookEvery, lookTimeout = 10 * time.Millisecond, 2 * time.Second
)

// host is a node with a model server.
type host struct {
	id              string
	grpc, role, web string
	node, model     *proc.Process
	// starts counts those of the model server: each has records of its own.
	starts int
}

// cluster is three hosts. It belongs to one goroutine.
type cluster struct {
	o      Options
	dir    string
	hosts  []*host
	client *client.Client
	// began is when each round broke something.
	began []clock.Instant
}

// start starts all and waits until everything is whole. The cluster is stopped by its
// owner also if it could not.
func start(ctx context.Context, o Options, dir string) (*cluster, error) {
	c := &cluster{o: o, dir: dir}
	ports, err := proc.Ports(hosts * portsPerHost)
	if err != nil {
		return c, err
	}
	at := func(i int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[i])) }
	for i := range hosts {
		k := i * portsPerHost
		c.hosts = append(c.hosts, &host{id: fmt.Sprintf("n%d", i+1), grpc: at(k), role: at(k + 1), web: at(k + 2)})
	}
	if c.client, err = client.Dial(client.Options{Endpoints: c.endpoints(), AttemptTimeout: requestTimeout, Name: "bench"}); err != nil {
		return c, err
	}
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	if err := c.repair(ctx); err != nil {
		return c, err
	}
	return c, c.neverHold(ctx)
}

func (c *cluster) endpoints() []string {
	var all []string
	for _, h := range c.hosts {
		all = append(all, h.grpc)
	}
	return all
}

func (c *cluster) startModel(h *host) (err error) {
	h.starts++
	h.model, err = proc.Start(proc.Spec{Name: "model server of " + h.id, Path: c.o.Model[0], Args: append(slices.Clone(c.o.Model[1:]),
		"--node", h.id, "--grpc", h.role, "--http", h.web, "--control", filepath.Join(c.dir, h.id+".sock"),
		"--served", c.record("served", h, h.starts), "--promotions", c.record("promotions", h, h.starts))})
	return err
}

// record is the file of a model server's records.
func (c *cluster) record(what string, h *host, start int) string {
	return filepath.Join(c.dir, fmt.Sprintf("%s-%s-%d.jsonl", what, h.id, start))
}

func (c *cluster) startNode(h *host) (err error) {
	args := []string{
		"run", "--node-id", h.id, "--data-dir", filepath.Join(c.dir, h.id), "--listen", h.grpc, "--http-listen", "",
		"--bootstrap-expect", strconv.Itoa(hosts), "--join", strings.Join(c.endpoints(), ","), "--profile", c.o.Profile,
		"--instance-kind", "grpc", "--instance-target", h.role, "--instance-address", h.web,
	}
	if c.o.LogStore != "" {
		args = append(args, "--log-store", c.o.LogStore)
	}
	h.node, err = proc.Start(proc.Spec{Name: "node " + h.id, Path: c.o.Hanode, Args: args})
	return err
}

// repair lets everything run that does not, and waits until the cluster is whole.
func (c *cluster) repair(ctx context.Context) error {
	for _, h := range c.hosts {
		for _, p := range []*proc.Process{h.node, h.model} {
			if p != nil && p.Running() {
				_ = p.Signal(syscall.SIGCONT) // it may have ended just now
			}
		}
	}
	return poll(ctx, "the cluster to be whole", func() error {
		for _, h := range c.hosts {
			if h.model == nil || !h.model.Running() {
				_ = os.Remove(filepath.Join(c.dir, h.id+".sock")) // of one that was killed
				if err := c.startModel(h); err != nil {
					return err
				}
			}
			if h.node == nil || !h.node.Running() {
				if err := c.startNode(h); err != nil {
					return err
				}
			}
		}
		return c.whole(ctx)
	})
}

// whole says what is missing.
func (c *cluster) whole(ctx context.Context) error {
	var leader *pb.StatusResponse
	for _, h := range c.hosts {
		s, err := c.status(ctx, h)
		switch {
		case err != nil:
			return fmt.Errorf("%s does not answer: %w", h.id, err)
		case s.GetLeaderId() == "":
			return fmt.Errorf("%s knows no leader", h.id)
		case s.GetLeaderId() == h.id:
			leader = s
		}
	}
	if leader == nil {
		return errors.New("nobody leads")
	}
	voters, ready := 0, 0
	for _, m := range leader.GetMembers() {
		if m.GetRole() == pb.MemberRole_MEMBER_ROLE_VOTER && (m.GetLeader() || m.GetReachable()) {
			voters++
		}
	}
	for _, in := range leader.GetInstances() {
		if in.GetState() == pb.InstanceState_INSTANCE_STATE_READY {
			ready++
		}
	}
	if voters < hosts || ready < hosts {
		return fmt.Errorf("%d voters are there, and %d model servers are ready", voters, ready)
	}
	for _, p := range leader.GetPrimaries() {
		if p.GetPhase() == pb.GroupPhase_GROUP_PHASE_SERVING {
			return nil
		}
	}
	return errors.New("no primary serves")
}

// status asks one node.
func (c *cluster) status(ctx context.Context, h *host) (*pb.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	conn, err := dial(h.grpc)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }() // only read from
	return pb.NewClusterServiceClient(conn).Status(ctx, &pb.StatusRequest{})
}

// leader is the host that leads; it is an error if none does.
func (c *cluster) leader(ctx context.Context) (*host, error) {
	var errs []error
	for _, h := range c.hosts {
		s, err := c.status(ctx, h)
		if err == nil && s.GetRaftState() == "Leader" {
			return h, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(append([]error{errors.New("nobody leads")}, errs...)...)
}

// primary is the host whose model server serves.
func (c *cluster) primary(ctx context.Context) (*host, error) {
	p, err := c.waitServing(ctx, 0)
	if err != nil {
		return nil, err
	}
	for _, h := range c.hosts {
		if h.id == p.NodeID {
			return h, nil
		}
	}
	return nil, fmt.Errorf("the primary is %q, which is none of ours", p.NodeID)
}

// waitServing waits for a primary that serves under an epoch above.
func (c *cluster) waitServing(ctx context.Context, above uint64) (p client.Primary, err error) {
	return p, poll(ctx, "a primary that serves", func() error {
		ctx, cancel := context.WithTimeout(ctx, lookTimeout)
		defer cancel()
		if p, err = c.client.Primary(ctx, ""); err != nil {
			return err
		}
		if !p.Serving() || p.Epoch <= above {
			return fmt.Errorf("%s under epoch %d: %s", p.NodeID, p.Epoch, p.Phase)
		}
		return nil
	})
}

// write waits for a write that is acknowledged.
func (c *cluster) write(ctx context.Context) error {
	_, err := c.client.Sessions("").Put(ctx, &pb.PutRequest{Session: &pb.Session{Id: "bench", Value: []byte("written")}})
	return err
}

// neverHold switches off the hold after repeated failovers: here they repeat.
func (c *cluster) neverHold(ctx context.Context) error {
	return c.client.Call(ctx, client.Repeatable, func(ctx context.Context, cc grpc.ClientConnInterface) error {
		groups := pb.NewGroupServiceClient(cc)
		reply, err := groups.GetGroup(ctx, &pb.GetGroupRequest{})
		if err != nil {
			return err
		}
		policy := cmp.Or(reply.GetGroup().GetPolicy(), &pb.GroupPolicy{})
		policy.MaxFailovers = 0
		_, err = groups.Configure(ctx, &pb.ConfigureRequest{Policy: policy})
		return err
	})
}

// obeyed is when a model server has obeyed the Promote of an epoch, by its own record.
func (c *cluster) obeyed(epoch uint64) (clock.Instant, error) {
	for _, h := range c.hosts {
		promotions, err := record.Read[record.Promotion](c.record("promotions", h, h.starts))
		if err != nil {
			return 0, err
		}
		for _, p := range promotions {
			if p.Epoch == epoch {
				return p.At, nil
			}
		}
	}
	return 0, fmt.Errorf("no model server has written down a Promote of epoch %d", epoch)
}

// believers is in how many rounds two model servers took themselves for the primary:
// one answered under an epoch after another one had under a later one.
func (c *cluster) believers() (rounds int, err error) {
	var all []record.Served
	for _, h := range c.hosts {
		for i := range h.starts {
			served, err := record.Read[record.Served](c.record("served", h, i+1))
			if err != nil {
				return 0, err
			}
			all = append(all, served...)
		}
	}
	return twoBelievers(all, c.began), nil
}

func twoBelievers(all []record.Served, began []clock.Instant) int {
	slices.SortStableFunc(all, func(a, b record.Served) int { return cmp.Compare(a.At, b.At) })
	newest := uint64(0)
	in := map[int]bool{}
	for _, s := range all {
		if s.Epoch < newest {
			round, exact := slices.BinarySearch(began, s.At)
			if exact {
				round++
			}
			in[round] = true
		}
		newest = max(newest, s.Epoch)
	}
	return len(in)
}

// stop ends all processes.
func (c *cluster) stop() error {
	var errs []error
	if c.client != nil {
		errs = append(errs, c.client.Close())
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

// tails is the end of what the processes printed.
func (c *cluster) tails() string {
	var b strings.Builder
	for _, h := range c.hosts {
		for _, p := range []*proc.Process{h.node, h.model} {
			if p != nil {
				fmt.Fprintf(&b, "\n--- %s ---\n%s", p.Spec.Name, p.Tail())
			}
		}
	}
	return b.String()
}

// poll asks until check succeeds or ctx ends.
func poll(ctx context.Context, what string, check func() error) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w (last: %w)", what, context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

func dial(address string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
}
