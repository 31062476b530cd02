// SPDX-License-Identifier: Apache-2.0

package election

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hastate/hastate/internal/clock"
)

const start = clock.Instant(7_000_000_000)

func TestHolderTTL_WaiterTTL(t *testing.T) {
	for _, c := range []struct{ ttl, holder, waiter time.Duration }{
		{0, 0, 0},
		{1, 0, 2},
		{99, 98, 100},
		{100, 99, 101},
		{101, 99, 103},
		{199, 197, 201},
		{600 * time.Millisecond, 594 * time.Millisecond, 606 * time.Millisecond},
		{1200 * time.Millisecond, 1188 * time.Millisecond, 1212 * time.Millisecond},
		{time.Minute, 59400 * time.Millisecond, 60600 * time.Millisecond},
	} {
		if got := HolderTTL(c.ttl); got != c.holder {
			t.Errorf("HolderTTL(%d) = %d, want %d", c.ttl, got, c.holder)
		}
		if got := WaiterTTL(c.ttl); got != c.waiter {
			t.Errorf("WaiterTTL(%d) = %d, want %d", c.ttl, got, c.waiter)
		}
	}
}

// TestTTL_RatesApart: whatever the length, a holder whose clock is as slow as it
// may be has stopped when a leader whose clock is as fast as it may be begins. In
// real time both ends are on their side of ttl, and by less than 2 ns more than
// the rates demand.
func TestTTL_RatesApart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ttl := rapid.Int64Range(1, int64(time.Minute)).Draw(t, "ttl")
		// With d on a clock of rate r, d/r of real time has passed: compare d*100
		// with ttl*(100 +- 1).
		holder, waiter := int64(HolderTTL(time.Duration(ttl))), int64(WaiterTTL(time.Duration(ttl)))
		if holder*RhoInverse > ttl*(RhoInverse-1) {
			t.Fatalf("holder counts %d of %d: with a slow clock that is longer than the lease", holder, ttl)
		}
		if waiter*RhoInverse < ttl*(RhoInverse+1) {
			t.Fatalf("leader counts %d of %d: with a fast clock that is shorter than the lease", waiter, ttl)
		}
		if (holder+1)*RhoInverse <= ttl*(RhoInverse-1) || (waiter-1)*RhoInverse >= ttl*(RhoInverse+1) {
			t.Fatalf("%d of %d and %d waste more than rounding", holder, ttl, waiter)
		}
	})
}

func TestLease_ValidAt(t *testing.T) {
	l := NewLease("g", 7, time.Second, start)
	end := start.Add(990 * time.Millisecond)
	for _, c := range []struct {
		name string
		l    Lease
		at   clock.Instant
		want bool
	}{
		{"at its start", l, start, true},
		{"last instant", l, end - 1, true},
		{"end", l, end, false},
		{"long after", l, end.Add(time.Hour), false},
		{"zero lease", Lease{}, 0, false},
		{"zero lease before its zero", Lease{}, -1, false},
		{"epoch 0", NewLease("g", 0, time.Second, start), start, false},
		{"length 0", NewLease("g", 7, 0, start), start, false},
		{"ended", l.Ended(), start, false},
	} {
		if got := c.l.ValidAt(c.at); got != c.want {
			t.Errorf("%s: ValidAt = %v, want %v", c.name, got, c.want)
		}
	}
	if got := l.ValidUntil(); got != end {
		t.Errorf("ValidUntil = %d, want %d", got, end)
	}
	if got, want := l.FenceAt(150*time.Millisecond), end.Add(-150*time.Millisecond); got != want {
		t.Errorf("FenceAt = %d, want %d", got, want)
	}
	if l.Group() != "g" || l.Epoch() != 7 || l.TTL() != time.Second || l.Over() || !l.Ended().Over() {
		t.Errorf("%+v does not say what it was made of", l)
	}
}

func TestLease_Renewed(t *testing.T) {
	l := NewLease("g", 7, time.Second, start)
	later, latest := start.Add(100*time.Millisecond), start.Add(200*time.Millisecond)
	for _, c := range []struct {
		name string
		got  Lease
		q    clock.Instant
	}{
		{"once", l.Renewed(7, later), later},
		{"in order", l.Renewed(7, later).Renewed(7, latest), latest},
		{"out of order", l.Renewed(7, latest).Renewed(7, later), latest},
		{"twice", l.Renewed(7, later).Renewed(7, later), later},
		{"before the grant", l.Renewed(7, start-1), start},
		{"another epoch", l.Renewed(8, later), start},
		{"an older epoch", l.Renewed(6, later), start},
		{"after it is over", l.Ended().Renewed(7, later), start},
	} {
		if want := c.q.Add(990 * time.Millisecond); c.got.ValidUntil() != want || c.got.Epoch() != 7 {
			t.Errorf("%s: epoch %d valid until %d, want 7 until %d", c.name, c.got.Epoch(), c.got.ValidUntil(), want)
		}
	}
	if l.ValidUntil() != start.Add(990*time.Millisecond) {
		t.Error("Renewed changed its receiver")
	}
}

// TestLease_OverForEver: nothing that comes after the fence makes a lease valid.
func TestLease_OverForEver(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := NewLease("g", 7, time.Second, start).Ended()
		for _, q := range rapid.SliceOf(rapid.Int64Range(0, int64(time.Hour))).Draw(t, "q") {
			l = l.Renewed(7, clock.Instant(q))
			if rapid.Bool().Draw(t, "again") {
				l = l.Ended()
			}
			if !l.Over() || l.ValidAt(clock.Instant(q)) {
				t.Fatalf("a lease that was over is valid again after a renewal at %d", q)
			}
		}
	})
}

// TestLease_NeverShorter: whatever order acknowledgements come in, the end of a
// lease only moves on, and is that of the newest reading.
func TestLease_NeverShorter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := NewLease("g", 7, time.Second, start)
		newest := start
		for _, ms := range rapid.SliceOf(rapid.Int64Range(-100, 10_000)).Draw(t, "ms") {
			q := start.Add(time.Duration(ms) * time.Millisecond)
			before := l.ValidUntil()
			l = l.Renewed(7, q)
			if newest = max(newest, q); l.ValidUntil() < before || l.ValidUntil() != newest.Add(HolderTTL(time.Second)) {
				t.Fatalf("valid until %d, was %d, newest reading %d", l.ValidUntil(), before, newest)
			}
		}
	})
}
