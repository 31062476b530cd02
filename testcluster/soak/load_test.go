// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// put is how one write is treated.
type put int

const (
	// honest applies it if it may be applied, and says so.
	honest put = iota
	// lose says that it was applied, and does not apply it.
	lose
	// twice applies it, and again in spite of its condition.
	twice
	// twiceTold is twice, and tells the revision of the second time.
	twiceTold
	// back is honest and then puts back what was there before.
	back
	// unknownApplied and unknownDropped do not say what they did.
	unknownApplied
	unknownDropped
	// unknownLate applies it just before the next write, after it was looked for.
	unknownLate
	// refuse says that there is no leader.
	refuse
	// remove is honest and then removes the session.
	remove
)

// store is a cluster that does what the test says, write by write.
type store struct {
	plan func(n int) put

	// mu guards all below.
	mu       sync.Mutex
	n        int
	revision uint64
	sessions map[string]*pb.Session
	late     *pb.PutRequest
	events   []*pb.SessionEvent
	changed  chan struct{}
	watchErr error
}

func newStore(plan func(n int) put) *store {
	return &store{plan: plan, sessions: map[string]*pb.Session{}, changed: make(chan struct{})}
}

func (s *store) apply(session *pb.Session) uint64 {
	s.revision++
	stored := proto.CloneOf(session)
	stored.Revision = s.revision
	s.sessions[stored.Id] = stored
	s.tell(&pb.SessionEvent{Session: proto.CloneOf(stored), Revision: s.revision})
	return s.revision
}

func (s *store) tell(e *pb.SessionEvent) {
	s.events = append(s.events, e)
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *store) fits(req *pb.PutRequest) bool {
	now := s.sessions[req.GetSession().GetId()]
	return now.GetRevision() == req.GetIfRevision() && (!req.GetIfAbsent() || now == nil)
}

func (s *store) Put(_ context.Context, req *pb.PutRequest) (*pb.SessionOpResult, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if late := s.late; late != nil {
		s.late = nil
		if s.fits(late) {
			s.apply(late.GetSession())
		}
	}
	how := s.plan(s.n)
	s.n++
	before := s.sessions[req.GetSession().GetId()]
	unknown := &hastate.OutcomeUnknownError{Reason: "as planned"}
	switch {
	case how == refuse:
		return nil, &hastate.NotLeaderError{}
	case how == unknownDropped:
		return nil, unknown
	case how == unknownLate:
		s.late = req
		return nil, unknown
	case how == lose:
		s.revision++
		return &pb.SessionOpResult{Revision: s.revision}, nil
	case !s.fits(req):
		return nil, &hastate.ConflictError{Key: req.GetSession().GetId(), CurrentRevision: before.GetRevision()}
	}
	revision := s.apply(req.GetSession())
	switch how {
	case twice:
		s.apply(req.GetSession())
	case twiceTold:
		revision = s.apply(req.GetSession())
	case back:
		s.sessions[req.GetSession().GetId()] = before
	case remove:
		delete(s.sessions, req.GetSession().GetId())
		s.tell(&pb.SessionEvent{Session: req.GetSession(), Deleted: true})
	case unknownApplied:
		return nil, unknown
	}
	return &pb.SessionOpResult{Revision: revision}, nil
}

func (s *store) Get(_ context.Context, id string, _ pb.ReadLevel) (*pb.Session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if got := s.sessions[id]; got != nil {
		return proto.CloneOf(got), nil
	}
	return nil, hastate.ErrNotFound
}

func (s *store) Watch(ctx context.Context, _ string, _ uint64, fn func(client.SessionChange) error) error {
	for next := 0; ; next++ {
		s.mu.Lock()
		for next >= len(s.events) {
			changed := s.changed
			s.mu.Unlock()
			select {
			case <-changed:
			case <-ctx.Done():
				return ctx.Err()
			}
			s.mu.Lock()
		}
		e, err := s.events[next], s.watchErr
		s.mu.Unlock()
		if err != nil {
			return err
		}
		if err := fn(client.SessionChange{Event: e}); err != nil {
			return err
		}
	}
}

// at is honest but for the writes that are named.
func at(how put, writes ...int) func(int) put {
	return func(n int) put {
		for _, w := range writes {
			if n == w {
				return how
			}
		}
		return honest
	}
}

// TestLoad_Detects: each way in which a store can be wrong is noticed.
func TestLoad_Detects(t *testing.T) {
	const last = 40
	for name, plan := range map[string]func(int) put{
		"a write lost":                      at(lose, 10),
		"the last write lost":               at(lose, last),
		"a write applied twice":             at(twice, 10),
		"the last write applied twice":      at(twice, last),
		"a write applied twice, as told":    at(twiceTold, 10),
		"the last applied twice, as told":   at(twiceTold, last),
		"a write taken back":                at(back, 10),
		"the last write taken back":         at(back, last),
		"a session removed":                 at(remove, 10),
		"a session removed at the end":      at(remove, last),
		"a write lost after an unknown one": func(n int) put { return map[int]put{10: unknownDropped, 11: lose}[n] },
		"twice after an unknown one":        func(n int) put { return map[int]put{10: unknownApplied, 11: twice}[n] },
	} {
		t.Run(name, func(t *testing.T) {
			r, err := runLoad(t, newStore(plan), last)
			if err == nil {
				t.Errorf("not noticed: %+v", r)
			}
		})
	}
}

// TestLoad_Believes: what a store is allowed to do is not held against it.
func TestLoad_Believes(t *testing.T) {
	for name, how := range map[string]put{
		"honest": honest, "unknown, applied": unknownApplied, "unknown, not applied": unknownDropped,
		"unknown, applied late": unknownLate, "no leader": refuse,
	} {
		t.Run(name, func(t *testing.T) {
			r, err := runLoad(t, newStore(func(n int) put {
				if n%3 == 1 {
					return how
				}
				return honest
			}), 60)
			if err != nil || r.Lost+r.AppliedTwice != 0 || r.Acknowledged == 0 {
				t.Errorf("%v: %+v", err, r)
			}
			if wantUnknown := how >= unknownApplied && how <= unknownLate; wantUnknown != (r.Unknown > 0) {
				t.Errorf("%d unknown outcomes", r.Unknown)
			}
		})
	}
}

// runLoad writes up to a number of writes with one writer, and checks.
func runLoad(t *testing.T, s *store, last int) (report, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	l := newLoad(s, 1)
	watching, stop := context.WithCancel(ctx)
	l.done.Go(func() { _ = l.seen.run(watching, s) }) // it ends with watching
	written := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.n
	}
	for written() <= last && l.writeOnce(ctx, l.writers[0]) {
	}
	// The reader takes in all that there is.
	for {
		s.mu.Lock()
		there, changed := len(s.events), s.changed
		s.mu.Unlock()
		if int(l.seen.told.Load()) >= there {
			break
		}
		select {
		case <-changed:
		case <-time.After(time.Millisecond):
		}
	}
	stop()
	l.done.Wait()
	var r report
	err := l.check(ctx, &r)
	return r, err
}

// TestLoad_ProvesSomething: a load that saw nothing is no success.
func TestLoad_ProvesSomething(t *testing.T) {
	var r report
	if err := newLoad(newStore(at(honest)), 2).check(t.Context(), &r); err == nil || !strings.Contains(err.Error(), "nothing was proved") {
		t.Errorf("%v", err)
	}
	// A watch that ends is not overlooked either.
	s := newStore(at(honest))
	s.watchErr = errors.New("as planned")
	l, err := startLoad(t.Context(), s, 2)
	if err == nil {
		err = l.progress(t.Context(), 1_000_000)
	}
	l.stop()
	if err == nil || !strings.Contains(err.Error(), "the watch ended by itself") {
		t.Errorf("%v", err)
	}
}
