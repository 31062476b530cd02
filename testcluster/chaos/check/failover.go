// SPDX-License-Identifier: Apache-2.0

package check

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

// operator is who detects what an operator orders.
const operator = "operator"

// settleTime is how long after the cluster was found whole the news of a
// transition may still arrive that had begun before.
const settleTime = time.Second

// FalseFailovers finds the transitions that had no cause: neither an operator nor
// a fault that may move a primary was behind them. The first grant of a group is
// none. A fault that spares a group moves it no more than a harmless one.
//
// faults are in order of Began. A transition began while the fault was going on
// that the epochs tell; the wall clock is not asked. If events are given, a
// transition that they showed later than a second after everything was whole
// again, and that was detected after that, had no cause either.
func FalseFailovers(transitions []*pb.Transition, faults []record.Fault, events []record.GroupEvent) []record.Violation {
	f := &found{check: checkFalseFailover}
	seen := firstSeen(events)
	groups := settled(&found{}, transitions)
	for _, name := range sorted(groups, cmp.Compare[string]) {
		for _, t := range groups[name] {
			if t.GetKind() == pb.TransitionKind_TRANSITION_KIND_INITIAL || ordered(t) {
				continue
			}
			if why := causeless(t, faults, seen[tenure{"", name, t.GetEpoch()}]); why != "" {
				f.add("", "%s: %s", describeTransition(t), why)
			}
		}
	}
	return f.violations()
}

// ordered reports whether an operator wanted a transition.
func ordered(t *pb.Transition) bool {
	switch t.GetKind() {
	case pb.TransitionKind_TRANSITION_KIND_SWITCHOVER, pb.TransitionKind_TRANSITION_KIND_FORCED:
		return true
	}
	return t.GetDetectedBy() == operator || strings.HasPrefix(t.GetReason(), operator)
}

// causeless says why a transition had no cause; empty if it had one.
func causeless(t *pb.Transition, faults []record.Fault, seen sighting) string {
	i := belongsTo(t, faults)
	if i < 0 {
		return "no fault had begun"
	}
	// All that were going on when the last one began may have caused it.
	over := clock.Instant(0)
	for j := range i + 1 {
		f := faults[j]
		if f.Harmless || slices.Contains(f.Spared, t.GetGroup()) || j < i && !goingOn(f, faults[i].Began) {
			continue
		}
		if f.Whole == 0 {
			return ""
		}
		over = max(over, f.Whole)
	}
	if over == 0 && !faults[i].Harmless {
		return fmt.Sprintf("round %d (%s: %s) cannot have touched that group", faults[i].Round, faults[i].Kind, faults[i].What)
	}
	if over == 0 {
		return fmt.Sprintf("round %d (%s: %s) must not move a primary", faults[i].Round, faults[i].Kind, faults[i].What)
	}
	if was, ok := faults[i].WholeEpochs[t.GetGroup()]; ok && t.GetEpoch() <= was {
		return "" // however late the news of it came
	}
	if seen.granted == 0 {
		return ""
	}
	began := seen.granted.Add(-millis(t.GetDetectMs()) - millis(t.GetGrantMs()))
	if late := began.Sub(over); late > settleTime {
		return fmt.Sprintf("it began %v after everything was whole again", late)
	}
	return ""
}

// goingOn reports whether a fault was not over at an instant.
func goingOn(f record.Fault, at clock.Instant) bool { return f.Whole == 0 || f.Whole >= at }

// belongsTo is the index of the last fault that began before a transition, -1 if
// there was none. A fault that does not know the epoch of the group tells nothing.
func belongsTo(t *pb.Transition, faults []record.Fault) int {
	last := -1
	for i, f := range faults {
		if was, ok := f.Epochs[t.GetGroup()]; ok && t.GetEpoch() > was {
			last = i
		}
	}
	return last
}

// sighting is when a watch first told of an epoch, and that it serves; 0: never.
type sighting struct{ granted, serving clock.Instant }

func firstSeen(events []record.GroupEvent) map[tenure]sighting {
	all := map[tenure]sighting{}
	byTime := slices.Clone(events)
	slices.SortStableFunc(byTime, func(a, b record.GroupEvent) int { return cmp.Compare(a.At, b.At) })
	for _, e := range byTime {
		t := tenure{"", e.Group.GetName(), e.Group.GetEpoch()}
		s := all[t]
		if s.granted == 0 {
			s.granted = e.At
		}
		if s.serving == 0 && e.Group.GetPhase() == servingPhase {
			s.serving = e.At
		}
		all[t] = s
	}
	return all
}

func describeTransition(t *pb.Transition) string {
	kind := strings.ToLower(strings.TrimPrefix(t.GetKind().String(), "TRANSITION_KIND_"))
	return fmt.Sprintf("group %s: transition %d (%s from %q to %q, epoch %d, %q by %q)",
		t.GetGroup(), t.GetNumber(), kind, t.GetFrom(), t.GetTo(), t.GetEpoch(), t.GetReason(), t.GetDetectedBy())
}
