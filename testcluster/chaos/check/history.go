// SPDX-License-Identifier: Apache-2.0

package check

import (
	"cmp"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

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
	// WallJumped: the wall clock was changed by something that is not among the
	// faults, so that the stamps of transitions say nothing. Where a fault changed it
	// they say nothing from that fault on, whether this is set or not.
	WallJumped bool
	// Slack is how far durations may be apart; 0: 2 s.
	Slack time.Duration
	// Lease is that of the profile. Without it a lost host need not have been waited
	// for.
	Lease time.Duration
}

// History checks the transitions of groups against each other and against the
// faults that caused them. They may be given in any order and more than once, for
// example as watches told them and as they were read at the end: the cluster keeps
// only the newest. At the time of the last one the groups must have been at rest.
func History(transitions []*pb.Transition, faults []record.Fault, o HistoryOptions) []record.Violation {
	f := &found{check: checkHistory}
	h := &history{f: f, faults: faults, o: o, first: firstSeen(o.Events), jump: jumpOf(faults, o)}
	h.o.Slack = cmp.Or(o.Slack, defaultSlack)
	groups := settled(f, transitions)
	h.told(groups)
	for _, name := range sorted(groups, cmp.Compare[string]) {
		h.chain(groups[name])
		for _, t := range groups[name] {
			h.complete(t)
			h.durations(t)
		}
	}
	for _, fault := range faults {
		h.caused(fault, groups)
		h.fits(fault, groups)
	}
	return f.violations()
}

type history struct {
	f      *found
	faults []record.Fault
	o      HistoryOptions
	first  map[tenure]sighting
	// jump is the index of the fault from which on wall clocks are off.
	jump int
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
		sameTransition(f, was, t)
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

// sameTransition: a transition stays as it was granted, and once it has ended it
// stays as it is.
func sameTransition(f *found, was, is *pb.Transition) {
	switch {
	case was == nil || is == nil:
	case was.GetEpoch() != is.GetEpoch() || was.GetTo() != is.GetTo():
		f.add("", "group %s: transition %d was to %s with epoch %d, and is to %s with epoch %d",
			is.GetGroup(), is.GetNumber(), was.GetTo(), was.GetEpoch(), is.GetTo(), is.GetEpoch())
	case was.GetOutcome() == pending || is.GetOutcome() == pending:
		if a, b := asGranted(was), asGranted(is); !proto.Equal(a, b) {
			f.add("", "%s was told in two ways: {%v} and {%v}", describeTransition(is), a, b)
		}
	case !proto.Equal(was, is):
		f.add("", "%s was told in two ways: {%v} and {%v}", describeTransition(is), was, is)
	}
}

// asGranted is a transition without what its end adds.
func asGranted(t *pb.Transition) *pb.Transition {
	t = proto.CloneOf(t)
	t.Outcome, t.EndedUnixMs, t.PromoteMs, t.ServeMs, t.Detail = pending, 0, 0, 0, ""
	return t
}

// told: watches told of the transitions as they are. Those that are not kept any
// more are compared with nothing.
func (h *history) told(groups map[string][]*pb.Transition) {
	kept := map[string]map[uint64]*pb.Transition{}
	for name, list := range groups {
		kept[name] = map[uint64]*pb.Transition{}
		for _, t := range list {
			kept[name][t.GetNumber()] = t
		}
	}
	for _, e := range h.o.Events {
		if t := e.Transition; t != nil {
			sameTransition(h.f, t, kept[t.GetGroup()][t.GetNumber()])
		}
	}
}

// chain: each transition goes on from the one before.
func (h *history) chain(list []*pb.Transition) {
	numbers := map[uint64]uint64{}
	for i, t := range list {
		if t.GetEpoch() <= t.GetEpochBefore() {
			h.f.add("", "%s: its epoch is not above the one before", describeTransition(t))
		}
		if n, ok := numbers[t.GetEpoch()]; ok {
			h.f.add("", "%s has the epoch of transition %d", describeTransition(t), n)
		}
		numbers[t.GetEpoch()] = t.GetNumber()
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

// caused: a group that lost its primary has a transition since.
func (h *history) caused(fault record.Fault, groups map[string][]*pb.Transition) {
	for _, name := range fault.Lost {
		if was, ok := fault.Epochs[name]; ok && h.firstAfter(fault, name, groups[name]) == nil {
			h.f.add("", "group %s: round %d (%s: %s) took its primary away, and there is no transition after epoch %d",
				name, fault.Round, fault.Kind, fault.What, was)
		}
	}
}

// firstAfter is the first transition of a group, whose transitions are list, after
// a fault began and before the next one after it; nil if there is none.
func (h *history) firstAfter(fault record.Fault, name string, list []*pb.Transition) *pb.Transition {
	was, ok := fault.Epochs[name]
	if !ok {
		return nil
	}
	until, bounded := h.epochAfter(fault, name)
	i := slices.IndexFunc(list, func(t *pb.Transition) bool {
		return t.GetEpoch() > was && (!bounded || t.GetEpoch() <= until)
	})
	if i < 0 {
		return nil
	}
	return list[i]
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
