// SPDX-License-Identifier: Apache-2.0

package election

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"
)

// slowHolder is a lease of a slow clock under leaders with fast ones, with a length
// at which neither side may leave out its allowance for that: at 3 ticks the holder
// stands at 297 ms and a leader at 303 ms.
var slowHolder = config{
	name: "slow holder, fast leaders", rate: [nodes]int64{99, 101, 101}, ttl: 302 * time.Millisecond, stale: 4,
	terms: 2, entries: 4, renewals: 1, slots: 1, candidates: 2, holder: 1,
}

// short is the same with a lease of 2 ticks, which leaves room for more actions.
// 199 ms is the shortest with which a fast leader may grant after 2 ticks.
func short(name string, change func(*config)) config {
	c := slowHolder
	c.name, c.ttl, c.stale = name, 199*time.Millisecond, 3
	change(&c)
	return c
}

// TestStateSpace_LogIsTheLease visits every state of small configurations: see
// statespace_model_test.go. What a configuration is small in is its name.
func TestStateSpace_LogIsTheLease(t *testing.T) {
	configs := []config{
		slowHolder,
		short("an empty group", func(c *config) { c.holder = 0 }),
		short("two renewals at a time", func(c *config) { c.slots, c.renewals, c.candidates = 2, 2, 1 }),
		short("three terms", func(c *config) { c.terms, c.holder = 3, 2 }),
		short("a restart", func(c *config) { c.restarts, c.entries = 1, 3 }),
		short("a snapshot", func(c *config) { c.installs, c.entries = 1, 3 }),
		short("handovers", func(c *config) { c.handovers = true }),
	}
	var total atomic.Int64
	t.Run("configurations", func(t *testing.T) {
		for _, c := range configs {
			if testing.Short() {
				c.entries = 3
			}
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				if !c.agesSuffice() {
					t.Fatal("ages are cut off too early")
				}
				total.Add(int64(hold(t, c.model(), 4_000_000).states))
			})
		}
	})
	fmt.Printf("lease protocol: %d distinct states visited, no violation\n", total.Load())
	if !testing.Short() && !raceEnabled && !t.Failed() && total.Load() < 1_000_000 {
		t.Fatalf("only %d states: the model has lost actions", total.Load())
	}
}

func TestStateSpace_MutantsRefuted(t *testing.T) {
	const g1 = "G1"
	for _, m := range []struct {
		name  string
		want  string
		alter func(*config)
	}{
		{"no wait for the lease", g1, func(c *config) { c.rules.noWait = true }},
		{"grant compares no renewal", g1, func(c *config) { c.rules.epochCAS = true }},
		{"no barrier", "view", func(c *config) { c.rules.noBarrier = true }},
		{"renewal counts before commit", g1, func(c *config) { c.rules.earlyAck = true }},
		{"no consent, q read at the grant", g1, func(c *config) { c.rules.lateGrantQ = true }},
		{"q read at the acknowledgement", g1, func(c *config) { c.rules.lateRenewalQ = true }},
		{"nomination not compared", g1, func(c *config) { c.rules.anyNomination = true }},
		{"handover without fence", g1, func(c *config) { c.rules.unfencedHandover, c.handovers = true, true }},
		{"fence is not final", g1, func(c *config) { c.rules.revive = true }},
		{"released by others", g1, func(c *config) { c.rules.foreignRelease = true }},
		{"holder ignores the clock rate", g1, func(c *config) { c.rules.holderRate, c.ttl = true, 299*time.Millisecond }},
		{"leader ignores the clock rate", g1, func(c *config) { c.rules.leaderRate = true }},
		{"restart takes entries for old", g1, func(c *config) { c.rules.restartOld, c.restarts = true, 1 }},
	} {
		t.Run(m.name, func(t *testing.T) {
			c := slowHolder
			c.only = m.want
			m.alter(&c)
			refute(t, explore(c.model(), 3_000_000), m.want)
		})
	}
}

// TestStateSpace_BarrierAndComparison says what each of two guards is for. Without
// the barrier a leader decides on the past (the mutant above), but grants nobody
// twice, as the state machine refuses a Grant on an older renewal.
func TestStateSpace_BarrierAndComparison(t *testing.T) {
	c := short("without the barrier", func(c *config) { c.rules.noBarrier, c.only, c.entries = true, "G1", 3 })
	hold(t, c.model(), 2_000_000)
}
