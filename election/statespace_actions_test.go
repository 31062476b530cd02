// SPDX-License-Identifier: Apache-2.0

package election

import (
	"fmt"
	"slices"
)

// The actions. Each reports whether it was possible, and names a property that it
// violates.
const (
	doTick uint8 = iota
	doElect
	doReplicate
	doInstall
	doRestart
	doNominate
	doGrant
	doOpen
	doSendRenewal
	doAppendRenewal
	doAck
	doFence
	doRelease
)

// all is every action of the model, in every combination of its parties.
var all = func() (steps []step) {
	steps = append(steps, step{kind: doTick})
	for a := range uint8(nodes) {
		for _, kind := range []uint8{doRestart, doGrant, doOpen, doSendRenewal, doFence} {
			steps = append(steps, step{kind: kind, a: a})
		}
		for b := range uint8(nodes) {
			steps = append(steps, step{doNominate, a, b, 0}, step{doNominate, a, b, 1}, step{doRelease, a, b, 0})
			for k := range uint8(slots) {
				steps = append(steps, step{doAppendRenewal, a, b, k})
			}
			if a != b {
				steps = append(steps, step{doElect, a, b, 0}, step{doReplicate, a, b, 0}, step{doInstall, a, b, 0})
			}
		}
		for k := range uint8(slots) {
			steps = append(steps, step{kind: doAck, a: a, b: k})
		}
	}
	return steps
}()

// act does one action in s.
func (c *config) act(s *state, do step) (ok bool, broken string) {
	switch do.kind {
	case doTick:
		c.tick(s)
		return true, ""
	case doElect:
		return c.elect(s, do.a, do.b)
	case doReplicate:
		return c.replicate(s, do.a, do.b)
	case doInstall:
		return s.install(do.a, do.b), ""
	case doRestart:
		return c.restart(s, do.a), ""
	case doNominate:
		return c.nominate(s, do.a, do.b, do.c == 1)
	case doGrant:
		return c.grant(s, do.a), ""
	case doOpen:
		return c.open(s, do.a), ""
	case doSendRenewal:
		return c.sendRenewal(s, do.a), ""
	case doAppendRenewal:
		return c.appendRenewal(s, do.a, do.b, do.c), ""
	case doAck:
		return c.ack(s, do.a, do.b), ""
	case doFence:
		return c.fence(s, do.a), ""
	default:
		return c.release(s, do.a, do.b), ""
	}
}

// push appends an entry to a leader's log. An entry that the state machine will
// refuse at that place changes nothing: it is left out, to save states.
func (c *config) push(n *node, e entry) bool {
	if !n.leads || n.n >= c.entries {
		return false
	}
	e.term = n.term
	n.log[n.n] = e
	if _, accepted := n.group(n.n+1, &c.rules); !accepted && e.kind != entryNoop {
		return false
	}
	n.age[n.n] = 0
	n.n++
	return true
}

// elect makes i the leader of a new term with the vote of j, also while another
// leads (a transfer, or a leader that is cut off). It appends the barrier.
func (c *config) elect(s *state, i, j uint8) (ok bool, broken string) {
	a, b := &s.node[i], &s.node[j]
	term := max(a.term, b.term) + 1
	lastA, lastB := a.log[a.n-1].term, b.log[b.n-1].term
	if term > c.terms || a.leads || lastA < lastB || lastA == lastB && a.n < b.n || a.n >= c.entries {
		return false, ""
	}
	if was := s.newestLog(); a.n < s.committed || !slices.Equal(was.log[:s.committed], a.log[:s.committed]) {
		return true, fmt.Sprintf("model: %s is elected without what is committed", name(i))
	}
	a.term, b.term = term, term
	a.leads, b.leads = true, false
	a.pending = 0
	return c.push(a, entry{kind: entryNoop}), ""
}

// replicate brings the log of j to that of the leader i, and i hears of it. One
// store beside the leader's is a majority: the whole log is committed, as the log of
// a leader ends in its own term. (An answer that is late or lost leaves the
// leader with an older view, whose Grant is refused.)
func (c *config) replicate(s *state, i, j uint8) (ok bool, broken string) {
	a, b := &s.node[i], &s.node[j]
	if !a.leads || b.term > a.term {
		return false, ""
	}
	if b.term < a.term {
		b.term, b.leads = a.term, false
	}
	same := true
	for k := range a.n {
		if same = same && k < b.n && a.log[k] == b.log[k]; !same {
			b.log[k], b.age[k] = a.log[k], 0
		}
	}
	for k := a.n; k < b.n; k++ {
		b.log[k], b.age[k] = entry{}, 0
	}
	b.n, a.commit = a.n, a.n
	for s.committed < a.n {
		s.committed++
		if broken = c.grantTooEarly(s, a); broken != "" {
			return true, broken
		}
	}
	return true, ""
}

// install gives j a snapshot of all that i has applied.
func (s *state) install(i, j uint8) bool {
	a, b := &s.node[i], &s.node[j]
	if s.installs == 0 || !a.leads || b.term > a.term {
		return false
	}
	s.installs--
	b.term, b.leads = a.term, false
	b.log, b.age = [logBound]entry{}, [logBound]uint8{}
	copy(b.log[:a.commit], a.log[:a.commit])
	b.n = a.commit
	return true
}

// restart kills a node with its holder and starts it again: what is on its disk
// stays, and counts as stored now.
func (c *config) restart(s *state, i uint8) bool {
	if s.restarts == 0 {
		return false
	}
	s.restarts--
	n := &s.node[i]
	for k := range n.slot {
		s.free(int(i), k)
	}
	s.forget(entryGrant, i, 1)
	*n = node{log: n.log, n: n.n, commit: 1, term: n.term}
	if c.rules.restartOld {
		for k := range n.n {
			n.age[k] = c.stale
		}
	}
	return true
}

// nominate lets leader i ask candidate to for its consent, if the real decision
// is to elect, or for a handover. The candidate reads its clock.
func (c *config) nominate(s *state, i, to uint8, handover bool) (ok bool, broken string) {
	n := &s.node[i]
	if !n.leads || to >= c.candidates || n.n >= c.entries || handover && !c.handovers {
		return false, ""
	}
	g, _ := n.group(n.commit, &c.rules)
	switch d := c.decide(int(i), n, &g); {
	case handover && (!n.barrier() || g.vacant || g.holder == to):
		return false, ""
	case !handover && d.Do != Elect:
		return false, ""
	}
	n.pending, n.handover, n.ifEpoch, n.ifRenew = to+1, handover, g.epoch, g.renew
	s.forget(entryGrant, to, 1)
	s.node[to].consent, s.node[to].nominator = 1, i
	for k := range min(s.committed, n.n) {
		if n.log[k].term < n.term && k >= n.commit {
			return true, fmt.Sprintf("view: leader %s of term %d decides without entry %d, which was committed before its term", name(i), n.term, k+1)
		}
	}
	return true, ""
}

// grant lets leader i propose what it has a consent for.
func (c *config) grant(s *state, i uint8) bool {
	n := &s.node[i]
	if n.pending == 0 {
		return false
	}
	to, e := n.pending-1, n.proposal()
	if n.handover && !c.fenced(s, n.ifEpoch) {
		return false
	}
	if t := &s.node[to]; t.consent > 0 && t.nominator == i {
		e.ref = 1
	}
	n.pending, n.ifEpoch, n.ifRenew, n.handover = 0, 0, 0, false
	return c.push(n, e)
}

// proposal is the grant that a leader's nomination leads to.
func (n *node) proposal() entry {
	if n.handover {
		return entry{kind: entryHandover, node: n.pending - 1, epoch: n.ifEpoch}
	}
	return entry{kind: entryGrant, node: n.pending - 1, epoch: n.ifEpoch, renew: n.ifRenew}
}

// fenced reports whether a holder has answered that it has fenced itself.
func (c *config) fenced(s *state, epoch uint8) bool {
	for i := range s.node {
		if n := &s.node[i]; n.epoch == epoch && n.over {
			return true
		}
	}
	return c.rules.unfencedHandover
}

// open lets candidate i learn of the grant that it has consented to, at any time
// after that was committed.
func (c *config) open(s *state, i uint8) bool {
	n := &s.node[i]
	index := c.accepted(s.newestLog(), s.committed, func(e *entry) bool {
		return (e.ref == 1 || c.rules.anyNomination && n.consent > 0) && e.node == i &&
			(e.kind == entryGrant || e.kind == entryHandover)
	})
	if index == 0 || index == n.epoch {
		return false
	}
	q := n.consent - 1
	if c.rules.lateGrantQ {
		q = 0
	}
	for slot := range n.slot {
		s.free(int(i), slot)
	}
	s.forget(entryGrant, i, 1)
	n.consent, n.q = 0, q
	c.keep(int(i), n, NewLease("g", uint64(index), c.ttl, c.then(int(i), q)), q)
	return true
}

// accepted is the index of the newest entry among the first known of a log that
// is meant and that the state machine accepted; 0 if there is none.
func (c *config) accepted(n *node, known uint8, meant func(*entry) bool) uint8 {
	for k := known; k > 0; k-- {
		if meant(&n.log[k-1]) {
			if _, accepted := n.group(k, &c.rules); accepted {
				return k
			}
		}
	}
	return 0
}

// sendRenewal lets holder i read its clock and send a renewal.
func (c *config) sendRenewal(s *state, i uint8) bool {
	n := &s.node[i]
	if n.epoch == 0 || n.over || s.renewals == 0 {
		return false
	}
	for k := range c.slots {
		if n.slot[k] == 0 {
			n.slot[k] = slotSent
			s.renewals--
			return true
		}
	}
	return false
}

// appendRenewal lets a renewal of holder h reach whoever leads.
func (c *config) appendRenewal(s *state, i, h, slot uint8) bool {
	holder := &s.node[h]
	if holder.slot[slot]&slotSent == 0 {
		return false
	}
	if !c.push(&s.node[i], entry{kind: entryRenew, node: h, epoch: holder.epoch, ref: slot + 1}) {
		return false
	}
	holder.slot[slot] = holder.slot[slot]&slotAge | slotLog
	return true
}

// ack tells holder i that its renewal was accepted, at any time after it was
// committed.
func (c *config) ack(s *state, i, slot uint8) bool {
	n := &s.node[i]
	if n.slot[slot]&slotLog == 0 {
		return false
	}
	meant := func(e *entry) bool { return e.kind == entryRenew && e.node == i && e.ref == slot+1 }
	from := s.newestLog()
	index := c.accepted(from, s.committed, meant)
	for j := range s.node {
		if l := &s.node[j]; c.rules.earlyAck && index == 0 && l.leads {
			from, index = l, c.accepted(l, l.n, meant)
		}
	}
	if index == 0 {
		return false
	}
	epoch, q := from.log[index-1].epoch, n.slot[slot]&slotAge
	if c.rules.lateRenewalQ {
		q = 0
	}
	n.over = n.over && !c.rules.revive
	s.free(int(i), int(slot))
	c.keep(int(i), n, c.lease(int(i), n).Renewed(uint64(epoch), c.then(int(i), q)), q)
	return true
}

// fence lets holder i fence itself, for whatever reason.
func (c *config) fence(s *state, i uint8) bool {
	n := &s.node[i]
	if n.epoch == 0 || n.over {
		return false
	}
	c.keep(int(i), n, c.lease(int(i), n).Ended(), n.q)
	return true
}

// release lets leader i append the release of holder h, which has fenced itself.
func (c *config) release(s *state, i, h uint8) bool {
	n := &s.node[h]
	if n.epoch == 0 || !n.over && !c.rules.foreignRelease {
		return false
	}
	return c.push(&s.node[i], entry{kind: entryRelease, node: h, epoch: n.epoch})
}
