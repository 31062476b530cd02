// SPDX-License-Identifier: Apache-2.0

package check

import (
	"cmp"
	"slices"
	"time"

	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

const (
	// defaultSlack is how far durations that were measured by several processes on
	// a busy machine may be apart.
	defaultSlack = 2 * time.Second
	pending      = pb.TransitionOutcome_TRANSITION_OUTCOME_PENDING
	servingPhase = pb.GroupPhase_GROUP_PHASE_SERVING
)

// HistoryOptions say what else is known of a run.
type HistoryOptions struct {
	// Events are what a watch told of the groups. Without them durations are not
	// held against the time that has passed.
	Events []record.GroupEvent
	// WallJumped: the wall clock was changed, so that the stamps of transitions say
	// nothing.
	WallJumped bool
	// Slack is how far durations may be apart; 0: 2 s.
	Slack time.Duration
}

// History checks the transitions of groups against each other and against the
// faults that caused them. They may be given in any order and more than once, for
// example as watches told them and as they were read at the end: the cluster keeps
// only the newest. At the time of the last one the groups must have been at rest.
func History(transitions []*pb.Transition, faults []record.Fault, o HistoryOptions) []record.Violation {
	f := &found{check: checkHistory}
	h := &history{f: f, faults: faults, o: o, first: firstSeen(o.Events)}
	h.o.Slack = cmp.Or(o.Slack, defaultSlack)
	groups := settled(f, transitions)
	for _, name := range sorted(groups, cmp.Compare[string]) {
		h.chain(groups[name])
		for _, t := range groups[name] {
			h.complete(t)
			h.durations(t)
		}
	}
	for _, fault := range faults {
		h.caused(fault, groups)
	}
	return f.violations()
}

type history struct {
	f      *found
	faults []record.Fault
	o      HistoryOptions
	first  map[tenure]sighting
}

// settled are the transitions of each group by number, each as it was last.
func settled(f *found, transitions []*pb.Transition) map[string][]*pb.Transition {
	type number struct {
		group string
		n     uint64
	}
	last := map[number]*pb.Transition{}
	for _, t := range transitions {
		id := number{t.GetGroup(), t.GetNumber()}
		was := last[id]
		if was != nil && (was.GetEpoch() != t.GetEpoch() || was.GetTo() != t.GetTo()) {
			f.add("", "group %s: transition %d was to %s with epoch %d, and is to %s with epoch %d",
				t.GetGroup(), t.GetNumber(), was.GetTo(), was.GetEpoch(), t.GetTo(), t.GetEpoch())
		}
		if was == nil || was.GetOutcome() == pending {
			last[id] = t
		}
	}
	groups := map[string][]*pb.Transition{}
	for _, t := range last {
		groups[t.GetGroup()] = append(groups[t.GetGroup()], t)
	}
	for _, list := range groups {
		slices.SortFunc(list, func(a, b *pb.Transition) int { return cmp.Compare(a.GetNumber(), b.GetNumber()) })
	}
	return groups
}

// chain: each transition goes on from the one before.
func (h *history) chain(list []*pb.Transition) {
	for i, t := range list {
		if t.GetEpoch() <= t.GetEpochBefore() {
			h.f.add("", "%s: its epoch is not above the one before", describeTransition(t))
		}
		if i == 0 {
			continue
		}
		before := list[i-1]
		switch {
		case t.GetNumber() != before.GetNumber()+1:
			h.f.add("", "%s follows number %d: some are missing", describeTransition(t), before.GetNumber())
		case t.GetEpochBefore() != before.GetEpoch():
			h.f.add("", "%s says that epoch %d was before it, but that was %d", describeTransition(t), t.GetEpochBefore(), before.GetEpoch())
		}
	}
}

// complete: a transition says all that it has to.
func (h *history) complete(t *pb.Transition) {
	switch {
	case t.GetReason() == "":
		h.f.add("", "%s has no reason", describeTransition(t))
	case t.GetKind() == pb.TransitionKind_TRANSITION_KIND_UNSPECIFIED:
		h.f.add("", "%s has no kind", describeTransition(t))
	case t.GetOutcome() == pb.TransitionOutcome_TRANSITION_OUTCOME_UNSPECIFIED:
		h.f.add("", "%s has no outcome", describeTransition(t))
	case t.GetOutcome() == pending:
		h.f.add("", "%s never ended", describeTransition(t))
	case t.GetGrantedUnixMs() == 0 || t.GetEndedUnixMs() == 0:
		h.f.add("", "%s has no times", describeTransition(t))
	}
}

// durations: promote_ms and serve_ms are all of the time from the grant to the
// end of a transition that succeeded, and all phases together are no longer than
// the time since the fault began that caused it.
func (h *history) durations(t *pb.Transition) {
	if t.GetOutcome() == pending {
		return
	}
	wall := millis(t.GetEndedUnixMs() - t.GetGrantedUnixMs())
	after := millis(t.GetPromoteMs()) + millis(t.GetServeMs())
	switch {
	case h.o.WallJumped || t.GetGrantedUnixMs() == 0 || t.GetEndedUnixMs() == 0:
	case wall < -h.o.Slack:
		h.f.add("", "%s ended %v before it was granted", describeTransition(t), -wall)
	case t.GetOutcome() == pb.TransitionOutcome_TRANSITION_OUTCOME_SERVING && (wall-after).Abs() > h.o.Slack:
		h.f.add("", "%s took %v from the grant to its end, but its phases after the grant are %v", describeTransition(t), wall, after)
	}
	seen, ok := h.first[tenure{"", t.GetGroup(), t.GetEpoch()}]
	began, known := h.begin(t)
	if !ok || !known || seen.serving == 0 || t.GetKind() == pb.TransitionKind_TRANSITION_KIND_INITIAL {
		return
	}
	all := millis(t.GetDetectMs()) + millis(t.GetGrantMs()) + after
	if passed := seen.serving.Sub(began); all > passed+h.o.Slack {
		h.f.add("", "%s has phases of %v, but it served %v after the fault began", describeTransition(t), all, passed)
	}
}

// begin is when the oldest fault began that was going on when a transition did.
func (h *history) begin(t *pb.Transition) (clock.Instant, bool) {
	i := belongsTo(t, h.faults)
	if i < 0 {
		return 0, false
	}
	began := h.faults[i].Began
	for _, f := range h.faults[:i] {
		if goingOn(f, h.faults[i].Began) {
			began = min(began, f.Began)
		}
	}
	return began, true
}

// caused: a group that lost its primary has a transition since.
func (h *history) caused(fault record.Fault, groups map[string][]*pb.Transition) {
	for _, name := range fault.Lost {
		was, ok := fault.Epochs[name]
		if !ok {
			continue
		}
		until, bounded := h.epochAfter(fault, name)
		if !slices.ContainsFunc(groups[name], func(t *pb.Transition) bool {
			return t.GetEpoch() > was && (!bounded || t.GetEpoch() <= until)
		}) {
			h.f.add("", "group %s: round %d (%s: %s) took its primary away, and there is no transition after epoch %d",
				name, fault.Round, fault.Kind, fault.What, was)
		}
	}
}

// epochAfter is the epoch of a group when the next fault began after this one was
// over.
func (h *history) epochAfter(fault record.Fault, group string) (uint64, bool) {
	epoch, bounded := uint64(0), false
	for _, f := range h.faults {
		e, ok := f.Epochs[group]
		if ok && fault.Whole != 0 && f.Began > fault.Whole && (!bounded || e < epoch) {
			epoch, bounded = e, true
		}
	}
	return epoch, bounded
}

func millis[N int64 | uint64](n N) time.Duration {
	return time.Duration(n) * time.Millisecond //nolint:gosec // a duration in an int64
}
