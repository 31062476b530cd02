// SPDX-License-Identifier: Apache-2.0

// Package indexes is a set of log indexes that consists of few runs.
package indexes

import "slices"

// Run is a run of consecutive indexes, both ends included.
type Run struct{ First, Last uint64 }

// Set is a set of indexes: runs that are sorted, disjoint and not adjacent. A log is
// one run; each snapshot that was installed ahead of the log adds a gap until
// compaction has passed it, so the set stays tiny. The zero value is empty.
type Set []Run

// First is the lowest index, 0 if there is none.
func (s Set) First() uint64 {
	if len(s) == 0 {
		return 0
	}
	return s[0].First
}

// Last is the highest index, 0 if there is none.
func (s Set) Last() uint64 {
	if len(s) == 0 {
		return 0
	}
	return s[len(s)-1].Last
}

// Count is how many indexes there are.
func (s Set) Count() uint64 {
	var n uint64
	for _, r := range s {
		n += r.Last - r.First + 1
	}
	return n
}

// at returns the position of the first run that ends at or after index.
func (s Set) at(index uint64) int {
	i, _ := slices.BinarySearchFunc(s, index, func(r Run, x uint64) int {
		if r.Last < x {
			return -1
		}
		return 1
	})
	return i
}

// Contains says whether the index is in the set.
func (s Set) Contains(index uint64) bool {
	i := s.at(index)
	return i < len(s) && s[i].First <= index
}

// Add returns the set with first..last in it. It may reuse the memory of s.
func (s Set) Add(first, last uint64) Set {
	lo := s.at(first)
	if lo > 0 && s[lo-1].Last+1 == first {
		lo--
	}
	hi := lo
	for hi < len(s) && s[hi].First <= last+1 {
		first = min(first, s[hi].First)
		last = max(last, s[hi].Last)
		hi++
	}
	return slices.Replace(s, lo, hi, Run{first, last})
}

// Remove returns the set without first..last. It may reuse the memory of s.
func (s Set) Remove(first, last uint64) Set {
	lo := s.at(first)
	hi := lo
	var keep []Run
	for hi < len(s) && s[hi].First <= last {
		if s[hi].First < first {
			keep = append(keep, Run{s[hi].First, first - 1})
		}
		if s[hi].Last > last {
			keep = append(keep, Run{last + 1, s[hi].Last})
		}
		hi++
	}
	return slices.Replace(s, lo, hi, keep...)
}

// Clamp returns the lowest and the highest index of the set within first..last; lo >
// hi if there is none.
func (s Set) Clamp(first, last uint64) (lo, hi uint64) {
	inside := slices.Clone(s)
	if first > 0 {
		inside = inside.Remove(0, first-1)
	}
	if last < ^uint64(0) {
		inside = inside.Remove(last+1, ^uint64(0))
	}
	if len(inside) == 0 || first > last {
		return 1, 0
	}
	return inside.First(), inside.Last()
}
