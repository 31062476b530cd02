// SPDX-License-Identifier: Apache-2.0

package coordinate_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/election"
	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/internal/coordinate"
	"github.com/hastate/hastate/internal/holder"
	"github.com/hastate/hastate/internal/holder/holdertest"
	"github.com/hastate/hastate/internal/holder/leaselog"
	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	patience = 12 * time.Second
	vacant   = pb.GroupPhase_GROUP_PHASE_VACANT
	serving  = pb.GroupPhase_GROUP_PHASE_SERVING
)

// slow is a profile whose lease a busy machine does not miss.
func slow() election.Profile {
	p := election.Lan
	p.Lease, p.Renew, p.FenceMargin = 2*time.Second, 50*time.Millisecond, 300*time.Millisecond
	return p
}

// node is one holder with its server.
type node struct {
	h      *holder.Holder
	server *holdertest.Server
	stop   func()
}

// cluster is a log, holders and a coordinator, without Raft and without a network.
type cluster struct {
	tb  testing.TB
	log *leaselog.Log
	c   *coordinate.Coordinator
	// stop ends the coordinator.
	stop func()

	// mu guards the rest.
	mu    sync.Mutex
	nodes map[string]*node
	// down nodes are not reached by the coordinator.
	down map[string]bool
	// nominations is what all coordinators count with.
	nominations atomic.Uint32
	// onFence, onNominate are asked first, if they are set.
	onFence    func(ctx context.Context, node string, req *pb.FenceRequest) (*pb.FenceResponse, error)
	onNominate func(node string, req *pb.NominateRequest) error
}

func newCluster(tb testing.TB, names ...string) *cluster {
	tb.Helper()
	cl := &cluster{tb: tb, log: leaselog.NewLog(clock.Boot{}), nodes: map[string]*node{}, down: map[string]bool{}}
	for _, name := range names {
		cl.start(name, holdertest.NewServer())
	}
	for _, name := range names {
		cl.reported(name)
	}
	return cl
}

func (cl *cluster) start(name string, server *holdertest.Server) {
	cl.tb.Helper()
	h, err := holder.New(holder.Config{
		NodeID: name, Group: "g", Instance: server, Profile: slow(), State: cl.log, Proposer: cl.log.Node(name),
	})
	if err != nil {
		cl.tb.Fatal(err)
	}
	cl.mu.Lock()
	cl.nodes[name] = &node{h: h, server: server, stop: background(cl.tb, h.Run)}
	cl.mu.Unlock()
}

func (cl *cluster) reported(name string) {
	cl.tb.Helper()
	wait.Until(cl.tb, patience, func() error {
		for _, i := range cl.log.Instances("g") {
			if i.GetNodeId() == name {
				return nil
			}
		}
		return fmt.Errorf("%s is not in the log", name)
	})
}

// background runs something until the test ends, or until it is told to stop.
func background(tb testing.TB, run func(context.Context) error) func() {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			tb.Errorf("Run: %v", err)
		}
	})
	tb.Cleanup(stop)
	return stop
}

// lead starts a coordinator for a term.
func (cl *cluster) lead(term uint64) {
	cl.tb.Helper()
	c, err := coordinate.New(coordinate.Config{
		NodeID: "leader", Term: term, Nominations: &cl.nominations, State: cl.log, StoredAt: cl.log.StoredAt, Proposer: cl.log.Node("leader"),
		Peers: peers{cl}, Profile: slow(),
	})
	if err != nil {
		cl.tb.Fatal(err)
	}
	cl.c, cl.stop = c, background(cl.tb, c.Run)
	wait.Until(cl.tb, patience, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := c.Switchover(ctx, &pb.SwitchoverRequest{Group: "no such group"})
		if !errors.Is(err, hastate.ErrNotFound) {
			return fmt.Errorf("it does not run yet: %w", err)
		}
		return nil
	})
}

func (cl *cluster) isolate(name string, down bool) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	cl.down[name] = down
	cl.log.Cut(name, down)
}

// peers reaches the holders directly.
type peers struct{ cl *cluster }

func (p peers) node(ctx context.Context, name string) (*holder.Holder, error) {
	p.cl.mu.Lock()
	n, down := p.cl.nodes[name], p.cl.down[name]
	p.cl.mu.Unlock()
	if n == nil || down {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return n.h, nil
}

func (p peers) Canvass(ctx context.Context, name string, _ *pb.CanvassRequest) (*pb.CanvassResponse, error) {
	h, err := p.node(ctx, name)
	if err != nil {
		return nil, err
	}
	return h.Canvass(ctx), nil
}

func (p peers) Nominate(ctx context.Context, name string, req *pb.NominateRequest) (*pb.NominateResponse, error) {
	h, err := p.node(ctx, name)
	if err != nil {
		return nil, err
	}
	p.cl.mu.Lock()
	hook := p.cl.onNominate
	p.cl.mu.Unlock()
	if hook != nil {
		if err := hook(name, req); err != nil {
			return nil, err
		}
	}
	return h.Nominate(ctx, req), nil
}

func (p peers) Granted(ctx context.Context, name string, req *pb.GrantedRequest) (*pb.GrantedResponse, error) {
	h, err := p.node(ctx, name)
	if err != nil {
		return nil, err
	}
	h.Granted(ctx, req.GetGroup())
	return &pb.GrantedResponse{}, nil
}

func (p peers) Fence(ctx context.Context, name string, req *pb.FenceRequest) (*pb.FenceResponse, error) {
	h, err := p.node(ctx, name)
	if err != nil {
		return nil, err
	}
	p.cl.mu.Lock()
	hook := p.cl.onFence
	p.cl.mu.Unlock()
	if hook != nil {
		if r, err := hook(ctx, name, req); r != nil || err != nil {
			return r, err
		}
	}
	return h.Fence(ctx, req), nil
}

// serves waits until the group serves, at a node if one is named, and checks that
// no other server is promoted.
func (cl *cluster) serves(at string) *pb.Group {
	cl.tb.Helper()
	var g *pb.Group
	wait.Until(cl.tb, patience, func() error {
		g, _ = cl.log.Group("g")
		if g.GetPhase() != serving || (at != "" && g.GetHolder() != at) {
			return fmt.Errorf("%v of %q, released: %s", g.GetPhase(), g.GetHolder(), g.GetReleaseReason())
		}
		return nil
	})
	cl.mu.Lock()
	defer cl.mu.Unlock()
	for name, n := range cl.nodes {
		if name != g.GetHolder() && n.server.Promoted() != 0 {
			cl.tb.Fatalf("%s serves epoch %d beside %s", name, n.server.Promoted(), g.GetHolder())
		}
	}
	return g
}

func (cl *cluster) newest() *pb.Transition { return cl.log.History("g", 1)[0] }

func (cl *cluster) server(name string) *holdertest.Server {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	return cl.nodes[name].server
}

func set(s pb.InstanceState) func(*holder.Status) {
	return func(st *holder.Status) { st.State = s }
}

// sees waits until a node's holder knows that its instance is so.
func (cl *cluster) sees(name string, s pb.InstanceState) {
	cl.tb.Helper()
	cl.server(name).Set(set(s))
	wait.Until(cl.tb, patience, func() error {
		if got := cl.nodes[name].h.Status().Status.State; got != s {
			return fmt.Errorf("%s is %v", name, got)
		}
		return nil
	})
}
