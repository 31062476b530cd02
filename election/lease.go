// SPDX-License-Identifier: Apache-2.0

package election

import (
	"time"

	"github.com/hastate/hastate/internal/clock"
)

// Lease is what a holder knows of its own lease. The zero value is a lease that
// was never valid.
type Lease struct {
	group string
	// epoch never changes during the life of a Lease: a new grant makes a new
	// Lease.
	epoch uint64
	ttl   time.Duration
	// q is the newest reading taken before a grant or renewal that committed.
	q clock.Instant
	// over is set once and never cleared: a holder that has fenced itself never
	// acts under this epoch again.
	over bool
}

// NewLease is the lease of a grant that has committed. q must have been read
// before the candidate answered the nomination that the grant carries.
func NewLease(group string, epoch uint64, ttl time.Duration, q clock.Instant) Lease {
	return Lease{group: group, epoch: epoch, ttl: ttl, q: q}
}

// Renewed is the lease after a renewal of epoch has committed; q must have been
// read before that renewal was sent. A renewal of another epoch, an older one,
// or of a lease that is over changes nothing.
func (l Lease) Renewed(epoch uint64, q clock.Instant) Lease {
	if l.over || epoch != l.epoch || q <= l.q {
		return l
	}
	l.q = q
	return l
}

// Ended is the lease after its holder has fenced itself.
func (l Lease) Ended() Lease {
	l.over = true
	return l
}

// Group is the group that the lease is of.
func (l Lease) Group() string { return l.group }

// Epoch is the fencing token.
func (l Lease) Epoch() uint64 { return l.epoch }

// TTL is the length of the lease.
func (l Lease) TTL() time.Duration { return l.ttl }

// Over reports whether the holder has ended the lease itself.
func (l Lease) Over() bool { return l.over }

// ValidUntil is the first instant at which the holder must not act any more.
func (l Lease) ValidUntil() clock.Instant { return l.q.Add(HolderTTL(l.ttl)) }

// ValidAt reports whether the holder may act at now. It is to be asked again
// before every step that others can see.
func (l Lease) ValidAt(now clock.Instant) bool {
	return l.epoch != 0 && !l.over && now < l.ValidUntil()
}

// FenceAt is when the holder has to begin to fence itself if no renewal
// commits, so that its instance is silent when the lease ends.
func (l Lease) FenceAt(margin time.Duration) clock.Instant {
	return l.ValidUntil().Add(-margin)
}

// HolderTTL is how long a holder counts a lease of length ttl on its own clock,
// which may run slow by rho: ttl(1-rho), rounded down.
func HolderTTL(ttl time.Duration) time.Duration {
	return ttl - (ttl+RhoInverse-1)/RhoInverse
}

// WaiterTTL is how long a leader counts it on its own clock, which may run fast
// by rho: ttl(1+rho), rounded up.
func WaiterTTL(ttl time.Duration) time.Duration {
	return ttl + (ttl+RhoInverse-1)/RhoInverse
}
