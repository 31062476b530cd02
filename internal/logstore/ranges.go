// SPDX-License-Identifier: Apache-2.0

package logstore

import "slices"

// interval is a run of stored indexes, both ends included.
type interval struct{ first, last uint64 }

// ranges is the set of stored indexes: sorted, disjoint, not adjacent. A log is
// one interval; each snapshot that was installed ahead of the log adds a gap
// until compaction has passed it, so the set stays tiny.
type ranges []interval

func (r ranges) first() uint64 {
	if len(r) == 0 {
		return 0
	}
	return r[0].first
}

func (r ranges) last() uint64 {
	if len(r) == 0 {
		return 0
	}
	return r[len(r)-1].last
}

func (r ranges) count() uint64 {
	var n uint64
	for _, iv := range r {
		n += iv.last - iv.first + 1
	}
	return n
}

// at returns the position of the first interval that ends at or after index.
func (r ranges) at(index uint64) int {
	i, _ := slices.BinarySearchFunc(r, index, func(iv interval, x uint64) int {
		if iv.last < x {
			return -1
		}
		return 1
	})
	return i
}

func (r ranges) contains(index uint64) bool {
	i := r.at(index)
	return i < len(r) && r[i].first <= index
}

// add returns the set with first..last in it.
func (r ranges) add(first, last uint64) ranges {
	lo := r.at(first)
	if lo > 0 && r[lo-1].last+1 == first {
		lo--
	}
	hi := lo
	for hi < len(r) && r[hi].first <= last+1 {
		first = min(first, r[hi].first)
		last = max(last, r[hi].last)
		hi++
	}
	return slices.Replace(r, lo, hi, interval{first, last})
}

// remove returns the set without first..last.
func (r ranges) remove(first, last uint64) ranges {
	lo := r.at(first)
	hi := lo
	var keep []interval
	for hi < len(r) && r[hi].first <= last {
		if r[hi].first < first {
			keep = append(keep, interval{r[hi].first, first - 1})
		}
		if r[hi].last > last {
			keep = append(keep, interval{last + 1, r[hi].last})
		}
		hi++
	}
	return slices.Replace(r, lo, hi, keep...)
}

// clamp returns the lowest and the highest stored index within first..last; lo > hi
// if there is none.
func (r ranges) clamp(first, last uint64) (lo, hi uint64) {
	inside := slices.Clone(r)
	if first > 0 {
		inside = inside.remove(0, first-1)
	}
	if last < ^uint64(0) {
		inside = inside.remove(last+1, ^uint64(0))
	}
	if len(inside) == 0 || first > last {
		return 1, 0
	}
	return inside.first(), inside.last()
}
