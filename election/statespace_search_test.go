// SPDX-License-Identifier: Apache-2.0

package election

import (
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"testing"
	"time"
)

// step is one action of a model: what happens, and to whom. Its meaning is the
// model's.
type step struct{ kind, a, b, c uint8 }

// model is a transition system with properties. S must be comparable byte by
// byte: two states are the same if and only if they are ==.
type model[S comparable] struct {
	start S
	// next calls emit for every action that is possible in s. broken names the
	// property that the action itself violates, or is empty.
	next func(s *S, emit func(do step, t *S, broken string))
	// check names the property that a state violates, or returns "".
	check func(s *S) string
	// tell puts an action taken in s into words.
	tell func(do step, s *S) string
}

// found is what a search found.
type found struct {
	states int
	depth  int
	// exhausted: there is no reachable state that was not visited.
	exhausted bool
	// broken is the violated property, trace the shortest way to it.
	broken string
	trace  []string
}

// visit is how a state was first reached.
type visit struct {
	parent int32
	do     step
}

// search is a breadth-first search, so that a counter-example is a shortest one.
type search[S comparable] struct {
	m    model[S]
	seed maphash.Seed
	// chunks hold the visited states in order, so that none is moved when they grow.
	chunks [][]S
	count  int
	visits []visit
	// table is an open-addressing hash table of indexes into states, -1 is free.
	table []int32
}

// explore visits at most limit states of m, and stops at the first violation.
func explore[S comparable](m model[S], limit int) found {
	x := &search[S]{m: m, seed: maphash.MakeSeed(), table: emptyTable(1 << 16)}
	x.add(&m.start, visit{parent: -1})
	if broken := m.check(&m.start); broken != "" {
		return found{states: 1, broken: broken}
	}
	depth, levelEnd := 0, 1
	for at := 0; at < x.count; at++ {
		if at == levelEnd {
			depth, levelEnd = depth+1, x.count
		}
		if x.count >= limit {
			return found{states: x.count, depth: depth}
		}
		from := x.state(at)
		var broken string
		var last step
		m.next(from, func(do step, t *S, bad string) {
			if broken != "" {
				return
			}
			if x.add(t, visit{parent: int32(at), do: do}) && bad == "" {
				bad = m.check(t)
			}
			broken, last = bad, do
		})
		if broken != "" {
			return found{states: x.count, depth: depth + 1, broken: broken, trace: x.trace(at, last)}
		}
	}
	return found{states: x.count, depth: depth, exhausted: true}
}

func emptyTable(n int) []int32 {
	t := make([]int32, n)
	for i := range t {
		t[i] = -1
	}
	return t
}

// add stores a state and reports whether it is new.
func (x *search[S]) add(s *S, v visit) bool {
	if 2*x.count >= len(x.table) {
		x.table = emptyTable(2 * len(x.table))
		for i := range x.count {
			x.table[x.slot(x.state(i))] = int32(i)
		}
	}
	at := x.slot(s)
	if x.table[at] >= 0 {
		return false
	}
	if x.count%chunk == 0 {
		x.chunks = append(x.chunks, make([]S, 0, chunk))
	}
	last := &x.chunks[len(x.chunks)-1]
	*last, x.visits = append(*last, *s), append(x.visits, v)
	x.table[at] = int32(x.count)
	x.count++
	return true
}

// chunk is how many states are allocated at a time.
const chunk = 1 << 13

func (x *search[S]) state(at int) *S { return &x.chunks[at/chunk][at%chunk] }

// slot is where s is in the table, or the free place where it belongs.
func (x *search[S]) slot(s *S) int {
	mask := len(x.table) - 1
	at := int(maphash.Comparable(x.seed, *s)) & mask
	for x.table[at] >= 0 && *x.state(int(x.table[at])) != *s {
		at = (at + 1) & mask
	}
	return at
}

// trace tells the way to a state, and the step from there, in words.
func (x *search[S]) trace(at int, last step) []string {
	lines := []string{x.m.tell(last, x.state(at))}
	for ; x.visits[at].parent >= 0; at = int(x.visits[at].parent) {
		lines = append(lines, x.m.tell(x.visits[at].do, x.state(int(x.visits[at].parent))))
	}
	slices.Reverse(lines)
	for i := range lines {
		lines[i] = fmt.Sprintf("%2d. %s", i+1, lines[i])
	}
	return lines
}

// refute fails the test unless a search violates the wanted property, and logs
// the shortest way there.
func refute(t *testing.T, f found, want string) {
	t.Helper()
	if f.broken == "" {
		t.Fatalf("no counter-example in %d states (exhausted: %v): the model cannot tell this rule from the right one", f.states, f.exhausted)
	}
	t.Logf("refuted after %d states: %s\n%s", f.states, f.broken, strings.Join(f.trace, "\n"))
	if !strings.HasPrefix(f.broken, want) {
		t.Fatalf("refuted by %q, want %q", f.broken, want)
	}
}

// hold fails the test if a model violates anything, or is not done with limit
// states. The race detector makes the search ten times slower and finds nothing in
// it: it gets the beginning only.
func hold[S comparable](t *testing.T, m model[S], limit int) found {
	t.Helper()
	begun := time.Now()
	if raceEnabled {
		limit = 20_000
	}
	f := explore(m, limit)
	if f.broken != "" {
		t.Fatalf("%s after %d states:\n%s", f.broken, f.states, strings.Join(f.trace, "\n"))
	}
	if !f.exhausted && !raceEnabled {
		t.Fatalf("%d states and no end: the bounds are too wide", f.states)
	}
	t.Logf("%d states, depth %d, exhausted %v, %v", f.states, f.depth, f.exhausted, time.Since(begun).Round(time.Millisecond))
	return f
}
