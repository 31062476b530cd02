// SPDX-License-Identifier: Apache-2.0

package check

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

// defect is what a store does wrong now and then.
type defect int

const (
	none defect = iota
	loseWrite
	staleRead
	doubleAppend
	doublePut
	ignoreCondition
	loseEvent
)

// cell is one session of the store.
type cell struct {
	value    string
	revision uint64
}

// store is a small correct store with the rules of SessionService, but for its
// defect, and with a clock of its own.
type store struct {
	defect defect

	mu       sync.Mutex // guards all below
	rng      *rand.Rand
	now      clock.Instant
	revision uint64
	cells    map[string]*cell
	older    map[string]*cell
	dark     map[string]bool
	late     []record.Op
	wrong    int
	ops      []record.Op
	events   []record.SessionEvent
}

func newStore(seed uint64, d defect) *store {
	s := &store{defect: d, rng: rand.New(rand.NewPCG(seed, 1)), cells: map[string]*cell{}, older: map[string]*cell{}, dark: map[string]bool{}}
	s.events = []record.SessionEvent{{Watcher: 1, Group: "g", Resync: true}}
	return s
}

// amiss reports whether to do wrong now.
func (s *store) amiss(d defect) bool {
	if s.defect != d || s.rng.IntN(3) != 0 {
		return false
	}
	s.wrong++
	return true
}

func (s *store) tick() clock.Instant {
	runtime.Gosched() // clients get in each other's way
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now++
	return s.now
}

// do does one operation and records it. Now and then it keeps its outcome to
// itself and does it never, now or later.
func (s *store) do(op record.Op) record.Op {
	op.Group, op.Call = "g", s.tick()
	s.mu.Lock()
	if len(s.late) > 0 && s.rng.IntN(3) == 0 {
		wrong := s.wrong
		s.apply(&s.late[0])
		s.late, s.wrong = s.late[1:], wrong // nobody is told: it may stay hidden
	}
	unknown := op.Kind != record.Get && s.rng.IntN(12) == 0
	switch how := s.rng.IntN(3); {
	case unknown && how == 0:
	case unknown && how == 1:
		s.late = append(s.late, op)
	default:
		s.apply(&op)
	}
	s.mu.Unlock()
	if unknown {
		op.Outcome, op.Revision, op.EndOffset, op.Found = record.Unknown, 0, 0, false
	}
	op.Return = s.tick()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ops = append(s.ops, op)
	return op
}

// set writes a cell and tells it. mu is held.
func (s *store) set(key, value string) uint64 {
	s.revision++
	s.older[key] = s.cells[key]
	s.cells[key] = &cell{value, s.revision}
	s.tell(record.SessionEvent{Key: key, Value: value, Revision: s.revision})
	return s.revision
}

// tell tells the watch. An event that is lost before another one of its session
// cannot be told from one that was merged: a session that is passed over once is
// passed over for ever. mu is held.
func (s *store) tell(e record.SessionEvent) {
	if s.dark[e.Key] || s.amiss(loseEvent) {
		s.dark[e.Key] = true
		return
	}
	e.Watcher, e.Group = 1, "g"
	s.events = append(s.events, e)
}

// apply does an operation. mu is held.
func (s *store) apply(op *record.Op) {
	cur := s.cells[op.Key]
	exists := cur != nil
	if !exists {
		cur = &cell{}
	}
	op.Outcome = record.OK
	refuse := func() { op.Outcome, op.Revision, op.EndOffset = record.Refused, cur.revision, uint64(len(cur.value)) }
	match := op.IfRevision == 0 || cur.revision == op.IfRevision
	switch op.Kind {
	case record.Get:
		if old := s.older[op.Key]; old != nil && exists && old != cur && s.amiss(staleRead) {
			cur = old
		}
		op.Found, op.Value, op.Revision = exists, cur.value, cur.revision
	case record.Delete:
		if exists && !match {
			refuse()
			return
		}
		if op.Found = exists; exists {
			s.revision++
			delete(s.cells, op.Key)
			s.tell(record.SessionEvent{Key: op.Key, Deleted: true, Revision: s.revision})
		}
	case record.Append:
		s.append(op, cur)
	default:
		if op.Kind == record.Create && exists || !match && !s.amiss(ignoreCondition) {
			refuse()
			return
		}
		if s.amiss(loseWrite) {
			s.revision++
			op.Revision = s.revision
			return
		}
		if op.Revision = s.set(op.Key, op.Value); s.amiss(doublePut) {
			s.set(op.Key, op.Value)
		}
	}
}

func (s *store) append(op *record.Op, cur *cell) {
	end := uint64(len(cur.value))
	if op.Offset != end {
		if op.Offset < end && strings.HasPrefix(cur.value[op.Offset:], op.Value) {
			op.Revision, op.EndOffset = cur.revision, end
			return
		}
		op.Outcome, op.Revision, op.EndOffset = record.Refused, cur.revision, end
		return
	}
	if s.amiss(loseWrite) {
		s.revision++
		op.Revision, op.EndOffset = s.revision, end+uint64(len(op.Value))
		return
	}
	op.Revision = s.set(op.Key, cur.value+op.Value)
	op.EndOffset = end + uint64(len(op.Value))
	if s.amiss(doubleAppend) {
		s.set(op.Key, cur.value+op.Value+op.Value)
	}
}

// work is one client.
func (s *store) work(client, n int, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, uint64(client)))
	seen, ends := map[string]uint64{}, map[string]uint64{}
	for i := range n {
		op := record.Op{Client: client, Key: fmt.Sprintf("kv-%d", rng.IntN(2)), Value: fmt.Sprintf("w%d-%d", client, i)}
		switch rng.IntN(9) {
		case 0, 1:
			op.Kind = record.Put
		case 2:
			op.Kind = record.Create
		case 3, 4:
			if op.Kind, op.IfRevision = record.CAS, seen[op.Key]; op.IfRevision == 0 {
				op.Kind = record.Create
			}
		case 5:
			op.Kind, op.Value = record.Delete, ""
		case 6, 7:
			op.Key = fmt.Sprintf("stream-%d", rng.IntN(2))
			op.Kind, op.Value, op.Offset = record.Append, op.Value+";", ends[op.Key]
		default:
			op.Kind, op.Value = record.Get, ""
		}
		done := s.do(op)
		if done.Outcome != record.Unknown {
			seen[op.Key], ends[op.Key] = done.Revision, done.EndOffset
		}
		if i%5 == 0 {
			s.do(record.Op{Client: client, Key: "stream-0", Kind: record.Get})
		}
	}
}

// run is a whole run; it returns what was found.
func (s *store) run(clients, n int, seed uint64) (*Linearizability, Counts, []record.Violation) {
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() { s.work(c, n, seed) })
	}
	wg.Wait()
	final := map[string]*pb.Session{}
	for _, key := range []string{"kv-0", "kv-1", "stream-0", "stream-1"} {
		s.do(record.Op{Client: clients, Key: key, Kind: record.Get})
	}
	for key, c := range s.cells {
		final[key] = &pb.Session{Group: "g", Id: key, Value: []byte(c.value), Revision: c.revision}
	}
	counts, violations := ExactlyOnce(s.ops)
	violations = append(violations, Watches(s.events, s.ops, map[string]map[string]*pb.Session{"g": final})...)
	return Linearizable(s.ops, patience), counts, violations
}

// TestChecks_HonestStore: a correct store is never accused, whatever clients do at
// once and whichever outcomes are unknown.
func TestChecks_HonestStore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		s := newStore(seed, none)
		r, counts, violations := s.run(rapid.IntRange(1, 4).Draw(t, "clients"), rapid.IntRange(1, 20).Draw(t, "operations"), seed)
		if len(r.Violations)+len(violations) > 0 || counts.Lost+counts.Duplicated > 0 {
			t.Fatalf("%v\n%v\n%+v\n%v", r.Violations, violations, counts, s.ops)
		}
	})
}

// TestChecks_BadStore: a store with a defect is found out in nearly all of many
// runs. What is done wrong can stay hidden behind a later write.
func TestChecks_BadStore(t *testing.T) {
	for name, d := range map[string]defect{
		"lost write": loseWrite, "stale read": staleRead, "double append": doubleAppend, "double put": doublePut,
		"condition ignored": ignoreCondition, "event lost": loseEvent,
	} {
		t.Run(name, func(t *testing.T) {
			runs, missed := 0, 0
			for seed := uint64(1); seed <= 20; seed++ {
				s := newStore(seed, d)
				r, _, violations := s.run(4, 60, seed)
				if s.wrong < 2 {
					continue
				}
				runs++
				if len(r.Violations)+len(violations) == 0 {
					missed++
				}
			}
			if runs < 5 || missed*4 > runs {
				t.Errorf("%d of %d runs that did wrong were not found", missed, runs)
			}
		})
	}
}
