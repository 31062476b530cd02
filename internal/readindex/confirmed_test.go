// SPDX-License-Identifier: Apache-2.0

package readindex

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate/internal/clock"
)

func TestLeader_Confirmed(t *testing.T) {
	w := newWorld("n1", "n2", "n3")
	l := newLeader(t, w, time.Second)
	want := func(at clock.Instant, ok bool, when string) {
		t.Helper()
		if a, o := l.Confirmed(); a != at || o != ok {
			t.Fatalf("%s: %v, %v, want %v, %v", when, a, o, at, ok)
		}
	}
	want(0, false, "nobody has answered")
	first := w.clock.Now()
	w.answer("n2", first)
	want(first, true, "a majority has answered just now")
	// Cut off, or paused: it still takes itself for the leader.
	w.clock.Advance(time.Minute)
	want(first, true, "a majority has answered a minute ago")
	second := w.clock.Now().Add(-time.Second)
	w.answer("n3", second)
	want(second, true, "the answer to what was sent a second ago")
	w.locked(func() { w.barrier = 0 })
	want(0, false, "nothing of its own term is applied")
	w.locked(func() { w.barrier = 3; w.state = raft.Follower })
	want(0, false, "it does not lead")
	w.locked(func() { w.state = raft.Leader })
	want(second, true, "it leads")
}
