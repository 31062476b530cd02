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
		FenceMargin: 75 * time.Millisecond, Stall: 3 * time.Second, GrantSlack: 5 * time.Millisecond,
	}
	Lan = Profile{
		Name: "lan", Heartbeat: 300 * time.Millisecond, LeaderLease: 250 * time.Millisecond,
		Commit: 10 * time.Millisecond, Lease: 1200 * time.Millisecond, Renew: 200 * time.Millisecond,
		FenceMargin: 150 * time.Millisecond, Stall: 5 * time.Second, GrantSlack: 5 * time.Millisecond,
	}
	Wan = Profile{
		Name: "wan", Heartbeat: time.Second, LeaderLease: 800 * time.Millisecond,
		Commit: 50 * time.Millisecond, Lease: 4 * time.Second, Renew: 800 * time.Millisecond,
		FenceMargin: 500 * time.Millisecond, Stall: 10 * time.Second, GrantSlack: 10 * time.Millisecond,
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

// longest is the longest duration that any field may have; sums and multiples
// of such do not overflow.
const longest = time.Hour

// Validate checks the relations between the timeouts and says both numbers of
// each that does not hold.
func (p Profile) Validate() error {
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	for _, f := range p.fields() {
		need(f.value > 0 && f.value <= longest, "%s %v must be more than 0 and at most %v", f.name, f.value, longest)
	}
	if errs != nil {
		return errors.Join(errs...)
	}
	need(p.Heartbeat >= 50*time.Millisecond, "heartbeat %v must be at least %v", p.Heartbeat, 50*time.Millisecond)
	// Raft refuses less than 5 ms, and more than its heartbeat timeout.
	need(p.LeaderLease >= 5*time.Millisecond, "leader lease %v must be at least %v", p.LeaderLease, 5*time.Millisecond)
	need(p.LeaderLease <= p.Heartbeat, "leader lease %v must be at most the heartbeat %v", p.LeaderLease, p.Heartbeat)
	need(p.Commit >= time.Millisecond, "commit %v must be at least %v", p.Commit, time.Millisecond)
	need(4*p.Commit <= p.Heartbeat, "commit %v must be at most a quarter of the heartbeat %v", p.Commit, p.Heartbeat)
	need(p.Lease >= 100*time.Millisecond, "lease %v must be at least %v", p.Lease, 100*time.Millisecond)
	need(p.Lease <= time.Minute, "lease %v must be at most %v", p.Lease, time.Minute)
	need(p.Renew >= 10*time.Millisecond, "renew %v must be at least %v", p.Renew, 10*time.Millisecond)
	need(3*p.Renew <= p.Lease, "renew %v must be at most a third of the lease %v", p.Renew, p.Lease)
	need(4*p.FenceMargin <= p.Lease, "fence margin %v must be at most a quarter of the lease %v", p.FenceMargin, p.Lease)
	// From its last renewal a holder has the lease, less the clock's error and the
	// margin, to get the next one committed. An election with an early candidacy
	// takes about 1 heartbeat, after a split vote 2 (DESIGN section 3).
	outage := 2*p.Heartbeat + p.Renew + p.FenceMargin
	need(HolderTTL(p.Lease) >= outage, "lease %v, less 1 in %d for the clocks, must be at least two heartbeats %v + renew %v + fence margin %v = %v, or an election makes healthy primaries fence themselves",
		p.Lease, RhoInverse, p.Heartbeat, p.Renew, p.FenceMargin, outage)
	need(p.Stall >= p.Heartbeat, "stall %v must be at least the heartbeat %v", p.Stall, p.Heartbeat)
	need(p.GrantSlack >= time.Millisecond, "grant slack %v must be at least %v", p.GrantSlack, time.Millisecond)
	need(p.GrantSlack <= p.Lease, "grant slack %v must be at most the lease %v", p.GrantSlack, p.Lease)
	return errors.Join(errs...)
}

type field struct {
	name  string
	value time.Duration
}

func (p Profile) fields() []field {
	return []field{
		{"heartbeat", p.Heartbeat},
		{"leader lease", p.LeaderLease},
		{"commit", p.Commit},
		{"lease", p.Lease},
		{"renew", p.Renew},
		{"fence margin", p.FenceMargin},
		{"stall", p.Stall},
		{"grant slack", p.GrantSlack},
	}
}
