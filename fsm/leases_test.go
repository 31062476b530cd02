// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"testing"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func groupOf(t tb, m *Machine, name string) *pb.Group {
	t.Helper()
	g, found := m.Group(name)
	if !found {
		t.Fatalf("no group %s", name)
	}
	return g
}

// TestGrantComparesEpochAndLastRenew guards the compare-and-set of Grant: a
// leader that decided before a renewal, or before another grant, must lose.
func TestGrantComparesEpochAndLastRenew(t *testing.T) {
	m := newMachine(t)
	must(t, m, report("g", "n1"))                                            // 1
	must(t, m, cmdGrant(&pb.Grant{Group: "g", Holder: "n1", Nomination: 7})) // 2
	r := must(t, m, renew("n1", renewal("g", 2)))                            // 3
	if len(r.GetRefused()) != 0 || groupOf(t, m, "g").GetLastRenew() != 3 {
		t.Fatalf("renewal: %v", r)
	}
	stale := func(why string, epoch, renew uint64) {
		t.Helper()
		r := want(t, apply(t, m, cmdGrant(&pb.Grant{Group: "g", Holder: "n2", IfEpoch: epoch, IfLastRenew: renew})), codeConflict)
		if r.GetEpoch() != 2 || r.GetHolder() != "n1" || r.GetConflictKey() != "group/g" {
			t.Errorf("%s: %v", why, r)
		}
		if g := groupOf(t, m, "g"); g.GetHolder() != "n1" || g.GetEpoch() != 2 {
			t.Errorf("%s: the group is now %v", why, g)
		}
	}
	stale("a renewal came between", 2, 2)
	stale("another epoch", 1, 3)
	stale("never granted", 0, 0)
	index, _ := m.Applied()
	r = must(t, m, cmdGrant(&pb.Grant{Group: "g", Holder: "n2", IfEpoch: 2, IfLastRenew: 3, Nomination: 9, TtlMs: 4000}))
	g := groupOf(t, m, "g")
	if r.GetEpoch() != index+1 || g.GetEpoch() != index+1 || g.GetLastRenew() != index+1 || g.GetHolder() != "n2" ||
		g.GetPhase() != granted || g.GetNomination() != 9 || g.GetTtlMs() != 4000 {
		t.Errorf("grant: %v, group %v", r, g)
	}
	// The old holder's renewal comes too late.
	r = must(t, m, renew("n1", renewal("g", 2)))
	if len(r.GetRefused()) != 1 || r.GetRefused()[0].GetNewestEpoch() != index+1 || r.GetRefused()[0].GetHolder() != "n2" {
		t.Errorf("late renewal: %v", r)
	}
}

// TestRenewBatchRefuses guards the comparison of each item of a RenewBatch.
func TestRenewBatchRefuses(t *testing.T) {
	m := newMachine(t)
	must(t, m, report("a", "n1"), report("b", "n1"), report("c", "n1"), report("d", "n1"), report("e", "n1")) // 1
	must(t, m,
		cmdGrant(&pb.Grant{Group: "a", Holder: "n1"}), cmdGrant(&pb.Grant{Group: "b", Holder: "n2"}),
		cmdGrant(&pb.Grant{Group: "c", Holder: "n1"}), cmdGrant(&pb.Grant{Group: "d", Holder: "n1"})) // 2
	must(t, m, cmdRelease(&pb.Release{Group: "c", Holder: "n1", Epoch: 2}))
	must(t, m, cmdRevoke("d", 2))
	revision := m.Revision()
	r := must(t, m, renew("n1", renewal("a", 2), renewal("b", 2), renewal("c", 2), renewal("d", 2), renewal("e", 0), renewal("f", 2), renewal("a", 1)))
	var refused []string
	for _, x := range r.GetRefused() {
		refused = append(refused, x.GetGroup())
	}
	if got := len(refused); got != 6 || refused[5] != "a" {
		t.Errorf("refused %v: want b (other holder), c (released), d (revoked), e (vacant), f (unknown), a (old epoch)", refused)
	}
	if groupOf(t, m, "a").GetLastRenew() != 5 {
		t.Errorf("a was not renewed: %v", groupOf(t, m, "a"))
	}
	for _, name := range []string{"b", "c", "d", "e"} {
		if n := groupOf(t, m, name).GetLastRenew(); n > 2 {
			t.Errorf("%s was renewed at %d", name, n)
		}
	}
	if m.Revision() != revision {
		t.Error("a renewal changed the revision")
	}
}

func TestTwoGrantsInOneEntry(t *testing.T) {
	m := newMachine(t)
	must(t, m, report("g", "n1"))
	rs := applyAt(t, m, 2,
		cmdGrant(&pb.Grant{Group: "g", Holder: "n1"}),
		cmdGrant(&pb.Grant{Group: "g", Holder: "n2", IfEpoch: 2, IfLastRenew: 2}),
		cmdHandover(&pb.Handover{Group: "g", From: "n1", To: "n2", IfEpoch: 2}))
	want(t, rs[0], codeOK)
	want(t, rs[1], codeConflict)
	want(t, rs[2], codeConflict)
	if g := groupOf(t, m, "g"); g.GetHolder() != "n1" {
		t.Errorf("one epoch has two holders: %v", g)
	}
}

func TestReleaseServingRevokeHandover(t *testing.T) {
	m := newMachine(t)
	want(t, apply(t, m, cmdRelease(&pb.Release{Group: "g", Holder: "n1", Epoch: 1})), codeNotFound)
	must(t, m, report("g", "n1"))                             // 2
	must(t, m, cmdGrant(&pb.Grant{Group: "g", Holder: "n1"})) // 3
	for name, c := range map[string]*pb.Command{
		"release by another":   cmdRelease(&pb.Release{Group: "g", Holder: "n2", Epoch: 3}),
		"release of old epoch": cmdRelease(&pb.Release{Group: "g", Holder: "n1", Epoch: 2}),
		"serving of another":   cmdServing("g", "n2", 3, 1),
		"serving of old epoch": cmdServing("g", "n1", 2, 1),
	} {
		if r := apply(t, m, c); r.GetCode() != codeFenced || r.GetEpoch() != 3 || r.GetHolder() != "n1" {
			t.Errorf("%s: %v", name, r)
		}
	}
	for name, c := range map[string]*pb.Command{
		"revoke of old epoch":     cmdRevoke("g", 2),
		"handover from another":   cmdHandover(&pb.Handover{Group: "g", From: "n2", To: "n2", IfEpoch: 3}),
		"handover of other epoch": cmdHandover(&pb.Handover{Group: "g", From: "n1", To: "n2", IfEpoch: 2}),
	} {
		if r := apply(t, m, c); r.GetCode() != codeConflict {
			t.Errorf("%s: %v", name, r)
		}
	}
	must(t, m, cmdServing("g", "n1", 3, 1))
	revision := m.Revision()
	must(t, m, cmdServing("g", "n1", 3, 1)) // Again: nothing to do.
	if g := groupOf(t, m, "g"); g.GetPhase() != serving || m.Revision() != revision {
		t.Errorf("serving twice: %v", g)
	}
	must(t, m, cmdRevoke("g", 3), cmdRevoke("g", 3))
	if g := groupOf(t, m, "g"); !g.GetRevoked() || g.GetHolder() != "n1" || g.GetReleaseReason() != "operator" {
		t.Errorf("revoked: %v", g)
	}
	r := must(t, m, cmdHandover(&pb.Handover{Group: "g", From: "n1", To: "n2", IfEpoch: 3, Nomination: 5}))
	if g := groupOf(t, m, "g"); g.GetHolder() != "n2" || g.GetRevoked() || g.GetPhase() != granted || g.GetEpoch() != r.GetEpoch() || g.GetNomination() != 5 {
		t.Errorf("handover: %v", g)
	}
	must(t, m, cmdRelease(&pb.Release{Group: "g", Holder: "n2", Epoch: r.GetEpoch(), Reason: "exit", DetectMs: 12}))
	g := groupOf(t, m, "g")
	if g.GetPhase() != vacant || g.GetHolder() != "" || g.GetLastHolder() != "n2" || g.GetEpoch() != r.GetEpoch() ||
		g.GetReleaseReason() != "exit" || g.GetReleaseDetectMs() != 12 || g.GetReleasedUnixMs() == 0 {
		t.Errorf("released: %v", g)
	}
	want(t, apply(t, m, cmdRelease(&pb.Release{Group: "g", Holder: "n2", Epoch: r.GetEpoch()})), codeFenced)
	want(t, apply(t, m, cmdRelease(&pb.Release{Group: "g", Holder: "", Epoch: r.GetEpoch()})), codeInvalid)
}

func TestHistory(t *testing.T) {
	m := newMachine(t)
	must(t, m, report("g", "n1"))                                                                                   // 1
	must(t, m, cmdGrant(&pb.Grant{Group: "g", Holder: "n1", Kind: pb.TransitionKind_TRANSITION_KIND_INITIAL}))      // 2, wall 2000
	must(t, m, cmdServing("g", "n1", 2, 300))                                                                       // 3, wall 3000
	must(t, m, cmdRelease(&pb.Release{Group: "g", Holder: "n1", Epoch: 2, Reason: "process exited", DetectMs: 40})) // 4
	must(t, m, cmdGrant(&pb.Grant{Group: "g", Holder: "n2", IfEpoch: 2, IfLastRenew: 2, GrantMs: 3}))               // 5
	must(t, m, cmdRelease(&pb.Release{Group: "g", Holder: "n2", Epoch: 5, Reason: "canary", PromoteFailed: true}))  // 6
	must(t, m, cmdGrant(&pb.Grant{Group: "g", Holder: "n3", IfEpoch: 5, IfLastRenew: 5}))                           // 7
	must(t, m, cmdGrant(&pb.Grant{Group: "g", Holder: "n1", IfEpoch: 7, IfLastRenew: 7, Reason: "lease expired"}))  // 8
	h := m.History("g", 0)
	if len(h) != 4 || len(m.History("g", 2)) != 2 || m.History("g", 1)[0].GetNumber() != 4 {
		t.Fatalf("history: %v", h)
	}
	first, second, third, fourth := h[3], h[2], h[1], h[0]
	if first.GetOutcome() != outcomeServing || first.GetPromoteMs() != 300 || first.GetServeMs() != 30 ||
		first.GetGrantedUnixMs() != 2000 || first.GetEndedUnixMs() != 3000 || first.GetFrom() != "" || first.GetTo() != "n1" || first.GetEpoch() != 2 {
		t.Errorf("first: %v", first)
	}
	if second.GetOutcome() != outcomeFailed || second.GetFrom() != "n1" || second.GetReason() != "process exited" ||
		second.GetDetectedBy() != "n1" || second.GetDetectMs() != 40 || second.GetGrantMs() != 3 || second.GetDetail() != "promotion failed: canary" {
		t.Errorf("second: %v", second)
	}
	if third.GetOutcome() != outcomeFailed || third.GetFrom() != "n2" || third.GetEndedUnixMs() != 8000 {
		t.Errorf("third, lost before it served: %v", third)
	}
	if fourth.GetOutcome() != outcomePending || fourth.GetFrom() != "n3" || fourth.GetEpochBefore() != 7 || fourth.GetReason() != "lease expired" || fourth.GetEndedUnixMs() != 0 {
		t.Errorf("fourth: %v", fourth)
	}
}

func TestHistoryIsBounded(t *testing.T) {
	m := newMachine(t)
	must(t, m, report("g", "n1"))
	var epoch uint64
	for range hastate.MaxHistory + 10 {
		r := must(t, m, cmdGrant(&pb.Grant{Group: "g", Holder: "n1", IfEpoch: epoch, IfLastRenew: epoch}))
		epoch = r.GetEpoch()
	}
	h := m.History("g", 0)
	if len(h) != hastate.MaxHistory || h[0].GetNumber() != hastate.MaxHistory+10 || h[len(h)-1].GetNumber() != 11 {
		t.Errorf("%d transitions, from %d to %d", len(h), h[len(h)-1].GetNumber(), h[0].GetNumber())
	}
}

func TestAntiFlap(t *testing.T) {
	m := newMachine(t)
	must(t, m, configure("g", &pb.GroupPolicy{MaxFailovers: 2}))
	var epoch uint64
	take := func(kind pb.TransitionKind) {
		t.Helper()
		epoch = must(t, m, cmdGrant(&pb.Grant{Group: "g", Holder: "n1", IfEpoch: epoch, IfLastRenew: epoch, Kind: kind})).GetEpoch()
	}
	state := func(n uint32, held bool) {
		t.Helper()
		if g := groupOf(t, m, "g"); g.GetFailoversSinceCalm() != n || g.GetHeld() != held {
			t.Errorf("%d failovers, held %v; want %d, %v", g.GetFailoversSinceCalm(), g.GetHeld(), n, held)
		}
	}
	take(pb.TransitionKind_TRANSITION_KIND_INITIAL)
	take(pb.TransitionKind_TRANSITION_KIND_REGRANT)
	state(0, false)
	take(pb.TransitionKind_TRANSITION_KIND_FAILOVER)
	state(1, false)
	want(t, apply(t, m, &pb.Command{Op: &pb.Command_Calm{Calm: &pb.Calm{Group: "g", IfEpoch: epoch - 1}}}), codeConflict)
	must(t, m, &pb.Command{Op: &pb.Command_Calm{Calm: &pb.Calm{Group: "g", IfEpoch: epoch}}})
	state(0, false)
	take(pb.TransitionKind_TRANSITION_KIND_FORCED)
	take(pb.TransitionKind_TRANSITION_KIND_FAILOVER)
	state(2, true)
	must(t, m, &pb.Command{Op: &pb.Command_Calm{Calm: &pb.Calm{Group: "g", IfEpoch: epoch}}})
	state(0, true) // A hold waits for a person.
	must(t, m, &pb.Command{Op: &pb.Command_ResumeGroup{ResumeGroup: &pb.ResumeGroup{Group: "g"}}})
	state(0, false)
	must(t, m, configure("g", &pb.GroupPolicy{}))
	for range 5 {
		take(pb.TransitionKind_TRANSITION_KIND_FAILOVER)
	}
	state(5, false) // 0 switches the hold off.
}

func TestServingNotesTheModel(t *testing.T) {
	m := newMachine(t)
	must(t, m, report("g", "n1"))
	must(t, m, cmdGrant(&pb.Grant{Group: "g", Holder: "n1"}))
	c := cmdServing("g", "n1", 2, 1)
	c.GetServing().Model = &pb.ModelRef{Name: "llama", Version: "1"}
	must(t, m, c)
	if in := m.Instances("g"); len(in) != 1 || in[0].GetModel().GetName() != "llama" {
		t.Errorf("instances: %v", in)
	}
}
