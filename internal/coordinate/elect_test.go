// SPDX-License-Identifier: Apache-2.0

package coordinate_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/coordinate"
	"github.com/hastate/hastate/internal/holder"
	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

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

// TestNominationsAreNeverRepeated: a coordinator that follows another in the same
// term counts on.
func TestNominationsAreNeverRepeated(t *testing.T) {
	cl := newCluster(t, "n1", "n2")
	var mu sync.Mutex
	seen := map[uint64]string{} // guarded by mu
	cl.onNominate = func(name string, req *pb.NominateRequest) error {
		mu.Lock()
		defer mu.Unlock()
		if was, ok := seen[req.GetNomination()]; ok {
			t.Errorf("nomination %#x was for %s, and now for %s", req.GetNomination(), was, name)
		}
		seen[req.GetNomination()] = name
		return nil
	}
	cl.lead(7)
	cl.serves("n1")
	cl.stop()
	cl.lead(7)
	if _, err := cl.c.Failover(t.Context(), &pb.FailoverRequest{Group: "g"}); err != nil {
		t.Fatal(err)
	}
	cl.serves("n2")
	mu.Lock()
	defer mu.Unlock()
	if len(seen) < 2 {
		t.Fatalf("nominations %v", seen)
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
	cl := newCluster(t)
	if _, err := coordinate.New(coordinate.Config{
		NodeID: "leader", Term: 1, State: cl.log, StoredAt: cl.log.StoredAt, Proposer: cl.log.Node("leader"),
		Peers: peers{cl}, Profile: slow(),
	}); !errors.Is(err, hastate.ErrInvalid) {
		t.Fatalf("without a counter of nominations: %v", err)
	}
}
