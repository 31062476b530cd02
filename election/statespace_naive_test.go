// SPDX-License-Identifier: Apache-2.0

package election

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hastate/hastate/internal/clock"
)

// The naive rule: the leader's instance is primary. It may act for a heartbeat
// timeout after a VerifyLeader that succeeded, since the majority that answered
// refuses its votes for as long; so a new leader promotes as soon as its first
// VerifyLeader has succeeded. The model is kind to it: both sides allow for the
// rate of clocks, and the lease counts from the call of VerifyLeader, not from its
// success. Time, clocks, Lease and the check of G1 are those of the right rule.

// naive is the rule, with its holes open or closed.
type naive struct {
	name string
	// staleAcks: an answer to a heartbeat that was sent before VerifyLeader was
	// called counts. freeVote: a leader that steps down votes at once, whatever its
	// followers have promised. forgets: a restarted node has promised nothing.
	// transfer: a TimeoutNow, which may be late, makes a candidate whom the promises do
	// not bind.
	staleAcks, freeVote, forgets, transfer bool
}

// naiveNode is one node under the naive rule. Ages are in ticks up to naiveStale.
type naiveNode struct {
	term  uint8
	leads bool
	// heard: age of the newest heartbeat, as of which the node refuses votes.
	heard uint8
	// verify: 1 + age of a VerifyLeader call under way, 0 if there is none.
	verify uint8
	// answer of each node that is under way to this leader: 0 none, 1 to a heartbeat
	// sent before the call, 2 to a later one.
	answer [nodes]uint8
	// lease: 1 + age of the reading that the lease of the instance counts from.
	lease uint8
	// timeoutNow is under way to this node.
	timeoutNow bool
}

type naiveState struct {
	node [nodes]naiveNode
	// terms are numbered in the order of elections, so the newest is enough.
	term                uint8
	restarts, transfers uint8
}

const (
	naiveStale = 4
	naiveTerms = 3
	naiveTTL   = 302 * time.Millisecond
)

var naiveRate = [nodes]int64{99, 101, 101}

func naiveThen(i int, age uint8) clock.Instant {
	return clock.Instant((1000 - int64(age)) * naiveRate[i] * int64(time.Millisecond))
}

const (
	naiveTick uint8 = iota
	naiveHeartbeat
	naiveVerify
	naiveAnswer
	naiveStepDown
	naiveElect
	naiveRestart
	naiveTransfer
	naiveTakeOver
)

// begin: A leads, and everybody has just heard from it.
func (r naive) begin() naiveState {
	s := naiveState{term: 1, restarts: 1, transfers: 1}
	for i := range s.node {
		s.node[i].term = 1
	}
	s.node[0].leads, s.node[0].heard = true, r.ownPromise(0)
	return s
}

// ownPromise is how long ago a leader counts as having promised its vote to itself.
func (r naive) ownPromise(age uint8) uint8 {
	if r.freeVote {
		return naiveStale
	}
	return age
}

// refuses reports whether node i keeps its vote for the leader it has heard from.
func (s *naiveState) refuses(i uint8) bool {
	heard := naiveThen(int(i), s.node[i].heard)
	return naiveThen(int(i), 0) <= heard.Add(WaiterTTL(naiveTTL))
}

func (r naive) next(s *naiveState, emit func(step, *naiveState, string)) {
	var t naiveState
	try := func(do step) {
		t = *s
		if r.act(&t, do) {
			emit(do, &t, "")
		}
	}
	try(step{kind: naiveTick})
	for a := range uint8(nodes) {
		for _, kind := range []uint8{naiveVerify, naiveStepDown, naiveRestart} {
			try(step{kind: kind, a: a})
		}
		for b := range uint8(nodes) {
			if a == b {
				continue
			}
			for _, kind := range []uint8{naiveHeartbeat, naiveAnswer, naiveElect, naiveTransfer, naiveTakeOver} {
				try(step{kind: kind, a: a, b: b})
			}
		}
	}
}

func (r naive) act(s *naiveState, do step) bool {
	a, b := &s.node[do.a], &s.node[do.b]
	switch do.kind {
	case naiveTick:
		s.tick()
	case naiveHeartbeat:
		if !a.leads || b.term > a.term {
			return false
		}
		if b.term < a.term || b.leads {
			b.stepDown(a.term)
		}
		b.heard, a.answer[do.b] = 0, 2
	case naiveVerify:
		if !a.leads || a.verify > 0 {
			return false
		}
		a.verify = 1
		for i := range a.answer {
			a.answer[i] = min(a.answer[i], 1)
		}
	case naiveAnswer:
		return r.answer(a, do.b)
	case naiveStepDown:
		// For example because its disk fails; the instance keeps its lease.
		if !a.leads {
			return false
		}
		a.stepDown(a.term)
	case naiveElect:
		if s.refuses(do.a) || s.refuses(do.b) {
			return false
		}
		return r.elect(s, a, b)
	case naiveRestart:
		if s.restarts == 0 {
			return false
		}
		s.restarts--
		*a = naiveNode{term: a.term}
		if r.forgets {
			a.heard = naiveStale
		}
	case naiveTransfer:
		if !a.leads || !r.transfer || s.transfers == 0 {
			return false
		}
		s.transfers--
		b.timeoutNow = true
	case naiveTakeOver:
		if !a.timeoutNow {
			return false
		}
		a.timeoutNow = false
		return r.elect(s, a, b)
	}
	return true
}

// answer lets the answer of a node reach leader a.
func (r naive) answer(a *naiveNode, from uint8) bool {
	kind := a.answer[from]
	if kind == 0 {
		return false
	}
	a.answer[from] = 0
	if a.verify > 0 && (kind == 2 || r.staleAcks) {
		a.lease, a.heard, a.verify = a.verify, r.ownPromise(a.verify-1), 0
	}
	return true
}

func (n *naiveNode) stepDown(term uint8) {
	n.term, n.leads, n.verify, n.answer = term, false, 0, [nodes]uint8{}
}

// elect makes a leader of a new term with the vote of b.
func (r naive) elect(s *naiveState, a, b *naiveNode) bool {
	if a.leads || s.term == naiveTerms {
		return false
	}
	s.term++
	if b.leads {
		b.stepDown(s.term)
	}
	a.stepDown(s.term)
	a.leads, b.term = true, s.term
	a.heard, b.heard = r.ownPromise(0), 0
	return true
}

func (s *naiveState) tick() {
	for i := range s.node {
		n := &s.node[i]
		n.heard = min(n.heard+1, naiveStale)
		for _, age := range []*uint8{&n.verify, &n.lease} {
			if *age > 0 {
				*age = min(*age+1, 1+naiveStale)
			}
		}
	}
}

func (r naive) check(s *naiveState) string {
	holder := -1
	for i := range s.node {
		n := &s.node[i]
		if n.lease == 0 || !NewLease("g", uint64(n.term), naiveTTL, naiveThen(i, n.lease-1)).ValidAt(naiveThen(i, 0)) {
			continue
		}
		if holder >= 0 {
			return fmt.Sprintf("G1: both %s and %s hold a valid lease", name(uint8(holder)), name(uint8(i)))
		}
		holder = i
	}
	return ""
}

func (r naive) tell(do step, s *naiveState) string {
	a, b := name(do.a), name(do.b)
	switch do.kind {
	case naiveTick:
		return "a tick passes"
	case naiveHeartbeat:
		return fmt.Sprintf("%s hears a heartbeat of leader %s and answers; the answer is under way", b, a)
	case naiveVerify:
		return "leader " + a + " reads its clock and calls VerifyLeader"
	case naiveAnswer:
		if n := &s.node[do.a]; n.verify > 0 {
			return fmt.Sprintf("the answer of %s reaches %s (its VerifyLeader was called %d ticks ago)%s", b, a, n.verify-1, succeeds[n.answer[do.b] == 2 || r.staleAcks])
		}
		return fmt.Sprintf("the answer of %s reaches %s", b, a)
	case naiveStepDown:
		return "leader " + a + " steps down; its instance keeps its lease"
	case naiveElect:
		return fmt.Sprintf("%s is elected with the vote of %s", a, b)
	case naiveRestart:
		return a + " restarts"
	case naiveTransfer:
		return fmt.Sprintf("leader %s sends TimeoutNow to %s", a, b)
	default:
		return fmt.Sprintf("TimeoutNow reaches %s: it is elected with the vote of %s, whatever that has promised", a, b)
	}
}

var succeeds = map[bool]string{true: ": it succeeds, the instance of the leader is primary", false: ", which was sent before that"}

func (r naive) model() model[naiveState] {
	return model[naiveState]{start: r.begin(), next: r.next, check: r.check, tell: r.tell}
}

// TestStateSpace_NaiveRuleRefuted finds two primaries under the naive rule, and
// under each of its holes alone. With all holes closed it finds none: it is the
// holes that the model sees. (Raft closes none of them.)
func TestStateSpace_NaiveRuleRefuted(t *testing.T) {
	asItIs := naive{name: "as it is", staleAcks: true, freeVote: true, forgets: true}
	for _, r := range []naive{
		asItIs,
		{name: "stale acknowledgements", staleAcks: true},
		{name: "the leader's own vote", freeVote: true},
		{name: "a restart forgets the promise", forgets: true},
		{name: "a transfer", transfer: true},
	} {
		t.Run(r.name, func(t *testing.T) {
			f := explore(r.model(), 2_000_000)
			refute(t, f, "G1")
			if r == asItIs {
				fmt.Printf("naive rule refuted: %s after\n%s\n", f.broken, strings.Join(f.trace, "\n"))
			}
		})
	}
	t.Run("no hole", func(t *testing.T) { hold(t, naive{}.model(), 2_000_000) })
}
