// SPDX-License-Identifier: Apache-2.0

package check

import (
	"cmp"

	"github.com/hastate/hastate/testcluster/chaos/record"
)

// ProofInput is all that was recorded of a stretch of a run in which its load ran
// and in which the cluster was whole at times.
type ProofInput struct {
	// Groups that were loaded.
	Groups []string
	// Callers ran: there are model servers, and the primaries were asked.
	Callers bool

	// Leases, Served and Promotions may be those of more than the stretch.
	Leases        []record.Lease
	Served        []record.Served
	Promotions    []record.Promotion
	Requests      []record.Request
	GroupEvents   []record.GroupEvent
	SessionEvents []record.SessionEvent
	Ops           []record.Op
	// Once is what ExactlyOnce has counted.
	Once Counts
	// Undecided is of how many sessions Linearizable could not tell.
	Undecided int
}

// Proof checks that the other checks had something to judge: they find nothing
// wrong with a record that is empty. What it finds is a fault of the suite, or of
// the way in which it was run, rather than of the cluster; either way nothing is
// proved.
func Proof(p ProofInput) []record.Violation {
	f := &found{check: checkProof}
	p.leases(f)
	p.groups(f)
	acked := 0
	for _, op := range p.Ops {
		if op.Outcome == record.OK && op.Kind != record.Get {
			acked++
		}
	}
	if acked == 0 {
		f.add("", "no write was acknowledged in %d operations", len(p.Ops))
	}
	if p.Once.Acknowledged == 0 {
		f.add("", "no append was acknowledged and read back: nothing is proved of exactly once")
	}
	if n := p.Once.Unread; n > 0 {
		f.add("", "%d appends were acknowledged and never read back: nothing is proved of them", n)
	}
	if n := p.Undecided; n > 0 {
		f.add("", "of %d sessions it could not be told in time whether they are linearizable", n)
	}
	return f.violations()
}

// leases: what was served is known from both sides: the node beside the server
// wrote down its lease, and the server each request that a client had answered.
func (p ProofInput) leases(f *found) {
	held, served := map[tenure]bool{}, map[tenure]int{}
	for _, l := range p.Leases {
		held[tenure{l.Node, l.Group, l.Epoch}] = true
	}
	for _, s := range p.Served {
		served[tenure{s.Node, s.Group, s.Epoch}]++
	}
	if len(held) == 0 && (len(served) > 0 || p.Callers) {
		f.add("", "no lease was recorded")
	}
	for _, t := range sorted(served, compareTenures) {
		if !held[t] {
			f.add("", "group %s: %s served %d requests under epoch %d, and its node recorded no lease of it", t.group, t.node, served[t], t.epoch)
		}
	}
	if len(p.Promotions) == 0 && len(served) > 0 {
		f.add("", "no promotion was recorded")
	}
	if !p.Callers {
		return
	}
	answered := map[tenure]int{}
	for _, r := range p.Requests {
		if r.Error == "" && r.Node != "" {
			answered[tenure{r.Node, r.Group, r.Epoch}]++
		}
	}
	for _, t := range sorted(answered, compareTenures) {
		if served[t] == 0 {
			f.add("", "group %s: %s answered %d requests under epoch %d, and its model server recorded none", t.group, t.node, answered[t], t.epoch)
		}
	}
}

// groups: something was recorded of each.
func (p ProofInput) groups(f *found) {
	answered, events, sessions := map[string]int{}, map[string]int{}, map[string]int{}
	for _, r := range p.Requests {
		if r.Error == "" && r.Node != "" {
			answered[r.Group]++
		}
	}
	for _, e := range p.GroupEvents {
		events[e.Group.GetName()]++
	}
	for _, e := range p.SessionEvents {
		if !e.Resync && !e.Resumed {
			sessions[e.Group]++
		}
	}
	if len(p.Groups) == 0 {
		f.add("", "no groups were loaded")
	}
	names := map[string]bool{}
	for _, g := range p.Groups {
		names[g] = true
	}
	for _, g := range sorted(names, cmp.Compare[string]) {
		if p.Callers && answered[g] == 0 {
			f.add("", "group %s: no request to its primary was answered", g)
		}
		if events[g] == 0 {
			f.add("", "group %s: no watch told of it", g)
		}
		if sessions[g] == 0 {
			f.add("", "group %s: no watch told of its sessions", g)
		}
	}
}
