// SPDX-License-Identifier: Apache-2.0

package check

import (
	"cmp"
	"slices"
	"time"

	"github.com/hastate/hastate/testcluster/chaos/record"
)

// rounding is how far the instants of two processes may be rounded apart.
const rounding = time.Millisecond

// tenure is what one node believed of one epoch of a group.
type tenure struct {
	node, group string
	epoch       uint64
}

// OnePrimary checks that a group never has two primaries: by what holders
// believed, by what model servers did, by what watches told, by which writes were
// accepted under which epoch, and by who answered clients.
//
// A lease counts until its last Until, also if its node was killed meanwhile: a
// node that comes back within it may release it early, and has to be recorded as
// Ended then. Any of the arguments may be empty.
func OnePrimary(leases []record.Lease, served []record.Served, events []record.GroupEvent, ops []record.Op, requests []record.Request) []record.Violation {
	f := &found{check: checkOnePrimary}
	last := lastLeases(leases)
	leasesApart(f, last)
	servedApart(f, served)
	servedUnderLease(f, served, last)
	epochsGrow(f, events, last, served)
	fenced(f, events, ops)
	answersInOrder(f, requests)
	return f.violations()
}

// lastLeases are the leases as last written, by their order of epoch.
func lastLeases(leases []record.Lease) []record.Lease {
	at := map[tenure]int{}
	var out []record.Lease
	for _, l := range leases {
		t := tenure{l.Node, l.Group, l.Epoch}
		i, ok := at[t]
		if !ok {
			at[t] = len(out)
			out = append(out, l)
			continue
		}
		l.From = min(l.From, out[i].From)
		out[i] = l
	}
	slices.SortStableFunc(out, func(a, b record.Lease) int {
		return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.From, b.From))
	})
	return out
}

// leasesApart: the leases of the epochs of a group do not overlap.
func leasesApart(f *found, leases []record.Lease) {
	var latest *record.Lease // of the lower epochs: the one that ends last
	for i := range leases {
		l := &leases[i]
		if latest != nil && latest.Group == l.Group {
			if latest.Epoch != l.Epoch && latest.Until > l.From { // two holders of one are found elsewhere
				f.add("", "group %s: %s held epoch %d until %v after %s had begun epoch %d: two leases at once",
					l.Group, latest.Node, latest.Epoch, latest.Until.Sub(l.From), l.Node, l.Epoch)
			}
			if latest.Until > l.Until {
				continue
			}
		}
		latest = l
	}
}

// span is from the first to the last request that was served under one epoch.
type span struct {
	group       string
	epoch       uint64
	first, last record.Served
}

// servedApart: nothing is served under an epoch after something was served under
// a newer one.
func servedApart(f *found, served []record.Served) {
	at := map[tenure]*span{}
	var spans []*span
	for _, s := range served {
		t := tenure{"", s.Group, s.Epoch}
		x := at[t]
		if x == nil {
			x = &span{s.Group, s.Epoch, s, s}
			at[t] = x
			spans = append(spans, x)
		}
		if s.At < x.first.At {
			x.first = s
		}
		if s.At > x.last.At {
			x.last = s
		}
	}
	slices.SortFunc(spans, func(a, b *span) int {
		return cmp.Or(cmp.Compare(a.group, b.group), cmp.Compare(a.epoch, b.epoch))
	})
	var latest *span
	for _, x := range spans {
		if latest != nil && latest.group == x.group {
			if latest.last.At >= x.first.At {
				f.add("", "group %s: %s served under epoch %d for %v after %s had served under epoch %d",
					x.group, latest.last.Node, latest.epoch, latest.last.At.Sub(x.first.At), x.first.Node, x.epoch)
			}
			if latest.last.At > x.last.At {
				continue
			}
		}
		latest = x
	}
}

// servedUnderLease: a model server serves only while the node beside it holds the
// lease.
func servedUnderLease(f *found, served []record.Served, leases []record.Lease) {
	if len(leases) == 0 {
		return
	}
	held := map[tenure]record.Lease{}
	for _, l := range leases {
		held[tenure{l.Node, l.Group, l.Epoch}] = l
	}
	type outside struct {
		n    int
		most time.Duration
	}
	outsides := map[tenure]*outside{}
	for _, s := range served {
		t := tenure{s.Node, s.Group, s.Epoch}
		l, ok := held[t]
		var by time.Duration
		switch {
		case !ok:
			by = -1
		case s.At < l.From.Add(-rounding):
			by = l.From.Sub(s.At)
		case s.At > l.Until.Add(rounding):
			by = s.At.Sub(l.Until)
		default:
			continue
		}
		if outsides[t] == nil {
			outsides[t] = &outside{}
		}
		outsides[t].n++
		outsides[t].most = max(outsides[t].most, by)
	}
	for _, t := range sorted(outsides, compareTenures) {
		o := outsides[t]
		if _, ok := held[t]; !ok {
			f.add("", "group %s: %s served %d requests under epoch %d, of which its node never held the lease", t.group, t.node, o.n, t.epoch)
			continue
		}
		f.add("", "group %s: %s served %d requests under epoch %d outside the lease of its node, by up to %v", t.group, t.node, o.n, t.epoch, o.most)
	}
}

func compareTenures(a, b tenure) int {
	return cmp.Or(cmp.Compare(a.group, b.group), cmp.Compare(a.epoch, b.epoch), cmp.Compare(a.node, b.node))
}

// answersInOrder: a client that begins to ask after another one had its answer is
// not answered under an older epoch.
func answersInOrder(f *found, requests []record.Request) {
	groups := map[string][]record.Request{}
	for _, r := range requests {
		if r.Error == "" && r.Node != "" {
			groups[r.Group] = append(groups[r.Group], r)
		}
	}
	for _, group := range sorted(groups, cmp.Compare[string]) {
		begun := groups[group]
		ended := slices.Clone(begun)
		slices.SortFunc(begun, func(a, b record.Request) int { return cmp.Compare(a.Call, b.Call) })
		slices.SortFunc(ended, func(a, b record.Request) int { return cmp.Compare(a.Return, b.Return) })
		var newest record.Request
		for _, r := range begun {
			for len(ended) > 0 && ended[0].Return < r.Call {
				if ended[0].Epoch > newest.Epoch {
					newest = ended[0]
				}
				ended = ended[1:]
			}
			if r.Epoch < newest.Epoch {
				f.add("", "group %s: %s answered under epoch %d a request that began %v after %s had answered under epoch %d",
					group, r.Node, r.Epoch, r.Call.Sub(newest.Return), newest.Node, newest.Epoch)
			}
		}
	}
}
