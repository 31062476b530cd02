// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/election"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func TestMachinePromotion(t *testing.T) {
	start := func(t *testing.T) *script {
		t.Helper()
		s := newScript(t, true)
		s.expect(0, nominate(7), "consent=true")
		s.expect(10*ms, s.grant(2000, 7), "STANDBY 2000, promote 2000, renew")
		return s
	}
	t.Run("fails", func(t *testing.T) {
		s := start(t)
		s.expect(20*ms, evPromoted{epoch: 2000, err: errors.New("out of memory")}, "demote 2000 ABORT")
		s.expect(30*ms, evDemoted{epoch: 2000, call: s.m.fence.call}, "release 2000 failed")
		s.do(40*ms, evReleased{epoch: 2000, outcome: accepted})
		req := func(force bool) evNominate {
			return evNominate{req: &pb.NominateRequest{Nomination: 8, Epoch: 2000, Force: force}}
		}
		s.expect(1000*ms, req(false), "consent=false")
		s.expect(1019*ms, req(true), "consent=true")
		s.expect(1020*ms, req(false), "consent=true")
	})
	t.Run("back-off doubles and ends at 30s", func(t *testing.T) {
		for n, want := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 30 * time.Second, 30 * time.Second} {
			if got := retryAfter(n, firstBackoff, lastBackoff); got != want {
				t.Errorf("after %d failures: %v, want %v", n, got, want)
			}
		}
	})
	t.Run("the lease ends before", func(t *testing.T) {
		s := start(t)
		// Demote waits a moment for the cancelled call, so that none overtakes it.
		s.expect(1038*ms, evTimer{}, "cancel")
		s.expect(1040*ms, evPromoted{epoch: 2000, err: errors.New("cancelled")}, "demote 2000 ABORT")
		s.expect(1050*ms, evDemoted{epoch: 2000, call: s.m.fence.call}, "release 2000")
	})
	t.Run("a cancelled call returns late", func(t *testing.T) {
		s := start(t)
		s.do(1038*ms, evTimer{})
		s.expect(1080*ms, evTimer{}, "demote 2000 ABORT")
		early := s.m.fence.call
		s.expect(1085*ms, evPromoted{epoch: 2000}, "demote 2000 ABORT")
		s.expect(1090*ms, evDemoted{epoch: 2000, call: early}, "")
		s.expect(1099*ms, evDemoted{epoch: 2000, call: s.m.fence.call}, "release 2000")
	})
	t.Run("a cancelled call returns after Demote", func(t *testing.T) {
		s := start(t)
		s.do(1038*ms, evTimer{})
		s.expect(1080*ms, evTimer{}, "demote 2000 ABORT")
		s.expect(1090*ms, evDemoted{epoch: 2000, call: s.m.fence.call}, "")
		s.expect(1095*ms, evPromoted{epoch: 2000}, "demote 2000 ABORT")
		s.expect(1099*ms, evDemoted{epoch: 2000, call: s.m.fence.call}, "release 2000")
	})
	t.Run("success comes when the lease is over", func(t *testing.T) {
		s := start(t)
		if got := s.do(1188*ms, evPromoted{epoch: 2000}); strings.Contains(got, "PRIMARY") || strings.Contains(got, "serve") {
			t.Fatalf("acted without a lease: %q", got)
		}
	})
	t.Run("another model", func(t *testing.T) {
		s := newScript(t, false)
		s.do(0, nominate(7))
		s.do(10*ms, s.record(func(g *pb.Group) {
			g.Phase, g.Holder, g.Epoch, g.Nomination, g.DesiredModel = pb.GroupPhase_GROUP_PHASE_GRANTED, "n1", 2000, 7, &pb.ModelRef{Digest: "sha256:b"}
		}))
		s.expect(20*ms, evPromoted{epoch: 2000, model: &pb.ModelRef{Digest: "sha256:a"}}, "demote 2000 ABORT")
		s.expect(30*ms, evDemoted{epoch: 2000, call: s.m.fence.call}, "release 2000 failed")
	})
	t.Run("serving is proposed until it is in the log", func(t *testing.T) {
		s := start(t)
		s.expect(20*ms, evPromoted{epoch: 2000}, "PRIMARY 2000, serve")
		s.expect(30*ms, evServed{epoch: 2000, outcome: unknown}, "")
		s.expect(50*ms, evTimer{}, "serve")
		s.expect(60*ms, evServed{epoch: 2000, newest: 2001, outcome: refused}, "STANDBY 2000, demote 2000 ABORT")
	})
	t.Run("an instance that counts the lease is told again", func(t *testing.T) {
		s := start(t)
		s.do(15*ms, evInfo{info: Info{Capabilities: []pb.Capability{pb.Capability_CAPABILITY_LEASE}}})
		s.expect(20*ms, evPromoted{epoch: 2000}, "PRIMARY 2000, serve, touch")
		s.expect(30*ms, evPromoted{epoch: 2000, touch: true, until: at(1038 * ms)}, "")
		s.do(210*ms, evTimer{})
		s.expect(215*ms, evRenewed{epoch: 2000, q: at(210 * ms), outcome: accepted}, "touch")
		s.expect(220*ms, evPromoted{epoch: 2000, touch: true, err: errors.New("unreachable")}, "")
		if w := s.m.wake(); w > at(320*ms) {
			t.Fatalf("it tries again at %v", w)
		}
		s.expect(320*ms, evTimer{}, "touch")
		s.expect(330*ms, evPromoted{epoch: 2000, touch: true, err: errors.New("unreachable")}, "")
		s.do(900*ms, evRenewed{epoch: 2000, q: at(900 * ms), outcome: accepted})
		// It has not been told of the renewals: by now it has stopped by itself.
		got := s.do(1038*ms, evTimer{})
		if !strings.Contains(got, "STANDBY 2000") {
			t.Fatalf("got %q", got)
		}
	})
	t.Run("an instance is not believed to count for longer than it was told", func(t *testing.T) {
		for name, c := range map[string]struct{ until, end time.Duration }{
			"its clock was read before": {600 * ms, 600 * ms},
			"there is time to tell it":  {100 * ms, 420 * ms},
		} {
			s := start(t)
			s.do(15*ms, evInfo{info: Info{Capabilities: []pb.Capability{pb.Capability_CAPABILITY_LEASE}}})
			s.expect(20*ms, evPromoted{epoch: 2000, until: at(c.until)}, "PRIMARY 2000, serve, touch")
			s.do(30*ms, evPromoted{epoch: 2000, touch: true, err: errors.New("unreachable")})
			if got := s.do(c.end-ms, evTimer{}); strings.Contains(got, "STANDBY") {
				t.Errorf("%s: given up too early: %q", name, got)
			}
			if got := s.do(c.end, evTimer{}); !strings.Contains(got, "STANDBY 2000") {
				t.Errorf("%s: believed in after %v: %q", name, c.end, got)
			}
		}
	})
	t.Run("an instance that counts the lease is told of a late renewal at once", func(t *testing.T) {
		s := start(t)
		s.do(15*ms, evInfo{info: Info{Capabilities: []pb.Capability{pb.Capability_CAPABILITY_LEASE}}})
		s.expect(20*ms, evPromoted{epoch: 2000}, "PRIMARY 2000, serve, touch")
		s.do(30*ms, evPromoted{epoch: 2000, touch: true, until: at(1038 * ms)})
		for d := 40 * ms; d < 1000*ms; d += 40 * ms { // nothing is renewed: it would be told the same
			if got := s.do(d, evTimer{}); strings.Contains(got, "touch") {
				t.Fatalf("at %v: %q", d, got)
			}
		}
		s.expect(1037*ms, evRenewed{epoch: 2000, q: at(400 * ms), outcome: accepted}, "renew, touch")
		s.expect(1038*ms, evPromoted{epoch: 2000, touch: true, until: at(1438 * ms)}, "")
	})
	t.Run("the process that was told again may be another one", func(t *testing.T) {
		s := start(t)
		s.do(15*ms, evInfo{info: Info{Capabilities: []pb.Capability{pb.Capability_CAPABILITY_LEASE}}})
		s.expect(20*ms, evPromoted{epoch: 2000}, "PRIMARY 2000, serve, touch")
		s.expect(25*ms, evStatus{status: Status{State: pb.InstanceState_INSTANCE_STATE_DOWN, Gone: true}}, "STANDBY 2000, cancel")
		// It was, and it serves.
		s.expect(30*ms, evPromoted{epoch: 2000, touch: true}, "demote 2000 ABORT")
		s.expect(40*ms, evDemoted{epoch: 2000, call: s.m.fence.call}, "release 2000")
	})
	t.Run("it refuses the epoch", func(t *testing.T) {
		s := start(t)
		s.do(15*ms, evInfo{info: Info{Capabilities: []pb.Capability{pb.Capability_CAPABILITY_LEASE}}})
		s.do(20*ms, evPromoted{epoch: 2000})
		s.expect(30*ms, evPromoted{epoch: 2000, touch: true, err: &hastate.FencedError{}}, "STANDBY 2000, demote 2000 ABORT")
	})
}

func TestMachineGrants(t *testing.T) {
	t.Run("without consent it is given back, never taken up", func(t *testing.T) {
		s := newScript(t, false)
		s.expect(10*ms, s.grant(5, 7), "STANDBY 5, demote 5 ABORT")
		s.expect(15*ms, nominate(7), "consent=false")
		s.expect(20*ms, evFence{req: &pb.FenceRequest{Epoch: 5}}, "")
		s.expect(30*ms, evDemoted{epoch: 5, call: s.m.fence.call}, "fenced=true, release 5")
		s.expect(40*ms, evReleased{epoch: 5, outcome: accepted}, "")
		s.expect(50*ms, nominate(7), "consent=true")
		s.expect(60*ms, evRecord{group: s.rec}, "")
	})
	t.Run("another node's", func(t *testing.T) {
		s := newScript(t, false)
		s.do(0, nominate(7))
		s.expect(10*ms, s.record(func(g *pb.Group) { g.Phase, g.Holder, g.Epoch = pb.GroupPhase_GROUP_PHASE_GRANTED, "n2", 5 }), "")
	})
	t.Run("too late", func(t *testing.T) {
		s := newScript(t, false)
		s.do(0, nominate(7))
		s.expect(1100*ms, s.grant(2000, 7), "STANDBY 2000, release 2000")
	})
	t.Run("revoked", func(t *testing.T) {
		s := newScript(t, false)
		s.do(0, nominate(7))
		s.expect(10*ms, s.record(func(g *pb.Group) {
			g.Phase, g.Holder, g.Epoch, g.Nomination, g.Revoked = pb.GroupPhase_GROUP_PHASE_GRANTED, "n1", 2000, 7, true
		}), "STANDBY 2000, release 2000")
	})
	t.Run("the first q of a nomination stands", func(t *testing.T) {
		s := newScript(t, false)
		s.do(0, nominate(7))
		s.do(500*ms, nominate(7))
		s.do(510*ms, s.grant(2000, 7))
		if got, want := s.m.lease.ValidUntil(), at(0).Add(election.HolderTTL(1200*ms)); got != want {
			t.Fatalf("valid until %v, want %v", got, want)
		}
	})
	t.Run("an older record changes nothing", func(t *testing.T) {
		s := newScript(t, false)
		old := s.record(func(g *pb.Group) { g.Phase, g.Epoch, g.LastHolder = pb.GroupPhase_GROUP_PHASE_VACANT, 4, "n2" })
		s.do(0, nominate(7))
		s.do(10*ms, s.grant(2000, 7))
		s.expect(20*ms, old, "")
	})
	t.Run("the instance is down by then", func(t *testing.T) {
		s := newScript(t, false)
		s.do(0, nominate(7))
		s.do(5*ms, evStatus{status: Status{State: pb.InstanceState_INSTANCE_STATE_DOWN}})
		s.expect(10*ms, s.grant(2000, 7), "STANDBY 2000, release 2000")
	})
}

// After a restart the instance may be promoted under an epoch that nobody holds.
func TestMachineCleansUp(t *testing.T) {
	start := func(t *testing.T, status Status) *script {
		t.Helper()
		s := &script{t: t, m: newMachine("n1", "g", election.Lan, false)}
		s.expect(0, evStatus{status: status}, "")
		return s
	}
	ready := Status{State: pb.InstanceState_INSTANCE_STATE_READY}
	other := func(s *script) evRecord {
		return s.record(func(g *pb.Group) { g.Phase, g.Holder, g.Epoch = pb.GroupPhase_GROUP_PHASE_SERVING, "n2", 9 })
	}
	t.Run("demoted before it consents", func(t *testing.T) {
		s := start(t, ready)
		s.expect(0, other(s), "demote 9 ABORT")
		s.expect(10*ms, nominate(1), "consent=false")
		s.expect(20*ms, evDemoted{epoch: 9, call: s.m.clean.call, err: errors.New("busy")}, "")
		s.expect(40*ms, evTimer{}, "demote 1000 ABORT")
		s.expect(50*ms, evDemoted{epoch: 1000, call: s.m.clean.call}, "")
		s.expect(60*ms, nominate(1), "consent=true")
	})
	t.Run("it knows a newer epoch than the state that is found", func(t *testing.T) {
		s := start(t, ready)
		s.do(0, other(s))
		s.expect(10*ms, evDemoted{epoch: 9, call: s.m.clean.call, err: &hastate.FencedError{Epoch: 9, NewestEpoch: 12}}, "demote 12 ABORT")
		s.expect(20*ms, evDemoted{epoch: 12, call: s.m.clean.call}, "")
		s.expect(30*ms, nominate(1), "consent=true")
	})
	t.Run("it says that it is a standby", func(t *testing.T) {
		s := start(t, Status{State: ready.State, Role: pb.Role_ROLE_STANDBY, Epoch: 3})
		s.expect(0, other(s), "")
	})
	t.Run("only its adapter says so", func(t *testing.T) {
		s := start(t, Status{State: ready.State, Role: pb.Role_ROLE_STANDBY})
		s.expect(0, other(s), "demote 9 ABORT")
	})
	t.Run("it is gone", func(t *testing.T) {
		s := start(t, Status{State: pb.InstanceState_INSTANCE_STATE_DOWN, Gone: true})
		s.expect(0, other(s), "")
	})
	t.Run("nothing was ever granted", func(t *testing.T) {
		s := start(t, ready)
		s.expect(10*ms, evNominate{req: &pb.NominateRequest{Nomination: 1}}, "consent=true")
	})
	t.Run("a Promote comes back with success after a kill", func(t *testing.T) {
		s := newScript(t, true)
		s.do(0, nominate(7))
		s.do(10*ms, s.grant(2000, 7))
		s.do(1038*ms, evTimer{})
		s.do(1113*ms, evTimer{})
		s.expect(1120*ms, evKilled{epoch: 2000}, "release 2000")
		s.do(1130*ms, evReleased{epoch: 2000, outcome: accepted})
		s.expect(1140*ms, evPromoted{epoch: 2000}, "demote 2000 ABORT")
		s.expect(1150*ms, nominate(8), "consent=false")
	})
	// soiled has consented, and then learns that its instance may be promoted.
	soiled := func(t *testing.T) *script {
		t.Helper()
		s := newScript(t, false)
		s.do(0, nominate(7))
		s.expect(10*ms, evPromoted{epoch: 1500}, "demote 1500 ABORT")
		return s
	}
	t.Run("Promote does not overtake the Demote that cleans up", func(t *testing.T) {
		s := soiled(t)
		s.expect(20*ms, s.grant(2000, 7), "")
		s.expect(30*ms, evDemoted{epoch: 1500, call: s.m.clean.call}, "STANDBY 2000, promote 2000, renew")
	})
	t.Run("a grant that comes too late is not released before", func(t *testing.T) {
		s := soiled(t)
		s.expect(20*ms, s.grant(2000, 7), "")
		s.expect(1100*ms, evDemoted{epoch: 1500, call: s.m.clean.call, err: errors.New("busy")}, "STANDBY 2000, demote 2000 ABORT")
		s.expect(1110*ms, evDemoted{epoch: 2000, call: s.m.fence.call}, "release 2000")
	})
}

func TestMachineConsent(t *testing.T) {
	for _, c := range []struct {
		name   string
		status Status
		req    *pb.NominateRequest
		want   bool
	}{
		{"ready", Status{State: pb.InstanceState_INSTANCE_STATE_READY}, &pb.NominateRequest{Nomination: 1}, true},
		{"no number", Status{State: pb.InstanceState_INSTANCE_STATE_READY}, &pb.NominateRequest{}, false},
		{"old leader", Status{State: pb.InstanceState_INSTANCE_STATE_READY}, &pb.NominateRequest{Nomination: 1, Epoch: 2}, false},
		{"warm", Status{State: pb.InstanceState_INSTANCE_STATE_WARM}, &pb.NominateRequest{Nomination: 1, Epoch: 3}, false},
		{"warm, to be prepared", Status{State: pb.InstanceState_INSTANCE_STATE_WARM}, &pb.NominateRequest{Nomination: 1, Epoch: 3, Prepare: true}, true},
		{"live, forced", Status{State: pb.InstanceState_INSTANCE_STATE_LIVE}, &pb.NominateRequest{Nomination: 1, Epoch: 3, Force: true}, true},
		{"loading, forced", Status{State: pb.InstanceState_INSTANCE_STATE_LOADING}, &pb.NominateRequest{Nomination: 1, Epoch: 3, Force: true}, false},
		{"failed", Status{State: pb.InstanceState_INSTANCE_STATE_FAILED}, &pb.NominateRequest{Nomination: 1, Epoch: 3, Force: true}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newScript(t, false)
			if c.req.Epoch != 0 {
				s.do(0, s.record(func(g *pb.Group) { g.Epoch, g.Holder, g.Phase = 3, "n2", pb.GroupPhase_GROUP_PHASE_SERVING }))
			}
			s.do(0, evStatus{status: c.status})
			s.expect(10*ms, evNominate{req: c.req}, fmt.Sprintf("consent=%t", c.want))
		})
	}
	t.Run("a holder does not", func(t *testing.T) {
		s := newScript(t, false)
		s.serve()
		s.expect(50*ms, nominate(9), "consent=false")
	})
	t.Run("remembered nominations are bounded", func(t *testing.T) {
		s := newScript(t, false)
		for n := range uint64(100) {
			s.do(0, nominate(n+1))
		}
		if len(s.m.consents) != maxConsents {
			t.Fatalf("%d are remembered", len(s.m.consents))
		}
	})
}

func TestRevokedReason(t *testing.T) {
	if got := revokedReason(&pb.Group{Revoked: true, ReleaseReason: "restored"}); got != "restored" {
		t.Errorf("reason %q is not that of the record", got)
	}
	if got := revokedReason(&pb.Group{Revoked: true}); got != "epoch revoked by an operator" {
		t.Errorf("without one: %q", got)
	}
}

// TestMachineDemotesPatiently: the first Demote has the margin, those after it a
// lease. An instance that needs longer than the margin was never silenced.
func TestMachineDemotesPatiently(t *testing.T) {
	s := newScript(t, false)
	s.do(5*ms, evNominate{id: 1, req: &pb.NominateRequest{Group: "g", Nomination: 9}})
	s.do(10*ms, s.grant(2000, 9))
	s.do(20*ms, evPromoted{epoch: 2000})
	limits := func(d time.Duration, ev event) (all []time.Duration) {
		for _, a := range s.m.step(at(d), ev) {
			if a, ok := a.(actDemote); ok {
				all = append(all, a.timeout)
			}
		}
		return all
	}
	down := evStatus{status: Status{State: pb.InstanceState_INSTANCE_STATE_DOWN}}
	if got := limits(30*ms, down); len(got) != 1 || got[0] != s.m.hold.margin {
		t.Fatalf("first: %v", got)
	}
	s.do(40*ms, evDemoted{epoch: 2000, call: s.m.fence.call, err: errors.New("too slow")})
	if got := limits(2000*ms, evTimer{}); len(got) != 1 || got[0] != s.m.profile.Lease {
		t.Fatalf("second: %v", got)
	}
}
