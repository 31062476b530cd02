// SPDX-License-Identifier: Apache-2.0

package election

import (
	"time"

	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// The model: three nodes A, B and C with a Raft log, and an instance beside each.
//
// Time. All nodes live through the same ticks, their clocks advance by 99, 100 or
// 101 ms a tick. A state holds ages in ticks, which stop at
// config.stale: by then no
// lease is valid and no leader waits, whatever the clock. So the state space is
// finite without a bound on time. A pause (of a process, a machine, a network) is
// a run in which the others act and time passes while one does not; every action
// may be late or never come.
//
// Raft is abstract but not assumed safe: an election takes a majority of votes by
// the up-to-date rule and commits by count of stores of the leader's own term; that
// a new leader has all that is committed is checked at every election.
//
// The decisions are the real ones: Decide with LeaseWait, NewLease, Renewed,
// Ended, ValidAt. The state machine's rules are a copy (groupRecord.apply).
//
// A holder hears of a commit at any time after it, from whomever, so that it counts
// on it as early as can be. statespace_tidy_test.go says what is left out because it
// makes no difference.
const (
	nodes    = 3
	logBound = 6
	slots    = 2
)

// entry is one log entry, packed; what a kind does not use is 0.
type entry struct {
	kind, term, node uint8
	// epoch and renew are what the entry compares with.
	epoch, renew uint8
	// ref: for a renewal 1 + the slot in which its holder keeps q; for a grant 1 if
	// its candidate still keeps the consent for it. 0: nobody waits for it any more.
	ref uint8
}

const (
	entryNone uint8 = iota
	entryNoop
	entryGrant
	entryRenew
	entryRelease
	entryHandover
)

// node is one node: Raft, the holder beside the instance, the leader's notes.
type node struct {
	log [logBound]entry
	// age of the entry since this node stored it, in ticks. Only that of an entry
	// that may be asked for is kept.
	age [logBound]uint8
	// n entries are in the log; a leader has applied commit of them. What a follower
	// has applied decides nothing: commit is 1, as after a restart.
	n, commit, term uint8
	leads           bool
	// The lease: epoch 0 is none. q is the age of its reading.
	epoch, q uint8
	over     bool
	// slot: a renewal under way; 0 is free.
	slot [slots]uint8
	// consent: 1 + age of the reading before the newest nomination was answered, 0
	// if there is none; nominator is who asked.
	consent, nominator uint8
	// The leader's open nomination: 1 + candidate, and the view it was made on.
	pending, ifEpoch, ifRenew uint8
	handover                  bool
}

// In a slot: the age of q, and how far the renewal has come.
const (
	slotAge  uint8 = 0x0f
	slotSent uint8 = 0x10
	slotLog  uint8 = 0x20
)

// state is a state of the model.
type state struct {
	node [nodes]node
	// committed entries, known to whomever; newest epoch that was ever valid; and
	// what is left of the budgets.
	committed, newest            uint8
	restarts, installs, renewals uint8
}

// rules switches parts of the protocol off, to see that the model notices.
type rules struct {
	// The leader does not wait for the lease; not for the barrier; a Grant compares
	// the epoch alone.
	noWait, noBarrier, epochCAS bool
	// A renewal counts when the leader has appended it; q is read when the grant, or
	// the acknowledgement, arrives; a candidate opens any grant that names it.
	earlyAck, lateGrantQ, lateRenewalQ, anyNomination bool
	// A handover is proposed before the holder has fenced itself; a fenced holder
	// takes up an acknowledgement that is late; anybody releases.
	unfencedHandover, revive, foreignRelease bool
	// Neither side, or one of them, allows for the rate of clocks; a restarted node
	// takes its entries for old.
	holderRate, leaderRate, restartOld bool
}

// config is one configuration to explore.
type config struct {
	name string
	// rate is how many milliseconds each clock advances in one tick.
	rate [nodes]int64
	ttl  time.Duration
	// stale is the age in ticks from which on nothing depends on how old it is.
	stale uint8
	// terms, entries and the budgets bound the search.
	terms, entries               uint8
	restarts, installs, renewals uint8
	// slots is how many renewals a holder may have under way.
	slots int
	// candidates: only the first so many nodes have an instance.
	candidates uint8
	// holder: 1 + the node that was granted the group before the search begins.
	holder    uint8
	handovers bool
	rules     rules
	// only, if set, is the one property to look for.
	only string
}

// then is what the clock of node i showed age ticks ago.
func (c *config) then(i int, age uint8) clock.Instant {
	return clock.Instant((1000 - int64(age)) * c.rate[i] * int64(time.Millisecond))
}

// lease is the real lease that a node's fields stand for.
func (c *config) lease(i int, n *node) Lease {
	l := NewLease("g", uint64(n.epoch), c.ttl, c.then(i, n.q))
	if n.over {
		l = l.Ended()
	}
	return l
}

// keep stores a real lease in the fields.
func (c *config) keep(i int, n *node, l Lease, q uint8) {
	n.epoch, n.over = uint8(l.Epoch()), l.Over()
	if l.q == c.then(i, q) {
		n.q = q
	}
}

// valid asks the real lease.
func (c *config) valid(i int, l Lease) bool {
	now := c.then(i, 0)
	if c.rules.holderRate {
		return l.epoch != 0 && !l.over && now < l.q.Add(l.ttl)
	}
	return l.ValidAt(now)
}

// decide asks the real Decide for node i as leader. The group is as its applied
// prefix of the log says.
func (c *config) decide(i int, n *node, g *groupRecord) Decision {
	r := c.rules
	v := GroupView{
		Group:  g.record(c.ttl),
		Leader: LeaderView{BarrierApplied: n.barrier() || r.noBarrier},
		Now:    c.then(i, 0),
	}
	if g.renew > 0 {
		v.Leader.RenewStoredAt = c.then(i, n.age[g.renew-1])
	}
	if r.noWait {
		v.Group.Phase = pb.GroupPhase_GROUP_PHASE_VACANT
	}
	d := Decide(v)
	if r.leaderRate && d.Do != Elect && v.Leader.BarrierApplied && v.Now > v.Leader.RenewStoredAt.Add(c.ttl) {
		d.Do = Elect
	}
	return d
}

// barrier reports whether an entry of the leader's own term is applied.
func (n *node) barrier() bool { return n.commit > 0 && n.log[n.commit-1].term == n.term }

// groupRecord is the model's own copy of what the state machine keeps of a group.
// The real state machine is another package, with tests of its own.
type groupRecord struct {
	vacant               bool
	holder, epoch, renew uint8
}

var phaseOf = map[bool]pb.GroupPhase{true: pb.GroupPhase_GROUP_PHASE_VACANT, false: pb.GroupPhase_GROUP_PHASE_GRANTED}

func (g *groupRecord) record(ttl time.Duration) *pb.Group {
	return &pb.Group{Phase: phaseOf[g.vacant], TtlMs: uint32(ttl.Milliseconds()), Epoch: uint64(g.epoch), LastRenew: uint64(g.renew)}
}

// apply is the MODEL OF THE STATE MACHINE'S RULES for Grant, Renew, Release and
// Handover; it reports whether the entry at index was accepted.
func (g *groupRecord) apply(e entry, index uint8, r *rules) bool {
	held := !g.vacant && e.node == g.holder && e.epoch == g.epoch
	switch e.kind {
	case entryGrant:
		if e.epoch != g.epoch || e.renew != g.renew && !r.epochCAS {
			return false
		}
	case entryHandover:
		if g.vacant || e.epoch != g.epoch {
			return false
		}
	case entryRenew:
		if held {
			g.renew = index
		}
		return held
	case entryRelease:
		if r.foreignRelease {
			held = !g.vacant && e.epoch == g.epoch
		}
		g.vacant = g.vacant || held
		return held
	default:
		return false
	}
	*g = groupRecord{holder: e.node, epoch: index, renew: index}
	return true
}

// group is the record after the first upTo entries of a log, and whether the last
// of them was accepted.
func (n *node) group(upTo uint8, r *rules) (g groupRecord, accepted bool) {
	g.vacant = true
	for i := range upTo {
		accepted = g.apply(n.log[i], i+1, r)
	}
	return g, accepted
}

// begin is the state in which A leads term 1 and one entry is applied everywhere:
// the barrier, if nobody was ever granted anything, or else the grant to holder,
// all of it just now.
func (c *config) begin() state {
	s := state{committed: 1, restarts: c.restarts, installs: c.installs, renewals: c.renewals}
	for i := range s.node {
		n := &s.node[i]
		n.log[0] = entry{kind: entryNoop, term: 1}
		if c.holder > 0 {
			n.log[0] = entry{kind: entryGrant, term: 1, node: c.holder - 1}
		}
		n.n, n.commit, n.term = 1, 1, 1
	}
	if c.holder > 0 {
		c.keep(int(c.holder-1), &s.node[c.holder-1], NewLease("g", 1, c.ttl, c.then(int(c.holder-1), 0)), 0)
		s.newest = 1
	}
	s.node[0].leads = true
	return s
}

// tick lets one tick pass everywhere.
func (c *config) tick(s *state) {
	older := func(age *uint8, end uint8) { *age = min(*age+1, end) }
	for i := range s.node {
		n := &s.node[i]
		for k := range n.n {
			older(&n.age[k], c.stale)
		}
		if n.epoch != 0 {
			older(&n.q, c.stale)
		}
		if n.consent > 0 {
			if older(&n.consent, 1+c.stale); n.consent == 1+c.stale {
				// A lease that began with it would be over.
				n.consent = 0
				s.forget(entryGrant, uint8(i), 1)
			}
		}
		for k := range n.slot {
			if n.slot[k] == 0 {
				continue
			}
			if n.slot[k]++; n.slot[k]&slotAge >= c.stale {
				// Its q is of no use any more: the holder has given it up.
				s.free(i, k)
			}
		}
	}
}

// free empties a slot; an entry in a log that refers to it finds nobody any more.
func (s *state) free(holder, slot int) {
	s.node[holder].slot[slot] = 0
	s.forget(entryRenew, uint8(holder), uint8(slot)+1)
}

// forget clears the references of entries to something that is no longer kept.
func (s *state) forget(kind, holder, ref uint8) {
	for i := range s.node {
		n := &s.node[i]
		for k := range n.n {
			e := &n.log[k]
			same := e.kind == kind || kind == entryGrant && e.kind == entryHandover
			if same && e.node == holder && e.ref == ref {
				e.ref = 0
			}
		}
	}
}
