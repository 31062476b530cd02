// SPDX-License-Identifier: Apache-2.0

//go:build process

package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/hastate/hastate/client"
	"github.com/hastate/hastate/internal/proc"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// patience is how long a condition may take to come true on a busy machine. No
// test passes by it.
const patience = 60 * time.Second

// eventually asks until check returns nil.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, patience, err)
		}
		<-tick.C
	}
}

// within is the context of one call.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// start starts a process that ends with the test at the latest.
func start(t *testing.T, spec proc.Spec) *proc.Process {
	t.Helper()
	p, err := proc.Start(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func send(t *testing.T, p *proc.Process, sig syscall.Signal) {
	t.Helper()
	if err := p.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

func kill(t *testing.T, ps ...*proc.Process) {
	t.Helper()
	for _, p := range ps { // all at once, as far as that goes
		send(t, p, syscall.SIGKILL)
	}
	for _, p := range ps {
		<-p.Exited()
	}
}

// ended waits until a process has ended and returns its exit code.
func ended(t *testing.T, p *proc.Process) int {
	t.Helper()
	select {
	case <-p.Exited():
	case <-time.After(patience):
		t.Fatalf("%s did not end within %v:\n%s", p.Spec.Name, patience, p.Tail())
	}
	return p.ExitCode()
}

// result is what a program that ran to its end has left.
type result struct {
	args           []string
	code           int
	stdout, stderr string
}

func (r result) String() string {
	return fmt.Sprintf("%s: exit %d\n--- stdout ---\n%s--- stderr ---\n%s", strings.Join(r.args, " "), r.code, r.stdout, r.stderr)
}

// runProgram runs a program to its end.
func runProgram(t *testing.T, env []string, path string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(cmd.Environ(), env...)
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	r := result{args: append([]string{filepath.Base(path)}, args...), code: cmd.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String()}
	if ctx.Err() != nil {
		t.Fatalf("it did not end by itself: %v", r)
	}
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatalf("%v: %v", r.args, err)
	}
	return r
}

// addresses are free ones on loopback.
func addresses(t *testing.T, n int) []string {
	t.Helper()
	ports, err := proc.Ports(n)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]string, n)
	for i, p := range ports {
		out[i] = net.JoinHostPort("127.0.0.1", strconv.Itoa(p))
	}
	return out
}

// host is one node and the model server beside it.
type host struct {
	id, dir string
	// grpc and web are the node's, target and address its model server's.
	grpc, web, target, address string
	node, model                *proc.Process
	// nodeArgs are those besides the usual ones.
	nodeArgs []string
	conn     *grpc.ClientConn
}

// cluster is three hosts.
type cluster struct {
	// t is the test that runs now, owner the one that the processes end with.
	t, owner *testing.T
	hosts    []*host
	client   *client.Client
	// profile of the timeouts.
	profile string
	// expect is --bootstrap-expect.
	expect int
}

// options of newCluster.
type options struct {
	// models: with a model server beside each node.
	models bool
	// nodeArgs are more arguments of a node, by its id; may be nil.
	nodeArgs func(id string) []string
	// dirs are the data folders; empty: new ones.
	dirs []string
	// dial are the credentials of calls; none: plaintext.
	dial []grpc.DialOption
	// modelArgs are given to every model server.
	modelArgs []string
}

// newCluster starts three nodes and waits until they have a leader, and, with
// models, until all of them are ready and one is primary.
func newCluster(t *testing.T, o options) *cluster {
	t.Helper()
	const size = 3
	c := &cluster{t: t, owner: t, profile: "lan", expect: size}
	at := addresses(t, 4*size)
	for i := range size {
		h := &host{id: fmt.Sprintf("n%d", i+1), grpc: at[4*i], web: at[4*i+1], target: at[4*i+2], address: at[4*i+3]}
		if o.nodeArgs != nil {
			h.nodeArgs = o.nodeArgs(h.id)
		}
		if h.dir = t.TempDir(); i < len(o.dirs) {
			h.dir = o.dirs[i]
		}
		h.conn = dial(t, h.grpc, o.dial...)
		c.hosts = append(c.hosts, h)
	}
	var err error
	if c.client, err = client.Dial(client.Options{Endpoints: c.endpoints(), Name: "process test", DialOptions: o.dial}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.client.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { // runs before the processes are killed
		if t.Failed() {
			t.Log(c.tails())
		}
	})
	for _, h := range c.hosts {
		if o.models {
			h.nodeArgs = append([]string{
				"--instance-kind", "grpc", "--instance-target", h.target, "--instance-address", h.address, "--instance-interval", "100ms",
			}, h.nodeArgs...)
			c.startModel(h, o.modelArgs...)
		}
		c.startNode(h)
	}
	c.leader()
	if o.models {
		c.ready(size)
		c.serving(0)
	}
	return c
}

// as is the cluster for a subtest.
func (c *cluster) as(t *testing.T) *cluster {
	sub := *c
	sub.t = t
	return &sub
}

func dial(t *testing.T, address string, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	if len(opts) == 0 {
		opts = append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))
	}
	conn, err := grpc.NewClient("passthrough:///"+address, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

func (c *cluster) endpoints() []string {
	var out []string
	for _, h := range c.hosts {
		out = append(out, h.grpc)
	}
	return out
}

func (c *cluster) startNode(h *host) {
	c.t.Helper()
	args := []string{
		"run", "--node-id", h.id, "--data-dir", h.dir, "--listen", h.grpc, "--http-listen", h.web, "--profile", c.profile,
		"--bootstrap-expect", strconv.Itoa(c.expect), "--join", strings.Join(c.endpoints(), ","),
	}
	h.node = start(c.owner, proc.Spec{Name: "node " + h.id, Path: hanodePath, Args: append(args, h.nodeArgs...)})
}

func (c *cluster) startModel(h *host, args ...string) {
	c.t.Helper()
	args = append([]string{
		"textserver", "--http", h.address, "--grpc", h.target, "--hastate", strings.Join(c.endpoints(), ","),
		"--name", h.id, "--seed", "7", "--token-delay", "1ms", "--allow-faults",
	}, args...)
	h.model = start(c.owner, proc.Spec{Name: "model server of " + h.id, Path: hanodePath, Args: args})
}

func (c *cluster) tails() string {
	var b strings.Builder
	for _, h := range c.hosts {
		for _, p := range []*proc.Process{h.node, h.model} {
			if p != nil {
				fmt.Fprintf(&b, "--- %s ---\n%s\n", p.Spec.Name, p.Tail())
			}
		}
	}
	return b.String()
}

func (c *cluster) host(id string) *host {
	c.t.Helper()
	for _, h := range c.hosts {
		if h.id == id {
			return h
		}
	}
	c.t.Fatalf("%q is none of ours", id)
	return nil
}

// but are the hosts other than some.
func (c *cluster) but(some ...*host) []*host {
	var out []*host
next:
	for _, h := range c.hosts {
		for _, s := range some {
			if s == h {
				continue next
			}
		}
		out = append(out, h)
	}
	return out
}

// status asks one node.
func (h *host) status(ctx context.Context) (*pb.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return pb.NewClusterServiceClient(h.conn).Status(ctx, &pb.StatusRequest{})
}

// leader waits until the hosts but some agree on a leader that is none of those,
// and that says so itself.
func (c *cluster) leader(but ...*host) *host {
	c.t.Helper()
	var leader *host
	eventually(c.t, "a leader", func() error {
		leader = nil
		for _, h := range c.but(but...) {
			s, err := h.status(c.t.Context())
			if err != nil {
				return fmt.Errorf("%s: %w", h.id, err)
			}
			if s.GetLeaderId() == "" {
				return fmt.Errorf("%s knows no leader", h.id)
			}
			if leader != nil && leader.id != s.GetLeaderId() {
				return fmt.Errorf("%s says %s, another says %s", h.id, s.GetLeaderId(), leader.id)
			}
			leader = c.host(s.GetLeaderId())
		}
		for _, b := range but {
			if leader == b {
				return fmt.Errorf("%s still leads", b.id)
			}
		}
		s, err := leader.status(c.t.Context())
		if err == nil && s.GetRaftState() != "Leader" {
			err = fmt.Errorf("%s is %s", leader.id, s.GetRaftState())
		}
		return err
	})
	return leader
}

// ready waits until so many model servers are ready.
func (c *cluster) ready(want int) {
	c.t.Helper()
	eventually(c.t, "ready model servers", func() error {
		ready := 0
		err := c.client.Call(c.t.Context(), client.Repeatable, func(ctx context.Context, cc grpc.ClientConnInterface) error {
			reply, err := pb.NewGroupServiceClient(cc).ListGroups(ctx, &pb.ListGroupsRequest{})
			for _, in := range reply.GetInstances() {
				if in.GetState() == pb.InstanceState_INSTANCE_STATE_READY {
					ready++
				}
			}
			return err
		})
		if err == nil && ready < want {
			err = fmt.Errorf("%d of %d", ready, want)
		}
		return err
	})
}

// serving waits for a primary that serves under an epoch above.
func (c *cluster) serving(above uint64) (*host, uint64) {
	c.t.Helper()
	var p client.Primary
	eventually(c.t, fmt.Sprintf("a primary above epoch %d", above), func() error {
		ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
		defer cancel()
		var err error
		if p, err = c.client.Primary(ctx, ""); err == nil && (!p.Serving() || p.Epoch <= above) {
			err = fmt.Errorf("%q under epoch %d is %s", p.NodeID, p.Epoch, p.Phase)
		}
		return err
	})
	return c.host(p.NodeID), p.Epoch
}

// readAll is for error texts.
func readAll(r io.Reader) string {
	text, _ := io.ReadAll(io.LimitReader(r, 4096)) // only for the text
	return string(text)
}
