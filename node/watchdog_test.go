// SPDX-License-Identifier: Apache-2.0

package node

import "testing"

// What is seen once, by a process that stood still perhaps, does not count.
func TestRepeated(t *testing.T) {
	var r repeated
	for i, look := range []struct{ now, counts bool }{{true, false}, {false, false}, {true, false}, {true, true}, {true, true}, {false, false}} {
		if got := r.seen(look.now); got != look.counts {
			t.Errorf("look %d: %v", i, got)
		}
	}
}
