// SPDX-License-Identifier: Apache-2.0

package election

// tidy gives states from which the same can happen the same form. Each line says
// why it loses nothing; without them the search is not exhaustive in any useful
// time.
func (c *config) tidy(s *state) {
	g, _ := s.newestLog().group(s.committed, &c.rules)
	for i := range s.node {
		c.tidyRaft(s, i, g.renew)
		c.tidyLeader(s, i)
	}
	for i := range s.node {
		c.tidyHolder(s, i, g.epoch)
	}
}

// newestLog is a log with everything that is committed.
func (s *state) newestLog() *node {
	best := &s.node[0]
	for i := range s.node {
		n := &s.node[i]
		if a, b := n.log[n.n-1].term, best.log[best.n-1].term; a > b || a == b && n.n > best.n {
			best = n
		}
	}
	return best
}

// tidyRaft: renew is the group's last renewal that is committed.
func (c *config) tidyRaft(s *state, i int, renew uint8) {
	n := &s.node[i]
	x, y := &s.node[(i+1)%nodes], &s.node[(i+2)%nodes]
	// A leader whom nobody can follow any more never commits anything.
	n.leads = n.leads && (x.term <= n.term || y.term <= n.term)
	if !n.leads {
		n.commit = 1
	}
	asks := n.leads || max(n.term, min(x.term, y.term)) < c.terms
	for k := range n.log {
		switch n.log[k].kind {
		case entryGrant, entryHandover, entryRenew:
			// The age is asked for by a leader, of the newest renewal; a Grant on an
			// older one is refused.
			if asks && uint8(k)+1 >= renew {
				continue
			}
		}
		n.age[k] = 0
	}
}

// tidyLeader drops a nomination that cannot lead to a grant any more.
func (c *config) tidyLeader(s *state, i int) {
	n := &s.node[i]
	if to := n.pending; to == 0 || n.leads && s.node[to-1].consent > 0 && s.node[to-1].nominator == uint8(i) && c.grantable(n) {
		return
	}
	n.pending, n.ifEpoch, n.ifRenew, n.handover = 0, 0, 0, false
}

// grantable reports whether the state machine would accept the pending grant.
func (c *config) grantable(n *node) bool {
	g, _ := n.group(n.n, &c.rules)
	return g.apply(n.proposal(), n.n+1, &c.rules)
}

// tidyHolder: epoch is the group's that is committed.
func (c *config) tidyHolder(s *state, i int, epoch uint8) {
	n := &s.node[i]
	if n.q == c.stale && n.epoch < epoch || n.epoch == 0 {
		// Its renewals are refused.
		n.epoch, n.over = 0, false
	}
	if n.epoch == 0 || n.over && !c.rules.revive {
		// No acknowledgement changes it.
		n.q = 0
		for k := range n.slot {
			s.free(i, k)
		}
	}
	for k := range n.slot {
		if n.slot[k]&slotLog != 0 && !s.refers(entryRenew, uint8(i), uint8(k)+1) {
			s.free(i, k)
		}
	}
	if n.consent > 0 && s.node[n.nominator].pending != uint8(i)+1 && !s.refers(entryGrant, uint8(i), 1) {
		n.consent = 0
	}
	if n.consent == 0 {
		n.nominator = 0
	}
}

// refers reports whether a log has an entry with that reference.
func (s *state) refers(kind, holder, ref uint8) bool {
	for i := range s.node {
		n := &s.node[i]
		for k := range n.n {
			e := &n.log[k]
			if e.node == holder && e.ref == ref && (e.kind == kind || kind == entryGrant && e.kind == entryHandover) {
				return true
			}
		}
	}
	return false
}
