// SPDX-License-Identifier: Apache-2.0

package election

import (
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const (
	initial  = pb.TransitionKind_TRANSITION_KIND_INITIAL
	failover = pb.TransitionKind_TRANSITION_KIND_FAILOVER
	regrant  = pb.TransitionKind_TRANSITION_KIND_REGRANT
	forced   = pb.TransitionKind_TRANSITION_KIND_FORCED
)

// servingView is a group that n1 has served for a second of its lease of 1 s.
func servingView() GroupView {
	return GroupView{
		Group: &pb.Group{
			Name: "g", Phase: serving, Holder: "n1", Epoch: 5, LastRenew: 9, TtlMs: 1000,
			Policy: &pb.GroupPolicy{CalmMs: 60_000},
		},
		Leader: LeaderView{BarrierApplied: true, RenewStoredAt: start},
		Now:    start.Add(time.Second), Slack: 5 * time.Millisecond, CalmSince: start,
	}
}

// lost lets the lease of a view run out; left makes it vacant.
func lost(v *GroupView) { v.Now = start.Add(1016 * time.Millisecond) }

func left(v *GroupView) {
	v.Group.Phase, v.Group.Holder, v.Group.LastHolder, v.Group.ReleaseReason = vacant, "", "n1", "process exited"
}

func never(v *GroupView) {
	v.Group.Phase, v.Group.Holder, v.Group.Epoch, v.Group.LastRenew = vacant, "", 0, 0
}

func TestDecide(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*GroupView)
		want   Decision
	}{
		{"the lease runs", func(*GroupView) {}, Decision{Wait: 15*time.Millisecond + 1, Reason: "the lease runs"}},
		{"granted, the lease runs", func(v *GroupView) { v.Group.Phase = granted }, Decision{Wait: 15*time.Millisecond + 1, Reason: "the lease runs"}},
		{"no barrier", func(v *GroupView) { left(v); v.Leader.BarrierApplied = false }, Decision{Wait: UntilChange, Reason: "the barrier of this term is not applied yet"}},
		{"no group", func(v *GroupView) { v.Group = nil }, Decision{Wait: UntilChange, Reason: "there is no such group"}},
		{"the view's phase and length are those of the group", func(v *GroupView) { v.Leader.Phase, v.Leader.TTL = vacant, 1 }, Decision{Wait: 15*time.Millisecond + 1, Reason: "the lease runs"}},

		{"lease expired", lost, Decision{Do: Elect, Kind: failover, Reason: "lease expired"}},
		{"lease of a revoked group expired", func(v *GroupView) { lost(v); v.Group.Revoked = true }, Decision{Do: Elect, Kind: failover, Reason: "lease expired"}},
		{"released", left, Decision{Do: Elect, Kind: failover, Reason: "process exited"}},
		{"released, no reason", func(v *GroupView) { left(v); v.Group.ReleaseReason = "" }, Decision{Do: Elect, Kind: failover, Reason: "vacant"}},
		{"never held", never, Decision{Do: Elect, Kind: initial, Reason: "first primary"}},
		{"back-off", func(v *GroupView) { left(v); v.NextTry = v.Now + 7 }, Decision{Wait: 7, Reason: "backs off: no candidate was found"}},
		{"back-off over", func(v *GroupView) { left(v); v.NextTry = v.Now }, Decision{Do: Elect, Kind: failover, Reason: "process exited"}},

		{"paused", func(v *GroupView) { lost(v); v.Group.Paused = true }, Decision{Do: Elect, OnlyLastHolder: true, Kind: regrant, Reason: "lease expired"}},
		{"held", func(v *GroupView) { left(v); v.Group.Held = true }, Decision{Do: Elect, OnlyLastHolder: true, Kind: regrant, Reason: "process exited"}},
		{"paused, the lease runs", func(v *GroupView) { v.Group.Paused = true }, Decision{Wait: 15*time.Millisecond + 1, Reason: "the lease runs"}},
		{"paused, back-off", func(v *GroupView) { left(v); v.Group.Paused = true; v.NextTry = v.Now + 7 }, Decision{Wait: 7, Reason: "backs off: no candidate was found"}},
		{"paused, never held", func(v *GroupView) { never(v); v.Group.Paused, v.Group.PauseReason = true, "upgrade" }, Decision{Wait: UntilChange, Reason: "paused: upgrade, and nobody held it before"}},
		{"paused without a reason, never held", func(v *GroupView) { never(v); v.Group.Paused = true }, Decision{Wait: UntilChange, Reason: "paused, and nobody held it before"}},
		{"held, never held before", func(v *GroupView) { never(v); v.Group.Held = true }, Decision{Wait: UntilChange, Reason: "held after repeated failovers, and nobody held it before"}},

		{"ordered, the lease runs", func(v *GroupView) { v.Want = WantForced }, Decision{Wait: 15*time.Millisecond + 1, Reason: "the lease runs"}},
		{"ordered", func(v *GroupView) { left(v); v.Want = WantFailover }, Decision{Do: Elect, Kind: forced, Reason: "ordered by an operator"}},
		{"ordered but paused", func(v *GroupView) { left(v); v.Want, v.Group.Paused = WantFailover, true }, Decision{Do: Elect, OnlyLastHolder: true, Kind: regrant, Reason: "ordered by an operator"}},
		{"forced though paused", func(v *GroupView) { lost(v); v.Want, v.Group.Paused = WantForced, true }, Decision{Do: Elect, Kind: forced, Reason: "ordered by an operator"}},
		{"forced though held", func(v *GroupView) { left(v); v.Want, v.Group.Held = WantForced, true }, Decision{Do: Elect, Kind: forced, Reason: "ordered by an operator"}},
		{"forced, never held, paused", func(v *GroupView) { never(v); v.Want, v.Group.Paused = WantForced, true }, Decision{Do: Elect, Kind: initial, Reason: "ordered by an operator"}},
	} {
		v := servingView()
		c.change(&v)
		if got := Decide(v); got != c.want {
			t.Errorf("%s:\n got %+v\nwant %+v", c.name, got, c.want)
		}
	}
}

func TestDecide_Calm(t *testing.T) {
	// The lease is fresh, so that calm is all that is waited for below 1015 ms.
	runs := Decision{Wait: 1015*time.Millisecond + 1, Reason: "the lease runs"}
	for _, c := range []struct {
		name   string
		since  time.Duration
		change func(*pb.Group)
		want   Decision
	}{
		{"long ago", time.Hour, func(*pb.Group) {}, Decision{Do: ProposeCalm, Reason: "no failover for a calm period"}},
		{"just over", time.Minute + 1, func(*pb.Group) {}, Decision{Do: ProposeCalm, Reason: "no failover for a calm period"}},
		{"exactly", time.Minute, func(*pb.Group) {}, Decision{Wait: 1, Reason: "the lease runs"}},
		{"soon", time.Minute - 100, func(*pb.Group) {}, Decision{Wait: 101, Reason: "the lease runs"}},
		{"after the lease", time.Second, func(*pb.Group) {}, runs},
		{"nothing to reset", time.Hour, func(g *pb.Group) { g.FailoversSinceCalm = 0 }, runs},
		{"no calm period", time.Hour, func(g *pb.Group) { g.Policy.CalmMs = 0 }, runs},
		{"no policy", time.Hour, func(g *pb.Group) { g.Policy = nil }, runs},
		{"a calm period for ever", time.Hour, func(g *pb.Group) { g.Policy.CalmMs = math.MaxUint64 }, runs},
		{"held waits for an operator", time.Hour, func(g *pb.Group) { g.Held = true }, runs},
		{"nobody serves yet", time.Hour, func(g *pb.Group) { g.Phase = granted }, runs},
		{"paused is calm too", time.Hour, func(g *pb.Group) { g.Paused = true }, Decision{Do: ProposeCalm, Reason: "no failover for a calm period"}},
	} {
		v := servingView()
		v.Group.FailoversSinceCalm = 2
		v.Now = start
		v.CalmSince = start.Add(-c.since)
		c.change(v.Group)
		if got := Decide(v); got != c.want {
			t.Errorf("%s:\n got %+v\nwant %+v", c.name, got, c.want)
		}
	}
	v := servingView()
	v.Group.FailoversSinceCalm = 2
	v.CalmSince = start.Add(-time.Hour)
	lost(&v)
	if got := Decide(v); got.Do != Elect {
		t.Errorf("a lost lease comes before a calm period: %+v", got)
	}
}

func TestKindOf(t *testing.T) {
	held := &pb.Group{Phase: serving, Holder: "n1", Epoch: 5}
	free := &pb.Group{Phase: vacant, LastHolder: "n1", Epoch: 5}
	fresh := &pb.Group{Phase: vacant}
	for _, c := range []struct {
		name   string
		g      *pb.Group
		chosen string
		want   Want
		kind   pb.TransitionKind
	}{
		{"first", fresh, "n1", WantNone, initial},
		{"first, forced", fresh, "n1", WantForced, initial},
		{"the same after an expiry", held, "n1", WantNone, regrant},
		{"the same after a release", free, "n1", WantNone, regrant},
		{"the same though ordered", free, "n1", WantForced, regrant},
		{"another after an expiry", held, "n2", WantNone, failover},
		{"another after a release", free, "n2", WantNone, failover},
		{"ordered", free, "n2", WantFailover, forced},
		{"forced", held, "n2", WantForced, forced},
		{"nobody chosen yet", held, "", WantNone, failover},
		{"last holder not known", &pb.Group{Phase: vacant, Epoch: 5}, "", WantNone, failover},
	} {
		if got := KindOf(c.g, c.chosen, c.want); got != c.kind {
			t.Errorf("%s: %v, want %v", c.name, got, c.kind)
		}
	}
}

func TestAction_String(t *testing.T) {
	seen := map[string]bool{}
	for _, a := range []Action{Nothing, Elect, ProposeCalm, 99} {
		if s := a.String(); s == "" || seen[s] || (strings.Contains(s, "unknown") != (a == 99)) {
			t.Errorf("%d is %q", a, s)
		} else {
			seen[s] = true
		}
	}
}

func drawView(t *rapid.T) GroupView {
	at := func(name string) clock.Instant {
		return start.Add(time.Duration(rapid.Int64Range(0, int64(3*time.Second)).Draw(t, name)))
	}
	v := GroupView{
		Group: &pb.Group{
			Phase: pb.GroupPhase(rapid.Int32Range(0, 3).Draw(t, "phase")), Epoch: rapid.Uint64Range(0, 1).Draw(t, "epoch"),
			TtlMs: rapid.Uint32Range(0, 2000).Draw(t, "ttl"), Paused: rapid.Bool().Draw(t, "paused"), Held: rapid.Bool().Draw(t, "held"),
			FailoversSinceCalm: rapid.Uint32Range(0, 1).Draw(t, "failovers"),
			Policy:             &pb.GroupPolicy{CalmMs: rapid.Uint64Range(0, 2000).Draw(t, "calm")},
		},
		Leader: LeaderView{BarrierApplied: rapid.Bool().Draw(t, "barrier"), RenewStoredAt: at("stored")},
		Now:    at("now"), Slack: 5 * time.Millisecond, CalmSince: at("since"), NextTry: at("next try"),
		Want: Want(rapid.IntRange(0, 2).Draw(t, "want")),
	}
	if v.Group.Phase != vacant {
		v.Group.Holder = "n1"
	} else {
		v.Group.LastHolder = rapid.SampledFrom([]string{"", "n1"}).Draw(t, "last holder")
	}
	return v
}

// TestDecide_WaitExact: until Wait has passed nothing is to be done, and then
// something is; Wait is never 0 with Nothing, or the loop would spin. The view is
// not changed.
func TestDecide_WaitExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := drawView(t)
		before := proto.Clone(v.Group)
		d := Decide(v)
		if !proto.Equal(before, v.Group) {
			t.Fatal("Decide changed the group")
		}
		if (d.Do == Nothing) != (d.Wait > 0) || d.Reason == "" {
			t.Fatalf("%+v", d)
		}
		if d.Do == Elect {
			if w, ok := LeaseWait(LeaderView{true, v.Group.Phase, time.Duration(v.Group.TtlMs) * time.Millisecond, v.Leader.RenewStoredAt}, v.Now, v.Slack); !ok || w > 0 || !v.Leader.BarrierApplied {
				t.Fatalf("elects, but there are %v to wait: %+v", w, d)
			}
		}
		if d.Do != Nothing || d.Wait == UntilChange {
			return
		}
		v.Now = v.Now.Add(d.Wait - 1)
		if early := Decide(v); early.Do != Nothing || early.Wait != 1 {
			t.Fatalf("1 ns before its time: %+v, before %+v", early, d)
		}
		v.Now++
		// A lease that has run out may be followed by a back-off or a stop, but not
		// by the same wait.
		if after := Decide(v); after.Do == Nothing && after.Reason == d.Reason && after.Wait != UntilChange {
			t.Fatalf("%+v is followed by %+v", d, after)
		}
	})
}
