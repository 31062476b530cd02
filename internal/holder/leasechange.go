// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"github.com/hastate/hastate/internal/clock"
)

// LeaseChange is told when a lease begins, when it is renewed, and when the
// instance has been confirmed silent after it. The time in which a holder counts
// its lease as valid, and in which its instance may act, is from From to Until of
// the last one of an epoch, whatever the phase: Promote is an act too.
type LeaseChange struct {
	Group string
	Epoch uint64
	// From is when the committed grant was taken up, by the holder's clock: the
	// first instant at which it acts under the epoch. 0 in an Ended that is about an
	// epoch of a former process of this node.
	From clock.Instant
	// Until is the end of the lease if nothing more is renewed. With Ended it is an
	// instant, no earlier than the confirmation, at which the instance was silent,
	// which may be later than the end of the lease.
	Until clock.Instant
	Ended bool
}

// tellHeld tells of a lease that has begun or was renewed.
func (l *loop) tellHeld() {
	m := l.m
	if !m.held() {
		return
	}
	c := LeaseChange{Group: l.cfg.Group, Epoch: m.lease.Epoch(), From: m.hold.took, Until: m.lease.ValidUntil()}
	if c != l.told {
		l.told = c
		l.cfg.OnLease(c)
	}
}

// tellEnded tells of a lease after which the instance was silenced. An abort alone
// is not told: until the instance is silent it may act for as long as the lease
// would have lasted.
func (l *loop) tellEnded(now clock.Instant) {
	epoch := l.m.silent
	if epoch == l.silent {
		return
	}
	l.silent = epoch
	c := LeaseChange{Group: l.cfg.Group, Epoch: epoch, Until: now, Ended: true}
	if l.told.Epoch == epoch {
		c.From = l.told.From
	}
	l.cfg.OnLease(c)
}
