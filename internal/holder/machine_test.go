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
	s.m.clean.needed = false // no former process has left anything
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
			s.do(1000*ms, evRenewed{epoch: 5, q: at(1000 * ms), outcome: accepted})
			s.expect(1100*ms, evStatus{status: Status{State: pb.InstanceState_INSTANCE_STATE_DOWN, Gone: true}}, "STANDBY 5, release 5")
		}},
		{"process gone, but Promote has just returned", true, func(s *script) {
			s.expect(100*ms, evStatus{status: Status{State: pb.InstanceState_INSTANCE_STATE_DOWN, Gone: true}}, "STANDBY 5, demote 5 ABORT")
			s.expect(101*ms, evDemoted{epoch: 5, call: s.m.fence.call}, "release 5")
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
			s.expect(140*ms, evStatus{status: Status{State: pb.InstanceState_INSTANCE_STATE_DOWN, Gone: true}}, "")
			s.expect(1021*ms, evTimer{}, "release 5")
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
		{"the Demote that drained comes back after abort", func(s *script) {
			s.do(100*ms, ask(1, 5, 5000))
			drained := s.m.fence.call
			s.do(110*ms, ask(2, 5, 0))
			s.expect(120*ms, evDemoted{epoch: 5, call: drained, err: errors.New("cancelled")}, "")
			s.expect(130*ms, evTimer{}, "")
		}},
		{"drain while Promote is repeated and does not return", func(s *script) {
			s.expect(90*ms, evInfo{info: Info{Capabilities: []pb.Capability{pb.Capability_CAPABILITY_LEASE}}}, "touch")
			s.expect(100*ms, ask(1, 5, 5000), "DRAINING 5, cancel")
			s.do(210*ms, evTimer{})
			s.expect(250*ms, evTimer{}, "demote 5 DRAIN")
			s.expect(260*ms, evDemoted{epoch: 5, call: s.m.fence.call}, "STANDBY 5, cancel")
			s.expect(270*ms, evPromoted{epoch: 5, touch: true}, "demote 5 ABORT")
			s.expect(280*ms, evDemoted{epoch: 5, call: s.m.fence.call}, "fenced=true")
		}},
		{"an instance that counts the lease is told of it while it drains", func(s *script) {
			s.expect(90*ms, evInfo{info: Info{Capabilities: []pb.Capability{pb.Capability_CAPABILITY_LEASE}}}, "touch")
			s.expect(95*ms, evPromoted{epoch: 5, touch: true}, "")
			s.expect(100*ms, ask(1, 5, 5000), "DRAINING 5, demote 5 DRAIN")
			s.expect(210*ms, evTimer{}, "renew")
			s.expect(290*ms, evRenewed{epoch: 5, q: at(210 * ms), outcome: accepted}, "touch")
			s.expect(300*ms, evPromoted{epoch: 5, touch: true}, "")
			// The repeated Promote may have come after the Demote: once more.
			s.expect(350*ms, evDemoted{epoch: 5, call: s.m.fence.call}, "STANDBY 5, demote 5 ABORT")
			s.expect(360*ms, evDemoted{epoch: 5, call: s.m.fence.call}, "fenced=true")
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

// TestMachineServerThatRefusesAfterARestart: nobody has seen the server end, so that what
// was held before the restart is not released before it has answered a Demote; it is told
// at once when it is back.
func TestMachineServerThatRefusesAfterARestart(t *testing.T) {
	s := newScript(t, false)
	s.do(0, evStatus{status: Status{State: pb.InstanceState_INSTANCE_STATE_DOWN, Reason: "connection refused"}})
	s.expect(0, s.grant(9, 7), "STANDBY 9, demote 9 ABORT") // to the process before
	lost := evDemoted{epoch: 9, call: s.m.fence.call, err: errors.New("connection refused")}
	s.expect(10*ms, lost, "")
	s.expect(4*time.Second, evTimer{}, "demote 9 ABORT")
	lost.call = s.m.fence.call
	s.expect(4*time.Second, lost, "")
	s.expect(4*time.Second+ms, evStatus{status: Status{State: pb.InstanceState_INSTANCE_STATE_LOADING}}, "demote 9 ABORT")
	s.expect(4*time.Second+2*ms, evDemoted{epoch: 9, call: s.m.fence.call}, "release 9")
}

// TestMachineCleansAtOnce: an instance that comes back is demoted at once, however long the
// attempts before were apart.
func TestMachineCleansAtOnce(t *testing.T) {
	s := newScript(t, false)
	s.m.clean.needed, s.m.clean.start = true, true
	s.do(0, evStatus{status: Status{State: pb.InstanceState_INSTANCE_STATE_DOWN, Reason: "connection refused"}})
	s.expect(0, s.record(func(g *pb.Group) { g.Phase, g.Holder, g.Epoch = pb.GroupPhase_GROUP_PHASE_SERVING, "n2", 9 }), "demote 9 ABORT")
	s.expect(ms, evDemoted{epoch: 9, call: s.m.clean.call, err: errors.New("connection refused")}, "")
	s.expect(2*ms, evStatus{status: Status{State: pb.InstanceState_INSTANCE_STATE_READY}}, "demote 9 ABORT")
	s.expect(3*ms, evDemoted{epoch: 9, call: s.m.clean.call}, "")
	if s.m.unclean(9) {
		t.Error("it is still unclean")
	}
}
