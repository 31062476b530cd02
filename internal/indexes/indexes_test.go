// SPDX-License-Identifier: Apache-2.0

package indexes

import "testing"

// FuzzSet keeps the set of indexes against a map.
func FuzzSet(f *testing.F) {
	f.Add([]byte{1, 1, 5, 0, 3, 3, 1, 6, 9, 0, 0, 255})
	f.Fuzz(func(t *testing.T, steps []byte) {
		var r Set
		have := map[uint64]bool{}
		for ; len(steps) >= 3; steps = steps[3:] {
			first, last := uint64(steps[1]), uint64(steps[2])
			if first > last {
				first, last = last, first
			}
			if steps[0]%2 == 1 {
				r = r.Add(first, last)
			} else {
				r = r.Remove(first, last)
			}
			for i := first; i <= last; i++ {
				have[i] = steps[0]%2 == 1
			}
		}
		var n uint64
		for i := range uint64(257) {
			if r.Contains(i) != have[i] {
				t.Fatalf("%v and %d: %v", r, i, have[i])
			}
			if have[i] {
				n++
			}
		}
		for i := 1; i < len(r); i++ {
			if r[i-1].Last+1 >= r[i].First {
				t.Fatalf("%v is not in order", r)
			}
		}
		if r.Count() != n {
			t.Fatalf("%v counts %d, there are %d", r, r.Count(), n)
		}
	})
}
