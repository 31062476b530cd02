// SPDX-License-Identifier: Apache-2.0

package election

import (
	"math"
	"time"

	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// UntilChange is the Wait of a decision that no passing of time can change: the
// next change of the group (or the barrier) has to be waited for. It is longer
// than any other Wait, so that the least of many Waits is right, and may be given
// to a timer.
const UntilChange = time.Duration(math.MaxInt64)

// Want is an operator's order that waits to be carried out.
type Want int

const (
	// WantNone: nobody has ordered anything.
	WantNone Want = iota
	// WantFailover: move to another instance. A pause or a hold still stands.
	WantFailover
	// WantForced: the same, also when paused or held.
	WantForced
)

// Action is what the leader is to do with a group now.
type Action int

const (
	// Nothing until Wait has passed or the group has changed.
	Nothing Action = iota
	// Elect: canvass, nominate and grant now.
	Elect
	// ProposeCalm: propose a Calm with the group's epoch.
	ProposeCalm
)

// String is for logs.
func (a Action) String() string {
	switch a {
	case Nothing:
		return "nothing"
	case Elect:
		return "elect"
	case ProposeCalm:
		return "propose calm"
	}
	return "unknown action"
}

// GroupView is all that a leader's decision about one group depends on. The
// barrier has to be seen before Group is read, and RenewStoredAt must be that of
// the very last_renew in Group.
type GroupView struct {
	Group *pb.Group
	// Leader says whether the barrier was applied and when Group.last_renew was
	// stored here. Its Phase and TTL are taken from Group.
	Leader LeaderView
	Now    clock.Instant
	Slack  time.Duration
	// CalmSince is since when this leader has seen no failover of the group: its
	// takeover, or the newest failover that it applied.
	CalmSince clock.Instant
	// NextTry is the end of the back-off after an attempt that found no candidate.
	// A new order should reset it.
	NextTry clock.Instant
	Want    Want
}

// Decision is what to do, and why.
type Decision struct {
	Do Action
	// Wait is how long the view can be trusted to give Nothing, if nothing changes
	// but the time. 0 if Do is another action.
	Wait time.Duration
	// Kind of the grant, as long as nobody has been chosen; see KindOf.
	Kind pb.TransitionKind
	// OnlyLastHolder: nobody but LastHolder may be granted, because the group is
	// paused or held.
	OnlyLastHolder bool
	Reason         string
}

// Decide says what the leader does with a group. Elect means only that a Grant
// may be proposed; it must carry the epoch and last_renew of v.Group, and the
// consent of its holder.
func Decide(v GroupView) Decision {
	g := v.Group
	v.Leader.Phase, v.Leader.TTL = g.GetPhase(), time.Duration(g.GetTtlMs())*time.Millisecond
	wait, ok := LeaseWait(v.Leader, v.Now, v.Slack)
	switch {
	case g == nil:
		return Decision{Wait: UntilChange, Reason: "there is no such group"}
	case !ok:
		return Decision{Wait: UntilChange, Reason: "the barrier of this term is not applied yet"}
	case wait > 0:
		return whileHeldByLease(v, wait)
	}
	d := Decision{Do: Elect, Kind: KindOf(g, "", v.Want), Reason: electReason(g, v.Want)}
	if v.Want != WantForced && (g.GetPaused() || g.GetHeld()) {
		d.OnlyLastHolder, d.Kind = true, pb.TransitionKind_TRANSITION_KIND_REGRANT
		if LastHolder(g) == "" {
			return Decision{Wait: UntilChange, Reason: stopReason(g) + ", and nobody held it before"}
		}
	}
	if back := v.NextTry.Sub(v.Now); back > 0 {
		return Decision{Wait: back, Reason: "backs off: no candidate was found"}
	}
	return d
}

// whileHeldByLease decides for a group whose lease has not run out.
func whileHeldByLease(v GroupView, wait time.Duration) Decision {
	calm, ok := calmWait(v)
	switch {
	case ok && calm == 0:
		return Decision{Do: ProposeCalm, Reason: "no failover for a calm period"}
	case ok:
		wait = min(wait, calm)
	}
	return Decision{Wait: wait, Reason: "the lease runs"}
}

// calmWait is how long until the count of failovers may be reset. ok is false if
// that does not come by waiting: there is nothing to reset, no calm period is
// set, nobody serves, or the group is held, which an operator has to acknowledge.
func calmWait(v GroupView) (wait time.Duration, ok bool) {
	g := v.Group
	period := g.GetPolicy().GetCalmMs()
	if g.GetFailoversSinceCalm() == 0 || period == 0 || g.GetHeld() || g.GetPhase() != pb.GroupPhase_GROUP_PHASE_SERVING {
		return 0, false
	}
	if period > uint64(math.MaxInt64/2/time.Millisecond) {
		return 0, false
	}
	end := v.CalmSince.Add(time.Duration(period) * time.Millisecond)
	if v.Now > end {
		return 0, true
	}
	return end.Sub(v.Now) + 1, true
}

// LastHolder is who holds the group, or held it last; empty if nobody ever did.
func LastHolder(g *pb.Group) string {
	if g.GetHolder() != "" {
		return g.GetHolder()
	}
	return g.GetLastHolder()
}

// KindOf is the kind of a grant of g to chosen. g is the group as it was before
// the grant.
func KindOf(g *pb.Group, chosen string, want Want) pb.TransitionKind {
	switch {
	case g.GetEpoch() == 0:
		return pb.TransitionKind_TRANSITION_KIND_INITIAL
	case chosen != "" && chosen == LastHolder(g):
		return pb.TransitionKind_TRANSITION_KIND_REGRANT
	case want != WantNone:
		return pb.TransitionKind_TRANSITION_KIND_FORCED
	}
	return pb.TransitionKind_TRANSITION_KIND_FAILOVER
}

func electReason(g *pb.Group, want Want) string {
	switch {
	case want != WantNone:
		return "ordered by an operator"
	case g.GetPhase() != pb.GroupPhase_GROUP_PHASE_VACANT:
		return "lease expired"
	case g.GetEpoch() == 0:
		return "first primary"
	case g.GetReleaseReason() != "":
		return g.GetReleaseReason()
	}
	return "vacant"
}

func stopReason(g *pb.Group) string {
	if !g.GetPaused() {
		return "held after repeated failovers"
	}
	if g.GetPauseReason() == "" {
		return "paused"
	}
	return "paused: " + g.GetPauseReason()
}
