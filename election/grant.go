// SPDX-License-Identifier: Apache-2.0

package election

import (
	"time"

	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// LeaderView is what the leader knows when it asks whether a group may be
// granted. All of it must have been read after the barrier.
type LeaderView struct {
	// BarrierApplied: an entry of this leader's own term has been applied here,
	// so that Group reflects everything committed before the term. Without it the
	// leader would decide on the past. (That alone would grant nothing twice: the
	// Grant's compare-and-set is refused then. Neither is to be relied on alone.)
	BarrierApplied bool
	Phase          pb.GroupPhase
	TTL            time.Duration
	// RenewStoredAt is not earlier than the time at which this node first stored
	// the entry Group.last_renew; after a restart or a snapshot install it is the
	// time of that. Never earlier, or a holder is overtaken: if it is not known,
	// use now.
	RenewStoredAt clock.Instant
}

// LeaseWait returns how long the leader has to wait from now until it may
// propose a Grant to somebody else: 0 if it may now. ok is false if waiting does
// not help, because the barrier is missing. The Grant must carry the epoch and
// last_renew that the view was read with.
func LeaseWait(v LeaderView, now clock.Instant, slack time.Duration) (wait time.Duration, ok bool) {
	if !v.BarrierApplied {
		return 0, false
	}
	if v.Phase == pb.GroupPhase_GROUP_PHASE_VACANT {
		return 0, true
	}
	end := v.RenewStoredAt.Add(WaiterTTL(v.TTL) + slack)
	// Strictly later: at end itself a holder on a slow clock may still act.
	if now > end {
		return 0, true
	}
	return end.Sub(now) + 1, true
}
