// SPDX-License-Identifier: Apache-2.0

package mutant

import "time"

// leaseMutants break the leader's side of "one primary".
var leaseMutants = []Mutant{
	{
		Name: "no-lease-wait",
		What: "The leader does not wait until a lease has run out: it grants to another while the holder may still act.",
		Changes: []Change{{
			File: "election/grant.go",
			Old: `	// Strictly later: at end itself a holder on a slow clock may still act.
	if now > end {
		return 0, true
	}
	return end.Sub(now) + 1, true`,
			New: `	_, _ = now, end
	return 0, true`,
		}},
		Guarantee: "G1", Check: OnePrimary, Faults: "kill-model", Limit: time.Minute,
		How:      "Any fault or none: a standby is granted while the primary renews. Two leases overlap, and the primary moves without a cause.",
		UnitTest: "./election TestLeaseWait",
	},
	{
		Name: "half-lease-wait",
		What: "The leader waits for half the lease: it grants to another while a holder that is cut off may still act.",
		Changes: []Change{{
			File: "election/grant.go",
			Old:  `	end := v.RenewStoredAt.Add(WaiterTTL(v.TTL) + slack)`,
			New:  `	end := v.RenewStoredAt.Add(WaiterTTL(v.TTL)/2 + slack)`,
		}},
		Guarantee: "G1", Check: OnePrimary, Faults: "cut-primary", Limit: 2 * time.Minute,
		How:      "cut-primary: the old holder believes in its lease to its end, less the fence margin; the new lease begins before.",
		UnitTest: "./election TestLeaseWait",
	},
	{
		Name: "grant-without-compare",
		What: "A Grant is applied without its compare-and-set: one that was decided on an older state takes the lease from whoever was granted or has renewed meanwhile.",
		Changes: []Change{{
			File: "fsm/leases.go",
			Old: `	case g.GetEpoch() != c.GetIfEpoch():
		return groupConflict(g, "the group has another epoch")
	case g.GetLastRenew() != c.GetIfLastRenew():
		return groupConflict(g, "the lease was renewed")
	}
	t := &pb.Transition{`,
			New: `	}
	t := &pb.Transition{`,
		}},
		Guarantee: "G1", Check: OnePrimary, Faults: "late-grant", Limit: 3 * time.Minute,
		How:      "late-grant: the leader loses the primary beside it, decides, and its Grant waits for a CPU until another leader has granted to another candidate and it leads again. Both leases are valid until the second holder hears that its epoch is over.",
		UnitTest: "./fsm TestGrantComparesEpochAndLastRenew",
	},
	{
		Name:       "clocks-5-percent-off",
		What:       "Nothing is removed: clocks that differ by more than leases allow for, which may bring two primaries. The checks must not be blind to it.",
		Assumption: "The rates of any two clocks differ by no more than 1 in 100, each against the true time.",
		Guarantee:  "G1", Check: OnePrimary, Faults: "clock-rate-5", Limit: 2 * time.Minute,
		How: "The primary's clock is 5 % slow and all others are 5 % fast: its node is killed, and the lease that its model server counts on ends later than the leader waits.",
	},
	{
		Name: "handover-without-fence",
		What: "A switchover is committed without asking the holder to fence itself: it serves on until it hears of the new epoch.",
		Changes: []Change{{
			File: "internal/coordinate/switchover.go",
			Old: `	if err := c.fence(ctx, o, g, reason); err != nil {
		return nil, err
	}
	epoch, to, err`,
			New: `	if !o.commit() {
		return nil, context.Canceled
	}
	epoch, to, err`,
		}},
		Guarantee: "G8", Check: OnePrimary, Faults: "switchover", Limit: 2 * time.Minute,
		How:      "Each switchover: the target's lease begins before the old holder ends its own, which it does when it applies the entry; the old model server ends its requests only then.",
		UnitTest: "./internal/coordinate TestSwitchoverWithAnUnreachableHolder",
	},
}

// holderMutants break the holder's side of it.
var holderMutants = []Mutant{
	{
		Name: "lease-renewed-when-sent",
		What: "The holder counts a renewal, and tells its instance of it, when it sends it, not when it has committed: cut off from the log it never lets go.",
		Changes: []Change{{
			File: "internal/holder/machine.go",
			Old:  `		m.do(actRenew{epoch: m.lease.Epoch(), q: now, timeout: h.call})`,
			New: `		m.lease = m.lease.Renewed(m.lease.Epoch(), now)
		if h.counted() {
			h.touchAt = min(h.touchAt, now)
		}
		m.do(actRenew{epoch: m.lease.Epoch(), q: now, timeout: h.call})`,
		}},
		Guarantee: "G1", Check: OnePrimary, Faults: "cut-primary", Limit: 2 * time.Minute,
		How:      "cut-primary for longer than the lease: the old holder's lease goes on while another is granted.",
		UnitTest: "./internal/holder TestMachineLosesLease",
	},
	{
		Name: "lease-never-ends",
		What: "The holder does not fence itself at the end of its lease: its instance serves on while another is primary.",
		Changes: []Change{
			{
				File: "internal/holder/machine.go",
				Old: `	if m.held() && now >= m.lease.FenceAt(m.hold.margin) {
		m.abort(now, "the lease could not be renewed in time", true)
	}
`,
				New: ``,
			},
			{
				File: "internal/holder/machine.go",
				Old: `		at = m.lease.FenceAt(h.margin)
		if h.renewals < maxRenewals {`,
				New: `		if h.renewals < maxRenewals {`,
			},
			{
				File: "internal/holder/holder.go",
				Old:  `	return s.Role.Epoch, s.Role.Kind == RolePrimary && h.cfg.Clock.Now() < s.ValidUntil`,
				New:  `	return s.Role.Epoch, s.Role.Kind == RolePrimary`,
			},
			{ // which ends the lease of an instance that counts it a little later
				File: "internal/holder/machine.go",
				Old:  `	if now >= h.countsUntil {`,
				New:  `	if false {`,
			},
		},
		Guarantee: "G1", Check: OnePrimary, Faults: "cut-uncounted", Limit: 2 * time.Minute,
		How:      "cut-primary: the model server on the side of the old primary says that it serves under the old epoch after one of the new epoch has served. The load must reach it there. A server that counts the lease itself hides this.",
		UnitTest: "./internal/holder TestMachineLosesLease",
	},
	{
		Name: "lease-kept-over-restart",
		What: "A node that was restarted takes up the lease that its state says it holds, and counts it from now.",
		Changes: []Change{{
			File: "internal/holder/grant.go",
			Old: `	if i < 0 || g.GetNomination() == 0 {
		// Granted to a former process of this node, or forgotten. It is never acted
		// under: silence whatever the instance still does and give it back.
		m.lease = election.NewLease(m.group, g.GetEpoch(), ttl, 0)
		m.hold.touched, m.hold.promoteEnd = true, now
		m.abort(now, "the node was restarted", true)
		return
	}
	c := m.consents[i]`,
			New: `	c := consent{number: g.GetNomination(), q: now}
	if i >= 0 {
		c = m.consents[i]
	}`,
		}},
		Guarantee: "G1", Check: OnePrimary, Faults: "kill-node,restart-node,crash-loop", Limit: 3 * time.Minute,
		How:      "The primary's node is killed and started again when another has been granted: its state file is as old as the last flush and names it as the holder, so it has a lease until it hears more. Kills for around and above the lease.",
		UnitTest: "./internal/holder TestHolderGivesBackWhatItHeldBeforeARestart",
	},
	{
		Name: "lease-from-receipt",
		What: "The holder counts its lease from when it hears of the commit, not from before it asked: a late answer makes the lease longer than the leader waits.",
		Changes: []Change{
			{
				File: "internal/holder/grant.go",
				Old:  `		m.lease = m.lease.Renewed(e.epoch, e.q)`,
				New:  `		m.lease = m.lease.Renewed(e.epoch, now)`,
			},
			{
				File: "internal/holder/grant.go",
				Old:  `	m.lease = election.NewLease(m.group, g.GetEpoch(), ttl, c.q)`,
				New:  `	m.lease = election.NewLease(m.group, g.GetEpoch(), ttl, now)`,
			},
		},
		Guarantee: "G1", Check: OnePrimary, Faults: "late-answers-then-cut", Limit: 2 * time.Minute,
		How:      "late-answers-then-cut: all answers to the holder are late by a little less than a third of the lease, which is the latest that it uses, and by more than the fence margin, which would hide it. Then its renewals are lost, the answers under way are not: its lease ends as much later than the leader waits.",
		UnitTest: "./internal/holder TestMachineGrants",
	},
	{
		Name: "promote-without-reading",
		What: "A Promote does not say what the server's clock showed: the server counts its lease from when the order comes, however late.",
		Changes: []Change{{
			File: "internal/holder/orders.go",
			Old:  `		reading, age, err := l.readClock(ctx, a)`,
			New:  `		reading, age, err := uint64(0), time.Duration(0), ctx.Err()`,
		}},
		Guarantee: "G1", Check: OnePrimary, Faults: "late-promote", Limit: 3 * time.Minute,
		How:      "late-promote: the model server is stopped with a renewal in its socket and its node is killed. When it goes on, another has been granted, and it serves for a lease under the old epoch.",
		UnitTest: "./internal/holder TestHolderReadsTheServersClockFirst",
	},
	{
		Name: "refusal-is-an-end",
		What: "A node that was started while its model server shuts down takes the refused connections for the server's end, and releases the lease.",
		Changes: []Change{
			{
				File: "instance/grpc_watch.go",
				Old: `	if g.witnessed {
		return event{kind: gone,`,
				New: `	if g.witnessed || !g.witnessed {
		return event{kind: gone,`,
			},
			{
				File: "instance/grpc.go",
				Old:  `	if !witnessed {`,
				New:  `	if !witnessed && witnessed {`,
			},
		},
		Guarantee: "G1", Check: OnePrimary, Faults: "model-stops-late", Limit: 3 * time.Minute,
		How:      "model-stops-late: the server works on for the rest of its lease over connections that clients keep open, while its restarted node gives the lease away.",
		UnitTest: "./instance TestGRPC_ShuttingDownIsNotGone",
	},
	{
		Name: "release-before-silent",
		What: "The holder releases the group without waiting until its instance is silent: the next primary serves while the former one still does.",
		Changes: []Change{{
			File: "internal/holder/fence.go",
			Old:  `	if !h.touched || m.gone(now) {`,
			New:  `	if h.touched || m.gone(now) || !h.touched {`,
		}},
		Guarantee: "G1", Check: OnePrimary, Faults: "failover-force,cut-primary", Limit: 3 * time.Minute,
		How:      "failover-force: the former primary's model server was never told, and says that it serves under the old epoch after one of the new epoch has served. The load must still ask it.",
		UnitTest: "./internal/holder TestMachineLosesLease",
	},
}

// fencingMutants let an older epoch write.
var fencingMutants = []Mutant{{
	Name: "stale-epoch-accepted",
	What: "A session write under an older epoch is applied: a former primary that does not know better changes what the new one relies on.",
	Changes: []Change{{
		File: "fsm/sessions.go",
		Old: `	case g.GetEpoch() != epoch:
		return fenced(g, "the epoch is not the newest of the group")
`,
		New: ``,
	}},
	Guarantee: "G2", Check: OnePrimary, Faults: "kill-model,switchover", Limit: time.Minute,
	How:      "After any failover or switchover: a write with the epoch of before is acknowledged.",
	UnitTest: "./fsm TestSessionEpochCheck",
}}
