// SPDX-License-Identifier: Apache-2.0

package election

import (
	"errors"
	"fmt"
	"time"
)

// Profile is one consistent set of timeouts. All durations are on the wall of
// one machine; only their rate matters.
type Profile struct {
	Name string
	// Heartbeat: a follower that has not heard from the leader for this long
	// stands for election. Also the election timeout.
	Heartbeat time.Duration
	// LeaderLease: a leader that has not heard from a majority for this long
	// steps down. At most Heartbeat.
	LeaderLease time.Duration
	// Commit: longest time until an idle follower learns of a commit.
	Commit time.Duration
	// Lease is the length of a primary's lease.
	Lease time.Duration
	// Renew is the interval between renewals.
	Renew time.Duration
	// FenceMargin is how long before the end of its lease a holder begins to
	// fence itself, so that the instance is silent when the lease ends.
	FenceMargin time.Duration
	// Stall: a log write or an apply that takes longer than this ends the
	// process, so that another node can lead (G9).
	Stall time.Duration
	// GrantSlack is added to the leader's wait for a lease; it covers rounding
	// and timer granularity, not clock rate.
	GrantSlack time.Duration
}

// Rho is the bound on the error of a machine's clock rate that all leases
// assume: 1 in RhoInverse.
const RhoInverse = 100

// The profiles. Lan is the default.
var (
	Fast = Profile{
		Name: "fast", Heartbeat: 150 * time.Millisecond, LeaderLease: 120 * time.Millisecond,
		Commit: 5 * time.Millisecond, Lease: 600 * time.Millisecond, Renew: 100 * time.Millisecond,
		FenceMargin: 75 * time.Millisecond, Stall: time.Second, GrantSlack: 5 * time.Millisecond,
	}
	Lan = Profile{
		Name: "lan", Heartbeat: 300 * time.Millisecond, LeaderLease: 250 * time.Millisecond,
		Commit: 10 * time.Millisecond, Lease: 1200 * time.Millisecond, Renew: 200 * time.Millisecond,
		FenceMargin: 150 * time.Millisecond, Stall: 2 * time.Second, GrantSlack: 5 * time.Millisecond,
	}
	Wan = Profile{
		Name: "wan", Heartbeat: time.Second, LeaderLease: 800 * time.Millisecond,
		Commit: 50 * time.Millisecond, Lease: 4 * time.Second, Renew: 800 * time.Millisecond,
		FenceMargin: 500 * time.Millisecond, Stall: 5 * time.Second, GrantSlack: 10 * time.Millisecond,
	}
)

// Profiles are the named profiles.
func Profiles() []Profile { return []Profile{Fast, Lan, Wan} }

// ProfileByName finds a named profile.
func ProfileByName(name string) (Profile, error) {
	for _, p := range Profiles() {
		if p.Name == name {
			return p, nil
		}
	}
	return Profile{}, fmt.Errorf("profile %q is not known: use fast, lan or wan", name)
}

// Validate checks the relations between the timeouts and says both numbers of
// each that does not hold.
func (p Profile) Validate() error {
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	need(p.Heartbeat >= 50*time.Millisecond, "heartbeat %v must be at least 50ms", p.Heartbeat)
	need(p.LeaderLease > 0 && p.LeaderLease <= p.Heartbeat, "leader lease %v must be at most the heartbeat %v", p.LeaderLease, p.Heartbeat)
	need(p.Commit >= time.Millisecond && 4*p.Commit <= p.Heartbeat, "commit %v must be at least 1ms and at most a quarter of the heartbeat %v", p.Commit, p.Heartbeat)
	need(p.Renew > 0 && 3*p.Renew <= p.Lease, "renew %v must be at most a third of the lease %v", p.Renew, p.Lease)
	need(p.FenceMargin > 0 && 4*p.FenceMargin <= p.Lease, "fence margin %v must be at most a quarter of the lease %v", p.FenceMargin, p.Lease)
	// An election with an early candidacy takes about 1 heartbeat, after a split
	// vote 2; the lease must outlast that and one renewal (DESIGN section 3).
	need(p.Lease >= 2*p.Heartbeat+p.Renew+p.FenceMargin, "lease %v must be at least two heartbeats %v + renew %v + fence margin %v, or an election makes healthy primaries fence themselves", p.Lease, p.Heartbeat, p.Renew, p.FenceMargin)
	need(p.Stall >= p.Heartbeat, "stall %v must be at least the heartbeat %v", p.Stall, p.Heartbeat)
	need(p.Lease >= 100*time.Millisecond && p.Lease <= time.Minute, "lease %v must be between 100ms and 1m", p.Lease)
	need(p.GrantSlack >= time.Millisecond, "grant slack %v must be at least 1ms", p.GrantSlack)
	return errors.Join(errs...)
}
