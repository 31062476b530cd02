// SPDX-License-Identifier: Apache-2.0

package election

import (
	"fmt"
	"strings"
)

func name(i uint8) string { return string(rune('A' + i)) }

// grantTooEarly checks, when entry s.committed of n's log has just been committed
// and is an accepted grant: every renewal that was acknowledged, or can be, has
// expired.
func (c *config) grantTooEarly(s *state, n *node) string {
	g, accepted := n.group(s.committed, &c.rules)
	if e := n.log[s.committed-1]; !accepted || e.kind != entryGrant && e.kind != entryHandover {
		return ""
	}
	for i := range s.node {
		h := &s.node[i]
		l := c.lease(i, h)
		for k := range h.slot {
			if c.willCount(n, uint8(i), uint8(k), s.committed) {
				l = l.Renewed(uint64(h.epoch), c.then(i, h.slot[k]&slotAge))
			}
		}
		if h.epoch < g.epoch && c.valid(i, l) {
			return fmt.Sprintf("grant: epoch %d is granted to %s while %s can still count on epoch %d", g.epoch, name(g.holder), name(uint8(i)), h.epoch)
		}
	}
	return ""
}

// willCount reports whether a holder's renewal under way was accepted before index.
func (c *config) willCount(n *node, holder, slot, index uint8) bool {
	for k := range index {
		if e := n.log[k]; e.kind == entryRenew && e.node == holder && e.ref == slot+1 {
			_, accepted := n.group(k+1, &c.rules)
			return accepted
		}
	}
	return false
}

// check is the properties of a state.
func (c *config) check(s *state) string {
	var holders []uint8
	for i := range s.node {
		if n := &s.node[i]; n.epoch != 0 && c.valid(i, c.lease(i, n)) {
			holders = append(holders, uint8(i))
		}
	}
	if len(holders) > 1 {
		a, b := holders[0], holders[1]
		return fmt.Sprintf("G1: both %s (epoch %d) and %s (epoch %d) hold a valid lease", name(a), s.node[a].epoch, name(b), s.node[b].epoch)
	}
	if len(holders) == 1 && s.node[holders[0]].epoch < s.newest {
		return fmt.Sprintf("epochs: %s acts under epoch %d after epoch %d was in use", name(holders[0]), s.node[holders[0]].epoch, s.newest)
	}
	return ""
}

// agesSuffice checks that at the age at which the model stops counting, no clock
// lets a lease be valid or a leader wait.
func (c *config) agesSuffice() bool {
	for i := range nodes {
		from, now := c.then(i, c.stale), c.then(i, 0)
		view := LeaderView{BarrierApplied: true, TTL: c.ttl, RenewStoredAt: from}
		if wait, ok := LeaseWait(view, now, 0); !ok || wait > 0 || NewLease("g", 1, c.ttl, from).ValidAt(now) {
			return false
		}
	}
	return true
}

// next is all that can happen in s.
func (c *config) next(s *state, emit func(step, *state, string)) {
	var t state // one for all: it escapes
	for _, do := range all {
		t = *s
		ok, broken := c.act(&t, do)
		if !ok {
			continue
		}
		for i := range t.node {
			if n := &t.node[i]; n.epoch > t.newest && c.valid(i, c.lease(i, n)) {
				t.newest = n.epoch
			}
			if broken == "" && t.node[i].commit > s.node[i].commit {
				broken = c.wentBack(i, &s.node[i], &t.node[i])
			}
		}
		c.tidy(&t)
		emit(do, &t, c.wanted(broken))
	}
}

// wentBack checks that the epoch of a node's group grows.
func (c *config) wentBack(i int, before, after *node) string {
	b, _ := before.group(before.commit, &c.rules)
	a, _ := after.group(after.commit, &c.rules)
	if a.epoch < b.epoch {
		return fmt.Sprintf("epochs: that of %s went back from %d to %d", name(uint8(i)), b.epoch, a.epoch)
	}
	return ""
}

func (c *config) model() model[state] {
	check := func(s *state) string { return c.wanted(c.check(s)) }
	return model[state]{start: c.begin(), next: c.next, check: check, tell: c.tell}
}

// wanted drops a violation that is not looked for.
func (c *config) wanted(broken string) string {
	if !strings.HasPrefix(broken, c.only) {
		return ""
	}
	return broken
}

// tell puts an action into words.
func (c *config) tell(do step, s *state) string {
	a, b := name(do.a), name(do.b)
	n := &s.node[do.a]
	switch do.kind {
	case doTick:
		return "a tick passes"
	case doElect:
		return fmt.Sprintf("%s is elected with the vote of %s and appends its barrier as entry %d", a, b, n.n+1)
	case doReplicate:
		return fmt.Sprintf("%s replicates its %d entries to %s", a, n.n, b)
	case doInstall:
		return fmt.Sprintf("%s sends %s a snapshot of %d entries", a, b, n.commit)
	case doRestart:
		return a + " restarts"
	case doNominate:
		return fmt.Sprintf("leader %s nominates %s (handover: %v), which reads its clock and consents", a, b, do.c == 1)
	case doGrant:
		return fmt.Sprintf("leader %s appends the grant to %s as entry %d, if epoch %d and last renewal %d", a, name(n.pending-1), n.n+1, n.ifEpoch, n.ifRenew)
	case doOpen:
		return a + " hears of its grant and opens its lease"
	case doSendRenewal:
		return a + " reads its clock and sends a renewal"
	case doAppendRenewal:
		return fmt.Sprintf("leader %s appends a renewal of %s as entry %d", a, b, n.n+1)
	case doAck:
		return fmt.Sprintf("%s is told that its renewal counts, %d ticks after it read its clock", a, n.slot[do.b]&slotAge)
	case doFence:
		return a + " fences itself"
	default:
		return fmt.Sprintf("leader %s appends the release of %s as entry %d", a, b, n.n+1)
	}
}
