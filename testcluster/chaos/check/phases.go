// SPDX-License-Identifier: Apache-2.0

package check

import (
	"slices"
	"strings"
	"time"

	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

const (
	servingOutcome = pb.TransitionOutcome_TRANSITION_OUTCOME_SERVING
	// closeSlack is how far the phases may be above what was seen from outside,
	// where the fault that began them is known to the instant.
	closeSlack = 300 * time.Millisecond
	// renewals is how often a lease is renewed in its length, at least: the last
	// sign of life, from which a loss counts, may be so much older than the fault.
	renewals = 5
)

// jumpOf is the index of the first fault from which on stamps of the wall clock
// say nothing: what a host's clock is set to it keeps.
func jumpOf(faults []record.Fault, o HistoryOptions) int {
	i := slices.IndexFunc(faults, func(f record.Fault) bool { return strings.Contains(f.Kind, "wall-clock") })
	switch {
	case i >= 0:
		return i
	case o.WallJumped:
		return -1 // also for what was before all faults
	}
	return len(faults)
}

// wallJumped reports whether the stamps of a transition say nothing.
func (h *history) wallJumped(t *pb.Transition) bool { return belongsTo(t, h.faults) >= h.jump }

// durations: promote_ms and serve_ms are all of the time from the grant to the
// end of a transition that succeeded, and all phases together are no longer than
// the time since the fault began that caused it. A failover takes time.
func (h *history) durations(t *pb.Transition) {
	if t.GetOutcome() == pending {
		return
	}
	wall := millis(t.GetEndedUnixMs() - t.GetGrantedUnixMs())
	after := millis(t.GetPromoteMs()) + millis(t.GetServeMs())
	all := millis(t.GetDetectMs()) + millis(t.GetGrantMs()) + after
	if all == 0 && t.GetKind() == pb.TransitionKind_TRANSITION_KIND_FAILOVER && t.GetOutcome() == servingOutcome {
		h.f.add("", "%s took no time at all", describeTransition(t))
	}
	switch {
	case h.wallJumped(t) || t.GetGrantedUnixMs() == 0 || t.GetEndedUnixMs() == 0:
	case wall < -h.o.Slack:
		h.f.add("", "%s ended %v before it was granted", describeTransition(t), -wall)
	case t.GetOutcome() == servingOutcome && (wall-after).Abs() > h.o.Slack:
		h.f.add("", "%s took %v from the grant to its end, but its phases after the grant are %v", describeTransition(t), wall, after)
	}
	seen, ok := h.first[tenure{"", t.GetGroup(), t.GetEpoch()}]
	began, known := h.begin(t)
	if !ok || !known || seen.serving == 0 || t.GetKind() == pb.TransitionKind_TRANSITION_KIND_INITIAL {
		return
	}
	passed := seen.serving.Sub(began)
	if all > passed+h.slack(t) {
		h.f.add("", "%s has phases of %v, but it served %v after the fault began", describeTransition(t), all, passed)
	}
}

// slack is how far the phases of a transition may be above the time that passed.
func (h *history) slack(t *pb.Transition) time.Duration {
	i := belongsTo(t, h.faults)
	f := h.faults[i]
	if (f.Kind != killModel && f.Kind != killHost) || !slices.Contains(f.Lost, t.GetGroup()) {
		return h.o.Slack
	}
	silent := h.o.Lease / renewals
	for _, before := range h.faults[:i] {
		// All is whole while leases hold; one that was in the way of renewals may have
		// ended when the lease had little left.
		if goingOn(before, f.Began.Add(-h.o.Lease)) {
			silent = h.o.Lease
		}
	}
	return min(h.o.Slack, closeSlack+silent)
}

// waited: nobody has the group of a lost host before its lease has run out. That
// is for the first transition since.
func (h *history) waited(fault record.Fault, t *pb.Transition) {
	if fault.Kind != killHost || t.GetOutcome() != servingOutcome || !strings.Contains(t.GetReason(), leaseExpired) {
		return
	}
	all := millis(t.GetDetectMs()) + millis(t.GetGrantMs()) + millis(t.GetPromoteMs()) + millis(t.GetServeMs())
	if all < h.o.Lease/2 {
		h.f.add("", "%s has phases of %v after its host was lost, which a lease of %v does not allow", describeTransition(t), all, h.o.Lease)
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

func millis[N int64 | uint64](n N) time.Duration {
	return time.Duration(n) * time.Millisecond //nolint:gosec // a duration in an int64
}
