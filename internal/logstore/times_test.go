// SPDX-License-Identifier: Apache-2.0

package logstore

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"

	"github.com/hastate/hastate/internal/clock"
)

func TestStoredAtIsTheTimeOfTheCallThatStoredIt(t *testing.T) {
	eachKind(t, testStoredAtIsTheTimeOfTheCallThatStoredIt)
}

func testStoredAtIsTheTimeOfTheCallThatStoredIt(t *testing.T, kind Kind) {
	t.Helper()
	f := &script{}
	b := open(t, Options{Kind: kind, Fault: f})
	at1 := b.tick()
	b.put(1, 1, 3)
	at2 := b.tick()
	// The time is that of the begin of the write and is known before its end:
	// nobody can see the entry earlier.
	f.set(func(string) error {
		b.storedAt(4, at2)
		b.clock.Advance(time.Minute)
		return nil
	})
	b.put(1, 4, 4)
	b.storedAt(1, at1)
	b.storedAt(3, at1)
	b.storedAt(4, at2)
}

func TestStoredAtOfAnUnknownIndexIsNow(t *testing.T) { eachKind(t, testStoredAtOfAnUnknownIndexIsNow) }

func testStoredAtOfAnUnknownIndexIsNow(t *testing.T, kind Kind) {
	t.Helper()
	b := open(t, Options{Kind: kind})
	b.put(1, 1, 2)
	b.put(1, 10, 10) // 3..9 were never stored, and no snapshot covers them
	now := b.tick()
	b.storedAt(11, now)
	b.storedAt(5, now)
}

func TestStoredAtAfterARestartIsTheRestart(t *testing.T) {
	eachKind(t, testStoredAtAfterARestartIsTheRestart)
}

func testStoredAtAfterARestartIsTheRestart(t *testing.T, kind Kind) {
	t.Helper()
	b := open(t, Options{Kind: kind})
	b.put(1, 1, 3)
	now := b.tick()
	b.reopen()
	b.tick()
	b.storedAt(1, now)
	b.storedAt(3, now)
}

func TestStoredAtOfATruncatedAndRewrittenEntryIsTheRewrite(t *testing.T) {
	eachKind(t, testStoredAtOfATruncatedAndRewrittenEntryIsTheRewrite)
}

func testStoredAtOfATruncatedAndRewrittenEntryIsTheRewrite(t *testing.T, kind Kind) {
	t.Helper()
	b := open(t, Options{Kind: kind})
	at1 := b.tick()
	b.put(1, 1, 5)
	b.del(4, 5)
	b.storedAt(3, at1)
	b.storedAt(4, b.tick())
	at2 := b.tick()
	b.put(2, 4, 4)
	b.tick()
	b.storedAt(3, at1)
	b.storedAt(4, at2)
}

func TestStoredAtOfAnOverwrittenEntryIsTheOverwrite(t *testing.T) {
	eachKind(t, testStoredAtOfAnOverwrittenEntryIsTheOverwrite)
}

func testStoredAtOfAnOverwrittenEntryIsTheOverwrite(t *testing.T, kind Kind) {
	t.Helper()
	b := open(t, Options{Kind: kind})
	at1 := b.tick()
	b.put(1, 1, 5)
	at2 := b.tick()
	b.put(2, 3, 3)
	b.tick()
	b.storedAt(2, at1)
	b.storedAt(3, at2)
	b.storedAt(5, at2) // raised with it: an upper bound, and times rise with the index
}

func TestStoredAtSurvivesACompaction(t *testing.T) { eachKind(t, testStoredAtSurvivesACompaction) }

func testStoredAtSurvivesACompaction(t *testing.T, kind Kind) {
	t.Helper()
	b := open(t, Options{Kind: kind})
	at1 := b.tick()
	b.put(1, 1, 5)
	b.tick()
	b.del(1, 4)
	b.storedAt(2, at1)
	b.storedAt(5, at1)
	at2 := b.tick()
	b.del(1, 5) // nothing is left: a fixed time, so that a lease still ends
	b.tick()
	b.storedAt(2, at2)
}

func TestStoredAtOfWhatASnapshotCoversIsTheInstall(t *testing.T) {
	eachKind(t, testStoredAtOfWhatASnapshotCoversIsTheInstall)
}

func testStoredAtOfWhatASnapshotCoversIsTheInstall(t *testing.T, kind Kind) {
	t.Helper()
	b := open(t, Options{Kind: kind})
	b.put(1, 1, 5)
	now := b.tick()
	b.SnapshotInstalled(20)
	b.tick()
	b.storedAt(3, now)
	b.storedAt(20, now)
	b.storedAt(21, b.clock.Now())
	// Entries of the state that come through the log later count from then.
	later := b.tick()
	b.put(1, 15, 16)
	b.storedAt(14, now)
	b.storedAt(15, later)
}

// TestStoredAtIsNeverEarlyAndSoonExact drives times with a tiny bound against the
// true times: never earlier, rising with the index, bounded in memory, and late by
// at most 1/coarseness of the age as long as the clock moves.
func TestStoredAtIsNeverEarlyAndSoonExact(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		// Without a bound on the spans, what is late is what the rules raise.
		exact, coarse := times{max: 1 << 30}, times{max: 2048}
		truth := map[uint64]clock.Instant{}
		now, last := clock.Instant(1), uint64(0)
		exact.reset(0, now)
		coarse.reset(0, now)
		steps := rapid.IntRange(1, 12000).Draw(rt, "steps")
		shape := rapid.SampledFrom([]string{"append", "append", "mixed", "frozen"}).Draw(rt, "shape")
		seed := rapid.Uint64().Draw(rt, "seed")
		next := func(n uint64) uint64 { // cheap draws: rapid's are too many here
			seed = seed*6364136223846793005 + 1442695040888963407
			return (seed >> 33) % n
		}
		for range steps {
			if shape != "frozen" {
				now = now.Add(time.Duration(next(1_000_000)))
			}
			first := last + 1
			if shape == "mixed" && last > 0 && next(20) == 0 {
				first = last - next(min(last, 30))
				for i := first; i <= last; i++ {
					delete(truth, i)
				}
				exact.cut(first)
				coarse.cut(first)
			}
			last = first + next(3)
			for i := first; i <= last; i++ {
				truth[i] = now
			}
			exact.stored(first, last, now)
			coarse.stored(first, last, now)
		}
		if len(coarse.spans) > coarse.max {
			rt.Fatalf("%d spans", len(coarse.spans))
		}
		before := clock.Instant(0)
		for i := uint64(1); i <= last; i++ {
			got, want := coarse.at(i, now), truth[i]
			if got < want || got < before {
				rt.Fatalf("entry %d: %d, stored at %d, the one before it %d", i, got, want, before)
			}
			if late := got.Sub(exact.at(i, now)); shape != "frozen" && late > now.Sub(got)/coarseness {
				rt.Fatalf("entry %d of age %v is %v late", i, now.Sub(want), late)
			}
			before = got
		}
	})
}

func TestMemoryOfTimesIsBoundedEvenByGaps(t *testing.T) {
	tm := times{max: 16}
	tm.reset(0, 1)
	for i := uint64(1); i < 1000; i++ {
		tm.stored(10*i, 10*i, clock.Instant(i))
		if len(tm.spans) > tm.max {
			t.Fatalf("%d spans", len(tm.spans))
		}
	}
	if got := tm.at(10, 5000); got != 5000 {
		t.Errorf("a forgotten entry counts as stored at %d", got)
	}
	if got := tm.at(9990, 5000); got != 999 {
		t.Errorf("the newest entry counts as stored at %d", got)
	}
}

func TestAClockThatGoesBackDoesNotMakeEntriesOlder(t *testing.T) {
	tm := times{max: 16}
	tm.reset(0, 100)
	tm.stored(1, 1, 50)
	if got := tm.at(1, 50); got != 100 {
		t.Errorf("stored at %d", got)
	}
	if got := tm.at(9, 50); got != 100 {
		t.Errorf("unknown entry stored at %d", got)
	}
}

// TestForgetDivergent covers hashicorp/raft#697: the log of a node that receives a
// snapshot may disagree with it.
func TestForgetDivergent(t *testing.T) { eachKind(t, testForgetDivergent) }

func testForgetDivergent(t *testing.T, kind Kind) {
	t.Helper()
	get := func(t *testing.T, b *bench, index uint64) *raft.Log {
		t.Helper()
		var l raft.Log
		if err := b.GetLog(index, &l); err != nil {
			t.Fatalf("entry %d: %v", index, err)
		}
		return &l
	}
	cases := map[string]struct {
		have        [3]uint64 // term, first, last
		index, term uint64
		first, last uint64
	}{
		"the same entry: all before it agree":      {[3]uint64{3, 1, 9}, 5, 3, 1, 9},
		"another term: marked, the rest is raft's": {[3]uint64{2, 1, 9}, 5, 3, 5, 9},
		"another term at the last index":           {[3]uint64{2, 1, 5}, 5, 3, 5, 5},
		"behind the snapshot: nothing is trusted":  {[3]uint64{2, 1, 4}, 5, 3, 0, 0},
		"compacted beyond the snapshot":            {[3]uint64{2, 6, 9}, 5, 3, 5, 9},
		"empty":                                    {[3]uint64{2, 1, 0}, 5, 3, 0, 0},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			b := open(t, Options{Kind: kind})
			b.put(c.have[0], c.have[1], c.have[2])
			for range 2 { // doing it twice does no harm
				if err := b.ForgetDivergent(c.index, c.term); err != nil {
					t.Fatal(err)
				}
				b.bounds(c.first, c.last)
				if c.last >= c.index {
					if l := get(t, b, c.index); l.Term != c.term {
						t.Errorf("entry %d has term %d", c.index, l.Term)
					}
				}
				if c.last > c.index {
					if l := get(t, b, c.last); l.Term != c.have[0] {
						t.Errorf("entry %d, which raft still counts on, has term %d", c.last, l.Term)
					}
				}
				b.reopen()
			}
		})
	}
}

// TestCompactionLeavesTheJointOfASnapshot: right after an install raft compacts the
// log up to and including the entry that it is about to need.
func TestCompactionLeavesTheJointOfASnapshot(t *testing.T) {
	eachKind(t, testCompactionLeavesTheJointOfASnapshot)
}

func testCompactionLeavesTheJointOfASnapshot(t *testing.T, kind Kind) {
	t.Helper()
	b := open(t, Options{Kind: kind})
	b.put(2, 1, 20)
	if err := b.ForgetDivergent(10, 3); err != nil {
		t.Fatal(err)
	}
	b.del(10, 10)
	b.bounds(10, 20)
	b.del(1, 12) // a later compaction does not stop at it
	b.bounds(13, 20)

	b = open(t, Options{Kind: kind})
	b.put(2, 1, 20)
	if err := b.ForgetDivergent(10, 3); err != nil {
		t.Fatal(err)
	}
	b.del(11, 20) // the conflict is cleared, and the log goes on
	b.put(3, 11, 12)
	b.del(1, 10)
	b.bounds(11, 12)
}

func TestAnEntryThatContradictsTheSnapshotIsRefused(t *testing.T) {
	eachKind(t, testAnEntryThatContradictsTheSnapshotIsRefused)
}

func testAnEntryThatContradictsTheSnapshotIsRefused(t *testing.T, kind Kind) {
	t.Helper()
	b := open(t, Options{Kind: kind})
	b.put(2, 1, 9)
	b.Base(10, 3)
	b.put(3, 10, 11) // what the snapshot covers may come again
	if err := b.StoreLog(entry(4, 10)); err == nil {
		t.Fatal("an entry of a history without this node's snapshot was stored")
	}
	b.reopen()
	b.Base(8, 3) // a received snapshot replaces the one before it
	b.put(4, 9, 10)
}
