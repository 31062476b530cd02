// SPDX-License-Identifier: Apache-2.0

package logstore

import (
	"slices"
	"sort"

	"github.com/hastate/hastate/internal/clock"
)

const (
	// maxSpans bounds the memory of times: 64k spans of 32 bytes.
	maxSpans = 64 << 10
	// coarseness: spans are merged when the error that this brings is at most
	// this fraction of their age.
	coarseness = 64
)

// span says that the entries first..last were stored between from and to. The
// answer for all of them is to.
type span struct {
	first, last uint64
	from, to    clock.Instant
}

// times remembers when entries were stored, in spans of rising index and rising
// time. What it answers is an upper bound: never earlier than the entry that is
// at the index now was first stored on this node.
//
// Why any time from the begin of StoreLogs on is safe, and none before it. A
// holder reads its clock (q) before it sends a renewal; the leader makes the
// entry after it has received it; a node is asked to store the entry after the
// leader made it. So in real time q <= begin of StoreLogs on every node, and a
// leader that waits L(1+rho) from that begin, or from any later time, waits until
// after the end of the lease, q + L(1-rho) on the holder's clock. Too late a time
// only delays a failover. A time taken before the call, such as a tick kept from
// an earlier call, may lie before q: the leader would then grant while the old
// holder may still act.
type times struct {
	spans []span
	max   int
}

// reset forgets everything and counts 0..last as stored at now. Only the time of
// a restart or of an install is a bound for entries whose storing nobody saw.
func (t *times) reset(last uint64, now clock.Instant) {
	t.spans = append(t.spans[:0], span{first: 0, last: last, from: now, to: now})
}

func (t *times) last() uint64 {
	if len(t.spans) == 0 {
		return 0
	}
	return t.spans[len(t.spans)-1].last
}

// notBefore keeps times rising with the index even if the clock did not.
func (t *times) notBefore(now clock.Instant) clock.Instant {
	if n := len(t.spans); n > 0 && t.spans[n-1].to > now {
		return t.spans[n-1].to
	}
	return now
}

// stored records that first..last are being stored at now. Entries above last
// that were there before count as stored now too, so that times keep rising.
func (t *times) stored(first, last uint64, now clock.Instant) {
	now = t.notBefore(now)
	last = max(last, t.last())
	t.cut(first)
	if n := len(t.spans); n > 0 && t.spans[n-1].last+1 == first && t.spans[n-1].to == now {
		t.spans[n-1].last = last
		return
	}
	t.spans = append(t.spans, span{first: first, last: last, from: now, to: now})
	if len(t.spans) > t.max {
		t.coarsen(now)
	}
}

// cut forgets index and everything above it.
func (t *times) cut(index uint64) {
	i := sort.Search(len(t.spans), func(i int) bool { return t.spans[i].last >= index })
	if i < len(t.spans) && t.spans[i].first < index {
		t.spans[i].last = index - 1
		i++
	}
	t.spans = t.spans[:i]
}

// lift counts everything up to index as stored at now, and what lies above it as
// well: an upper bound may be raised at will, and times keep rising.
func (t *times) lift(index uint64, now clock.Instant) {
	now = t.notBefore(now)
	t.reset(max(index, t.last()), now)
}

// at returns an upper bound of the time at which the entry at index was stored.
// An index that was never stored here, above the log or in a gap that no snapshot
// has covered, counts as stored now: such a lease never looks older than it is.
func (t *times) at(index uint64, now clock.Instant) clock.Instant {
	i := sort.Search(len(t.spans), func(i int) bool { return t.spans[i].last >= index })
	if i == len(t.spans) || index < t.spans[i].first {
		return t.notBefore(now)
	}
	return t.spans[i].to
}

// coarsen merges old spans into their younger neighbours. The merged entries get
// the later time, an upper bound still. Simply dropping the oldest spans and
// answering with the oldest kept time would be safe too, but under load that time
// moves on as fast as the clock, and a lease longer than the kept history would
// never be seen to end; here the answer is off by at most 1/coarseness of the age.
func (t *times) coarsen(now clock.Instant) {
	t.merge(func(older, younger span) bool {
		return younger.to.Sub(older.from) <= now.Sub(younger.to)/coarseness
	})
	// A clock that stands still while 64k writes pass leaves nothing to merge by
	// age; memory is bounded all the same.
	for n := len(t.spans); n > t.max*3/4; n = len(t.spans) {
		i := 0
		t.merge(func(span, span) bool {
			i++
			return i < n/2 && i%2 == 1
		})
		if len(t.spans) == n { // nothing but gaps: forgotten entries count as stored now
			t.spans = slices.Delete(t.spans, 0, n/2)
		}
	}
}

// merge folds each span into the one before it if ok says so. Gaps stay gaps.
func (t *times) merge(ok func(older, younger span) bool) {
	out := t.spans[:0]
	for _, s := range t.spans {
		if n := len(out); n > 0 && out[n-1].last+1 == s.first && ok(out[n-1], s) {
			out[n-1].last, out[n-1].to = s.last, s.to
			continue
		}
		out = append(out, s)
	}
	t.spans = out
}
