// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/election"
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const ms = time.Millisecond

func at(d time.Duration) clock.Instant { return clock.Instant(0).Add(time.Hour + d) }

// script drives one machine by hand.
type script struct {
	t   *testing.T
	m   *machine
	rec *pb.Group
	rev uint64
}

func newScript(t *testing.T, canKill bool) *script {
	t.Helper()
	s := &script{t: t, m: newMachine("n1", "g", election.Lan, canKill)}
	s.do(0, evStatus{status: Status{State: pb.InstanceState_INSTANCE_STATE_READY}})
	return s
}

// do gives an event at a time and returns the actions as text, without logs.
func (s *script) do(d time.Duration, ev event) string {
	s.t.Helper()
	var out []string
	for _, a := range s.m.step(at(d), ev) {
		if text := describe(a); text != "" {
			out = append(out, text)
		}
	}
	return strings.Join(out, ", ")
}

func describe(a action) string {
	switch a := a.(type) {
	case actRole:
		return fmt.Sprintf("%v %d", a.role.Kind, a.role.Epoch)
	case actRenew:
		return "renew"
	case actPromote:
		if a.touch {
			return "touch"
		}
		return fmt.Sprintf("promote %d", a.lease.Epoch())
	case actCancelPromote:
		return "cancel"
	case actDemote:
		return fmt.Sprintf("demote %d %s", a.epoch, a.mode.String()[len("DEMOTE_MODE_"):])
	case actKill:
		return "kill"
	case actServe:
		return "serve"
	case actRelease:
		text := fmt.Sprintf("release %d", a.cmd.GetEpoch())
		if a.cmd.GetPromoteFailed() {
			text += " failed"
		}
		return text
	case actAnswer:
		switch r := a.response.(type) {
		case *pb.NominateResponse:
			return fmt.Sprintf("consent=%t", r.GetConsent())
		case *pb.FenceResponse:
			return fmt.Sprintf("fenced=%t", r.GetFenced())
		}
		return "handed off"
	}
	return ""
}

func (s *script) expect(d time.Duration, ev event, want string) {
	s.t.Helper()
	if got := s.do(d, ev); got != want {
		s.t.Fatalf("at %v after %s: got %q, want %q", d, reflect.TypeOf(ev).Name(), got, want)
	}
}

// record is a new version of the group's record.
func (s *script) record(f func(*pb.Group)) evRecord {
	if s.rec == nil {
		s.rec = &pb.Group{Name: "g", TtlMs: 1200}
	}
	s.rec = proto.Clone(s.rec).(*pb.Group)
	s.rev++
	s.rec.Revision = s.rev
	f(s.rec)
	return evRecord{group: s.rec}
}

func (s *script) grant(epoch, nomination uint64) evRecord {
	return s.record(func(g *pb.Group) {
		g.Phase, g.Holder, g.Epoch, g.LastRenew = pb.GroupPhase_GROUP_PHASE_GRANTED, "n1", epoch, epoch
		g.Nomination, g.Revoked = nomination, false
	})
}

func nominate(n uint64) evNominate {
	return evNominate{id: n, req: &pb.NominateRequest{Group: "g", Nomination: n, Epoch: 1000}}
}

// serve brings the machine to SERVING under epoch 5, with q at 0.
func (s *script) serve() {
	s.t.Helper()
	s.expect(0, evNominate{id: 1, req: &pb.NominateRequest{Group: "g", Nomination: 7}}, "consent=true")
	s.expect(10*ms, s.grant(5, 7), "STANDBY 5, promote 5, renew")
	s.expect(20*ms, evPromoted{epoch: 5}, "PRIMARY 5, serve")
	s.expect(30*ms, evServed{epoch: 5, outcome: accepted}, "")
}

func TestMachineServes(t *testing.T) {
	s := newScript(t, false)
	s.serve()
	if s.m.role.Kind != RolePrimary || !s.m.lease.ValidAt(at(30*ms)) {
		t.Fatalf("role %v, lease %+v", s.m.role, s.m.lease)
	}
	// A renewal counts from when it was sent, and only once it has committed.
	before := s.m.lease.ValidUntil()
	s.expect(210*ms, evTimer{}, "renew")
	if s.m.lease.ValidUntil() != before {
		t.Fatal("a renewal that has not committed has extended the lease")
	}
	s.expect(300*ms, evRenewed{epoch: 5, q: at(210 * ms), outcome: accepted}, "")
	if got, want := s.m.lease.ValidUntil(), at(210*ms).Add(election.HolderTTL(1200*ms)); got != want {
		t.Fatalf("valid until %v, want %v", got, want)
	}
}

// Each case brings a serving holder into a situation; times are from q = 0, so
// that the lease of 1,200 ms is to be fenced at 1,188-150 = 1,038 ms.
func TestMachineLosesLease(t *testing.T) {
	failed := Status{State: pb.InstanceState_INSTANCE_STATE_FAILED}
	for _, c := range []struct {
		name    string
		canKill bool
		run     func(s *script)
	}{
		{"no renewal commits", false, func(s *script) {
			s.do(1000*ms, evTimer{})
			s.expect(1037*ms, evRenewed{epoch: 5, q: at(1000 * ms), outcome: unknown}, "")
			s.expect(1038*ms, evTimer{}, "STANDBY 5, demote 5 ABORT")
			s.expect(1040*ms, evRenewed{epoch: 5, q: at(1000 * ms), outcome: accepted}, "")
			if s.m.lease.ValidAt(at(1040 * ms)) {
				s.t.Fatal("a lease that was ended here is valid again")
			}
			s.expect(1050*ms, evDemoted{epoch: 5, call: s.m.fence.call}, "release 5")
			s.expect(1060*ms, evReleased{epoch: 5, outcome: unknown}, "")
			s.expect(1200*ms, evTimer{}, "release 5")
			s.expect(1210*ms, evReleased{epoch: 5, outcome: accepted}, "")
		}},
		{"does not obey and is killed before the lease ends", true, func(s *script) {
			s.do(1038*ms, evTimer{})
			s.expect(1112*ms, evTimer{}, "")
			s.expect(1113*ms, evTimer{}, "kill")
			s.expect(1120*ms, evKilled{epoch: 5}, "release 5")
		}},
		{"kill fails, then demote works", true, func(s *script) {
			s.do(1038*ms, evTimer{})
			s.expect(1113*ms, evTimer{}, "kill")
			s.expect(1114*ms, evKilled{epoch: 5, err: errors.New("no")}, "")
			s.expect(1115*ms, evDemoted{epoch: 5, call: s.m.fence.call}, "release 5")
		}},
		{"process gone", true, func(s *script) {
			s.expect(100*ms, evStatus{status: Status{State: pb.InstanceState_INSTANCE_STATE_DOWN, Gone: true}}, "STANDBY 5, release 5")
		}},
		{"failed and does not obey", true, func(s *script) {
			s.expect(100*ms, evStatus{status: failed}, "STANDBY 5, demote 5 ABORT")
			s.expect(175*ms, evTimer{}, "kill")
		}},
		{"failed, demote fails", true, func(s *script) {
			s.do(100*ms, evStatus{status: failed})
			s.expect(110*ms, evDemoted{epoch: 5, call: s.m.fence.call, err: errors.New("no")}, "kill")
		}},
		{"demote fails, nothing else is there", false, func(s *script) {
			s.do(100*ms, evStatus{status: failed})
			s.expect(110*ms, evDemoted{epoch: 5, call: s.m.fence.call, err: errors.New("no")}, "")
			s.expect(120*ms, nominate(9), "consent=false")
			s.expect(130*ms, evTimer{}, "demote 5 ABORT")
			s.expect(140*ms, evStatus{status: Status{State: pb.InstanceState_INSTANCE_STATE_DOWN, Gone: true}}, "release 5")
		}},
		{"revoked", false, func(s *script) {
			s.expect(100*ms, s.record(func(g *pb.Group) { g.Revoked = true }), "STANDBY 5, demote 5 ABORT")
			s.expect(110*ms, evDemoted{epoch: 5, call: s.m.fence.call}, "release 5")
		}},
		{"renewal refused, revoked", false, func(s *script) {
			s.expect(100*ms, evRenewed{epoch: 5, newest: 5, outcome: refused}, "STANDBY 5, demote 5 ABORT")
			s.expect(110*ms, evDemoted{epoch: 5, call: s.m.fence.call}, "release 5")
		}},
		{"renewal refused, newer epoch", false, func(s *script) {
			s.expect(100*ms, evRenewed{epoch: 5, newest: 6, outcome: refused}, "STANDBY 5, demote 5 ABORT")
			s.expect(110*ms, s.record(func(g *pb.Group) { g.Epoch, g.Holder = 6, "n2" }), "")
			s.expect(120*ms, evDemoted{epoch: 5, call: s.m.fence.call}, "")
		}},
		{"restarted", false, func(s *script) {
			s.expect(90*ms, evStatus{status: Status{State: pb.InstanceState_INSTANCE_STATE_READY}}, "")
			s.expect(100*ms, evStatus{status: Status{State: pb.InstanceState_INSTANCE_STATE_LOADING}}, "STANDBY 5, demote 5 ABORT")
		}},
		{"restarted so fast that only its epoch shows it", false, func(s *script) {
			s.expect(90*ms, evStatus{status: Status{State: pb.InstanceState_INSTANCE_STATE_READY, Epoch: 5}}, "")
			s.expect(100*ms, evStatus{status: Status{State: pb.InstanceState_INSTANCE_STATE_READY}}, "STANDBY 5, demote 5 ABORT")
		}},
		{"an old LOADING is not taken for a restart", false, func(s *script) {
			s.expect(90*ms, evStatus{status: Status{State: pb.InstanceState_INSTANCE_STATE_LOADING}}, "")
			s.expect(95*ms, evStatus{status: Status{State: pb.InstanceState_INSTANCE_STATE_READY}}, "")
		}},
		{"asleep or without a model is not down", false, func(s *script) {
			s.expect(90*ms, evStatus{status: Status{State: pb.InstanceState_INSTANCE_STATE_WARM}}, "")
			s.expect(95*ms, evStatus{status: Status{State: pb.InstanceState_INSTANCE_STATE_LIVE}}, "")
		}},
		{"stop", false, func(s *script) {
			s.expect(100*ms, evStop{}, "STANDBY 5, demote 5 ABORT")
			s.expect(110*ms, evDemoted{epoch: 5, call: s.m.fence.call}, "release 5")
			s.expect(120*ms, evReleased{epoch: 5, outcome: accepted}, "")
			if !s.m.quiet() {
				s.t.Fatal("something is left to do")
			}
			s.expect(130*ms, nominate(9), "consent=false")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newScript(t, c.canKill)
			s.serve()
			s.do(40*ms, evRenewed{epoch: 5, q: at(0), outcome: accepted})
			c.run(s)
		})
	}
}

func TestMachineFence(t *testing.T) {
	ask := func(id, epoch uint64, drain uint32) evFence {
		return evFence{id: id, req: &pb.FenceRequest{Group: "g", Epoch: epoch, DrainMs: drain}}
	}
	for _, c := range []struct {
		name string
		run  func(s *script)
	}{
		{"drain, renewed meanwhile, then handed over", func(s *script) {
			s.expect(100*ms, ask(1, 5, 5000), "DRAINING 5, demote 5 DRAIN")
			s.expect(210*ms, evTimer{}, "renew")
			s.expect(220*ms, evRenewed{epoch: 5, q: at(210 * ms), outcome: accepted}, "")
			s.expect(300*ms, evDemoted{epoch: 5, call: s.m.fence.call}, "STANDBY 5, fenced=true")
			if s.m.lease.ValidAt(at(300 * ms)) {
				s.t.Fatal("the lease is valid although its holder said that it is fenced")
			}
			s.expect(310*ms, ask(2, 5, 0), "fenced=true")
			s.expect(400*ms, s.record(func(g *pb.Group) { g.Epoch, g.Holder = 9, "n2" }), "")
			s.expect(3000*ms, evTimer{}, "")
		}},
		{"no handover follows", func(s *script) {
			s.do(100*ms, ask(1, 5, 0))
			s.expect(200*ms, evDemoted{epoch: 5, call: s.m.fence.call}, "fenced=true")
			s.expect(2199*ms, evTimer{}, "")
			s.expect(2200*ms, evTimer{}, "release 5")
		}},
		{"failover: revoked before", func(s *script) {
			s.do(100*ms, ask(1, 5, 0))
			s.do(110*ms, s.record(func(g *pb.Group) { g.Revoked = true }))
			s.expect(200*ms, evDemoted{epoch: 5, call: s.m.fence.call}, "fenced=true, release 5")
		}},
		{"failover: revoked after", func(s *script) {
			s.do(100*ms, ask(1, 5, 0))
			s.expect(200*ms, evDemoted{epoch: 5, call: s.m.fence.call}, "fenced=true")
			s.expect(210*ms, s.record(func(g *pb.Group) { g.Revoked = true }), "release 5")
		}},
		{"the lease ends while it drains", func(s *script) {
			s.do(100*ms, ask(1, 5, 5000))
			s.expect(1038*ms, evTimer{}, "STANDBY 5, demote 5 ABORT")
			s.expect(1050*ms, evDemoted{epoch: 5, call: s.m.fence.call}, "fenced=true, release 5")
		}},
		{"abort overtakes drain", func(s *script) {
			s.do(100*ms, ask(1, 5, 5000))
			s.expect(110*ms, ask(2, 5, 0), "STANDBY 5, demote 5 ABORT")
			s.expect(120*ms, evDemoted{epoch: 5, call: s.m.fence.call}, "fenced=true, fenced=true")
		}},
		{"drain fails", func(s *script) {
			s.do(100*ms, ask(1, 5, 5000))
			s.expect(110*ms, evDemoted{epoch: 5, call: s.m.fence.call, err: errors.New("no")}, "STANDBY 5, demote 5 ABORT")
		}},
		{"another epoch", func(s *script) {
			s.expect(100*ms, ask(1, 4, 0), "fenced=false")
			s.expect(100*ms, ask(1, 6, 0), "fenced=false")
			s.expect(100*ms, ask(1, 0, 0), "fenced=false")
		}},
		{"handoff", func(s *script) {
			s.expect(100*ms, evHandoff{id: 3, drain: time.Second}, "DRAINING 5, demote 5 DRAIN")
			s.expect(110*ms, evDemoted{epoch: 5, call: s.m.fence.call}, "STANDBY 5, release 5")
			s.expect(120*ms, evReleased{epoch: 5, outcome: accepted}, "handed off")
			s.expect(130*ms, evHandoff{id: 4}, "handed off")
			s.expect(130*ms, nominate(9), "consent=false")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newScript(t, false)
			s.serve()
			s.do(40*ms, evRenewed{epoch: 5, q: at(0), outcome: accepted})
			c.run(s)
		})
	}
}

func TestMachinePromotion(t *testing.T) {
	start := func(t *testing.T) *script {
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
		s.do(215*ms, evRenewed{epoch: 2000, q: at(210 * ms), outcome: accepted})
		s.expect(220*ms, evTimer{}, "touch")
		s.expect(230*ms, evPromoted{epoch: 2000, touch: true, err: errors.New("unreachable")}, "")
		s.do(900*ms, evRenewed{epoch: 2000, q: at(900 * ms), outcome: accepted})
		// It has not been told of the renewals: by now it has stopped by itself.
		got := s.do(1038*ms, evTimer{})
		if !strings.Contains(got, "STANDBY 2000") {
			t.Fatalf("got %q", got)
		}
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
