// SPDX-License-Identifier: Apache-2.0

package coordinate_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
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
	// onFence, onNominate are asked first, if they are set.
	onFence    func(node string, req *pb.FenceRequest) error
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
		NodeID: "leader", Term: term, State: cl.log, StoredAt: cl.log.StoredAt, Proposer: cl.log.Node("leader"),
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
		if err := hook(name, req); err != nil {
			return nil, err
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

func TestFirstPrimaryAndFailovers(t *testing.T) {
	cl := newCluster(t, "n1", "n2", "n3")
	cl.lead(1)
	cl.serves("n1")
	if tr := cl.newest(); tr.GetKind() != pb.TransitionKind_TRANSITION_KIND_INITIAL || tr.GetDetectedBy() != "leader" {
		t.Fatalf("first transition %v", tr)
	}
	// Its process dies: the holder releases, the next is promoted.
	cl.server("n1").Die()
	cl.serves("n2")
	tr := cl.newest()
	if tr.GetKind() != pb.TransitionKind_TRANSITION_KIND_FAILOVER || tr.GetFrom() != "n1" || tr.GetDetectedBy() != "n1" {
		t.Fatalf("transition %v", tr)
	}
	// The host is lost without a word: its lease runs out.
	lost, _ := cl.log.Group("g")
	cl.isolate("n2", true)
	g := cl.serves("n3")
	if tr := cl.newest(); tr.GetReason() != "lease expired" || tr.GetDetectMs() < uint64(slow().Lease.Milliseconds()) {
		t.Fatalf("transition %v", tr)
	}
	if cl.log.StoredAt(g.GetEpoch()) <= cl.log.StoredAt(lost.GetLastRenew()).Add(slow().Lease) {
		t.Fatal("granted before the lease had run out")
	}
}

func TestPromotionFailureTriesTheNext(t *testing.T) {
	cl := newCluster(t, "n1", "n2")
	cl.server("n1").On(func(context.Context) error { return errors.New("out of memory") }, nil, nil)
	cl.lead(1)
	cl.serves("n2")
	h := cl.log.History("g", 5)
	if len(h) != 2 || h[1].GetTo() != "n1" || h[1].GetOutcome() != pb.TransitionOutcome_TRANSITION_OUTCOME_FAILED {
		t.Fatalf("history %v", h)
	}
}

func TestNobodyThenSomebody(t *testing.T) {
	cl := newCluster(t, "n1")
	cl.sees("n1", pb.InstanceState_INSTANCE_STATE_LOADING)
	cl.lead(1)
	cl.server("n1").Set(set(pb.InstanceState_INSTANCE_STATE_READY))
	cl.serves("n1")
	// The same instance comes back after its own restart.
	cl.server("n1").Die()
	wait.Until(t, patience, func() error {
		if g, _ := cl.log.Group("g"); g.GetPhase() != vacant {
			return errors.New("not released")
		}
		return nil
	})
	cl.server("n1").Set(func(st *holder.Status) { *st = holder.Status{State: pb.InstanceState_INSTANCE_STATE_READY} })
	cl.serves("n1")
	if k := cl.newest().GetKind(); k != pb.TransitionKind_TRANSITION_KIND_REGRANT {
		t.Fatalf("kind %v", k)
	}
}

func TestARefusalTriesTheNext(t *testing.T) {
	cl := newCluster(t, "n1", "n2")
	cl.onNominate = func(name string, _ *pb.NominateRequest) error {
		if name == "n1" {
			return errors.New("unreachable")
		}
		return nil
	}
	cl.lead(1)
	cl.serves("n2")
}

func TestPausedAndHeld(t *testing.T) {
	for _, c := range []struct {
		name string
		stop func(*pb.Group)
	}{
		{"paused", func(g *pb.Group) { g.Paused = true }},
		{"held", func(g *pb.Group) { g.Held = true }},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := newCluster(t, "n1", "n2")
			cl.lead(1)
			cl.serves("n1")
			cl.log.Change("g", c.stop)
			cl.server("n1").Die()
			wait.Until(t, patience, func() error {
				if g, _ := cl.log.Group("g"); g.GetPhase() != vacant {
					return errors.New("not released")
				}
				return nil
			})
			// Only the last holder may have it back, and it does when it can.
			cl.server("n1").Set(func(st *holder.Status) { *st = holder.Status{State: pb.InstanceState_INSTANCE_STATE_READY} })
			cl.serves("n1")
			for _, tr := range cl.log.History("g", 10) {
				if tr.GetTo() == "n2" {
					t.Fatalf("granted to n2: %v", tr)
				}
			}
		})
	}
}

func TestANewLeaderLetsThePrimaryServe(t *testing.T) {
	cl := newCluster(t, "n1", "n2")
	cl.lead(1)
	g := cl.serves("n1")
	cl.stop()
	if _, err := cl.c.Failover(context.Background(), &pb.FailoverRequest{Group: "g"}); !errors.Is(err, hastate.ErrNoLeader) {
		t.Fatalf("an order after the end: %v", err)
	}
	cl.lead(2)
	renewed := g.GetLastRenew()
	wait.Until(t, patience, func() error {
		if g, _ = cl.log.Group("g"); g.GetLastRenew() < renewed+20 {
			return errors.New("renewals are few")
		}
		return nil
	})
	if h := cl.log.History("g", 5); len(h) != 1 {
		t.Fatalf("history %v", h)
	}
}

func TestSwitchover(t *testing.T) {
	cl := newCluster(t, "n1", "n2", "n3")
	cl.lead(1)
	cl.serves("n1")
	cl.log.Change("g", func(g *pb.Group) { g.Paused = true }) // an order works all the same
	tr, err := cl.c.Switchover(context.Background(), &pb.SwitchoverRequest{Group: "g", To: "n3", Reason: "new kernel"})
	if err != nil {
		t.Fatal(err)
	}
	if tr.GetTo() != "n3" || tr.GetKind() != pb.TransitionKind_TRANSITION_KIND_SWITCHOVER || tr.GetReason() != "operator: new kernel" {
		t.Fatalf("transition %v", tr)
	}
	cl.serves("n3")
	if !slices.ContainsFunc(cl.server("n1").Calls(), func(c string) bool { return strings.Contains(c, "DRAIN") }) {
		t.Fatalf("n1 did not drain: %v", cl.server("n1").Calls())
	}
	for _, cmd := range cl.log.Commands() {
		if cmd.GetRelease() != nil {
			t.Fatalf("a switchover released: %v", cmd)
		}
	}
	if tr, err = cl.c.Switchover(context.Background(), &pb.SwitchoverRequest{Group: "g"}); err != nil || tr.GetTo() != "n1" {
		t.Fatalf("without a name: %v, %v", tr, err)
	}
}

func TestSwitchoverWarmsFirst(t *testing.T) {
	cl := newCluster(t, "n1", "n2")
	cl.lead(1)
	cl.serves("n1")
	cl.sees("n2", pb.InstanceState_INSTANCE_STATE_WARM)
	req := &pb.SwitchoverRequest{Group: "g", To: "n2"}
	_, err := cl.c.Switchover(context.Background(), req)
	if !errors.Is(err, hastate.ErrPrecondition) || !strings.Contains(err.Error(), "READY") {
		t.Fatalf("a target that cannot be woken: %v", err)
	}
	cl.server("n2").On(nil, nil, func() error { return nil })
	if _, err := cl.c.Switchover(context.Background(), req); err != nil {
		t.Fatal(err)
	}
	cl.serves("n2")
}

func TestSwitchoverRefused(t *testing.T) {
	cl := newCluster(t, "n1", "n2")
	cl.lead(1)
	before := cl.serves("n1")
	cl.sees("n2", pb.InstanceState_INSTANCE_STATE_FAILED)
	for to, want := range map[string]string{"n1": "already", "n2": "FAILED", "n9": "no instance can take over", "": "FAILED"} {
		_, err := cl.c.Switchover(context.Background(), &pb.SwitchoverRequest{Group: "g", To: to})
		if !errors.Is(err, hastate.ErrPrecondition) || !strings.Contains(err.Error(), want) {
			t.Errorf("to %q: %v, want %q", to, err, want)
		}
	}
	if g := cl.serves("n1"); g.GetEpoch() != before.GetEpoch() {
		t.Fatal("something was changed")
	}
}

func TestSwitchoverGoesBackIfTheTargetFails(t *testing.T) {
	cl := newCluster(t, "n1", "n2", "n3")
	cl.lead(1)
	cl.serves("n1")
	cl.server("n2").On(func(context.Context) error { return errors.New("out of memory") }, nil, nil)
	_, err := cl.c.Switchover(context.Background(), &pb.SwitchoverRequest{Group: "g", To: "n2"})
	if !errors.Is(err, hastate.ErrPrecondition) || !strings.Contains(err.Error(), "n1 is primary") || !strings.Contains(err.Error(), "out of memory") {
		t.Fatalf("error %v", err)
	}
	cl.serves("n1")
	if k := cl.newest().GetKind(); k != pb.TransitionKind_TRANSITION_KIND_REGRANT {
		t.Fatalf("kind %v", k)
	}
}

func TestSwitchoverGoesBackIfTheTargetWithdraws(t *testing.T) {
	cl := newCluster(t, "n1", "n2")
	cl.lead(1)
	cl.serves("n1")
	var asked int
	cl.mu.Lock()
	cl.onNominate = func(name string, _ *pb.NominateRequest) error {
		if asked++; name == "n2" && asked > 1 {
			return errors.New("withdrawn")
		}
		return nil
	}
	cl.mu.Unlock()
	_, err := cl.c.Switchover(context.Background(), &pb.SwitchoverRequest{Group: "g", To: "n2"})
	if !errors.Is(err, hastate.ErrPrecondition) || !strings.Contains(err.Error(), "n1 is primary") {
		t.Fatalf("error %v", err)
	}
	cl.serves("n1")
}

func TestSwitchoverWithAnUnreachableHolder(t *testing.T) {
	cl := newCluster(t, "n1", "n2")
	cl.lead(1)
	before := cl.serves("n1")
	cl.mu.Lock()
	cl.onFence = func(string, *pb.FenceRequest) error { return errors.New("connection reset") }
	cl.mu.Unlock()
	_, err := cl.c.Switchover(context.Background(), &pb.SwitchoverRequest{Group: "g", To: "n2"})
	if !errors.Is(err, hastate.ErrOutcomeUnknown) || !strings.Contains(err.Error(), "nothing was changed as far as is known") {
		t.Fatalf("error %v", err)
	}
	if g := cl.serves("n1"); g.GetEpoch() != before.GetEpoch() {
		t.Fatal("something was changed")
	}
}

func TestOneOrderAtATime(t *testing.T) {
	cl := newCluster(t, "n1", "n2")
	cl.lead(1)
	cl.serves("n1")
	begun, goOn := make(chan struct{}), make(chan struct{})
	cl.mu.Lock()
	cl.onFence = func(string, *pb.FenceRequest) error {
		close(begun)
		<-goOn
		return nil
	}
	cl.mu.Unlock()
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, err := cl.c.Switchover(ctx, &pb.SwitchoverRequest{Group: "g", To: "n2"})
		done <- err
	}()
	<-begun
	_, err := cl.c.Failover(context.Background(), &pb.FailoverRequest{Group: "g"})
	if !errors.Is(err, hastate.ErrPrecondition) || !strings.Contains(err.Error(), "a switchover") {
		t.Errorf("a second order: %v", err)
	}
	// Its caller goes: the order is brought to its end nevertheless.
	cancel()
	if err := <-done; !errors.Is(err, hastate.ErrOutcomeUnknown) {
		t.Errorf("the caller that went: %v", err)
	}
	close(goOn)
	cl.serves("n2")
}

func TestFailover(t *testing.T) {
	cl := newCluster(t, "n1", "n2", "n3")
	cl.lead(1)
	cl.serves("n1")
	cl.log.Change("g", func(g *pb.Group) { g.Paused = true })
	tr, err := cl.c.Failover(context.Background(), &pb.FailoverRequest{Group: "g", To: "n3", Reason: "it lies"})
	if err != nil {
		t.Fatal(err)
	}
	if tr.GetTo() != "n3" || tr.GetKind() != pb.TransitionKind_TRANSITION_KIND_FORCED || tr.GetReason() != "operator: it lies" || tr.GetDetectedBy() != "operator" {
		t.Fatalf("transition %v", tr)
	}
	cl.serves("n3")
	// A holder that is not reached: its lease is waited out.
	cl.isolate("n3", true)
	last, _ := cl.log.Group("g")
	if _, err := cl.c.Failover(context.Background(), &pb.FailoverRequest{Group: "g"}); err != nil {
		t.Fatal(err)
	}
	g := cl.serves("n1")
	if cl.log.StoredAt(g.GetEpoch()) <= cl.log.StoredAt(last.GetLastRenew()).Add(slow().Lease) {
		t.Fatal("granted before the lease had run out")
	}
}

func TestFailoverNeedsForce(t *testing.T) {
	cl := newCluster(t, "n1", "n2")
	cl.lead(1)
	before := cl.serves("n1")
	refuse := func(req *pb.FailoverRequest, want string) {
		t.Helper()
		req.Group = "g"
		_, err := cl.c.Failover(context.Background(), req)
		if !errors.Is(err, hastate.ErrPrecondition) || !strings.Contains(err.Error(), want) {
			t.Fatalf("%v: %v, want %q", req, err, want)
		}
		if g := cl.serves("n1"); g.GetEpoch() != before.GetEpoch() || g.GetRevoked() {
			t.Fatal("something was changed")
		}
	}
	refuse(&pb.FailoverRequest{To: "n1"}, "already")
	cl.log.Change("g", func(g *pb.Group) { g.Held = true })
	refuse(&pb.FailoverRequest{}, "held")
	cl.log.Change("g", func(g *pb.Group) { g.Held = false })
	cl.sees("n2", pb.InstanceState_INSTANCE_STATE_WARM)
	refuse(&pb.FailoverRequest{}, "not READY")
	cl.log.Change("g", func(g *pb.Group) { g.Held = true })
	if _, err := cl.c.Failover(context.Background(), &pb.FailoverRequest{Group: "g", Force: true}); err != nil {
		t.Fatal(err)
	}
	cl.serves("n2")
}

func TestFailoverOfTheOnlyInstance(t *testing.T) {
	cl := newCluster(t, "n1")
	cl.lead(1)
	before := cl.serves("n1")
	if _, err := cl.c.Failover(context.Background(), &pb.FailoverRequest{Group: "g"}); !errors.Is(err, hastate.ErrPrecondition) {
		t.Fatalf("without force: %v", err)
	}
	tr, err := cl.c.Failover(context.Background(), &pb.FailoverRequest{Group: "g", Force: true})
	if err != nil {
		t.Fatal(err)
	}
	if tr.GetTo() != "n1" || tr.GetEpoch() == before.GetEpoch() {
		t.Fatalf("transition %v", tr)
	}
}

func TestASlowGroupDelaysNoOther(t *testing.T) {
	cl := newCluster(t, "n1", "n2")
	// The other group's only node does not answer.
	cl.log.Commit(&pb.Command{Op: &pb.Command_ReportInstance{ReportInstance: &pb.ReportInstance{Instance: &pb.Instance{
		Group: "a-slow-one", NodeId: "n9", State: pb.InstanceState_INSTANCE_STATE_READY,
	}}}})
	cl.lead(1)
	cl.serves("n1")
}

func TestConfig(t *testing.T) {
	if _, err := coordinate.New(coordinate.Config{}); !errors.Is(err, hastate.ErrInvalid) {
		t.Fatalf("an empty configuration: %v", err)
	}
}
