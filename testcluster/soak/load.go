// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// sessions is the part of *client.Sessions that the load uses.
type sessions interface {
	Put(ctx context.Context, req *pb.PutRequest) (*pb.SessionOpResult, error)
	Get(ctx context.Context, id string, level pb.ReadLevel) (*pb.Session, error)
	Watch(ctx context.Context, prefix string, after uint64, fn func(client.SessionChange) error) error
}

// load writes sequence numbers into sessions, one writer each, by
// compare-and-set on the revision before: a write that is lost, applied twice or
// applied although it was refused shows.
type load struct {
	sessions sessions
	cancel   context.CancelFunc
	done     sync.WaitGroup
	acked    atomic.Int64
	// wait is closed and replaced at every acknowledgement and fault; mu guards it
	// and fault.
	mu    sync.Mutex
	wait  chan struct{}
	fault error

	writers []*writerState
	seen    *witness
}

// writerState is one writer's view; it belongs to its goroutine until done.
type writerState struct {
	id string
	// acked is the last sequence number acknowledged, revision that record's.
	acked, revision uint64
	// doubt is a sequence number that was sent and may be applied yet, 0 if none.
	doubt    uint64
	unknowns int
}

// newLoad begins nothing yet.
func newLoad(s sessions, writers int) *load {
	l := &load{sessions: s, wait: make(chan struct{}), seen: &witness{}}
	for i := range writers {
		l.writers = append(l.writers, &writerState{id: fmt.Sprintf("writer-%02d", i)})
	}
	return l
}

func startLoad(ctx context.Context, s sessions, writers int) (*load, error) {
	l := newLoad(s, writers)
	ctx, l.cancel = context.WithCancel(ctx)
	l.done.Go(func() {
		if err := l.seen.run(ctx, s); ctx.Err() == nil {
			l.fail(fmt.Errorf("the watch ended by itself: %w", err))
		}
	})
	for _, w := range l.writers {
		l.done.Go(func() {
			for ctx.Err() == nil && l.writeOnce(ctx, w) {
			}
		})
	}
	return l, l.progress(ctx, int64(writers))
}

// writeOnce writes the next number. It returns false when the writer has to end,
// because something is wrong.
func (l *load) writeOnce(ctx context.Context, w *writerState) bool {
	seq := w.acked + 1
	attempt, cancel := context.WithTimeout(ctx, 15*time.Second)
	result, err := l.sessions.Put(attempt, &pb.PutRequest{
		Session:    &pb.Session{Id: w.id, Value: binary.BigEndian.AppendUint64(nil, seq)},
		IfRevision: w.revision, IfAbsent: w.revision == 0,
	})
	cancel()
	switch {
	case err == nil:
		w.acked, w.revision, w.doubt = seq, result.GetRevision(), 0
		l.ack()
		return true
	case ctx.Err() != nil:
		w.doubt = seq // the load was stopped in the middle of it
		return false
	case errors.Is(err, hastate.ErrOutcomeUnknown):
		w.unknowns++
		w.doubt = seq
	case errors.Is(err, hastate.ErrConflict) && w.doubt == seq:
		// An attempt of unknown outcome was applied after all, after it was looked for.
	case errors.Is(err, hastate.ErrNoLeader), errors.Is(err, hastate.ErrNotLeader), errors.Is(err, context.DeadlineExceeded):
		return true // certainly not applied: the same number again
	default:
		// There is one writer per session: a conflict means that a write was
		// applied twice, or lost.
		l.fail(fmt.Errorf("%s, number %d: %w", w.id, seq, err))
		return false
	}
	if err := l.resolve(ctx, w, seq); err != nil {
		l.fail(err)
		return false
	}
	return true
}

// resolve reads back after an unknown outcome. What is not there may still come.
func (l *load) resolve(ctx context.Context, w *writerState, seq uint64) error {
	s, err := l.sessions.Get(ctx, w.id, pb.ReadLevel_READ_LEVEL_LINEARIZABLE)
	switch {
	case ctx.Err() != nil, errors.Is(err, hastate.ErrNotFound) && w.acked == 0:
		return nil
	case err != nil:
		return fmt.Errorf("%s: read back: %w", w.id, err)
	}
	switch got := number(s); {
	case got == seq:
		w.acked, w.revision, w.doubt = seq, s.GetRevision(), 0
		l.ack()
	case got != w.acked || s.GetRevision() != w.revision:
		return fmt.Errorf("%s: read back %d at revision %d, acknowledged was %d at %d", w.id, got, s.GetRevision(), w.acked, w.revision)
	}
	return nil
}

// number is what a session holds, 0 if it is nothing of ours.
func number(s *pb.Session) uint64 {
	if len(s.GetValue()) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(s.GetValue())
}

func (l *load) ack() {
	l.acked.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.wait)
	l.wait = make(chan struct{})
}

func (l *load) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fault == nil {
		l.fault = err
		close(l.wait)
		l.wait = make(chan struct{})
	}
}

// broken is the first thing that was wrong.
func (l *load) broken() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fault
}

// progress waits for more acknowledgements.
func (l *load) progress(ctx context.Context, more int64) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	target := l.acked.Load() + more
	for {
		l.mu.Lock()
		wait, fault := l.wait, l.fault
		l.mu.Unlock()
		if fault != nil || l.acked.Load() >= target {
			return fault
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d writes acknowledged: %w", l.acked.Load(), target, ctx.Err())
		case <-wait:
		}
	}
}

func (l *load) stop() {
	l.cancel()
	l.done.Wait()
}

// check compares what is there with what was acknowledged. It counts as far as it
// can, whatever else is wrong.
func (l *load) check(ctx context.Context, r *report) error {
	r.Acknowledged = int(l.acked.Load())
	r.Watched = int(l.seen.told.Load())
	errs := []error{l.broken()}
	for _, w := range l.writers {
		r.Unknown += w.unknowns
		if err := l.checkWriter(ctx, w, r); err != nil {
			errs = append(errs, err)
		}
	}
	r.AppliedTwice += l.seen.repeats
	if r.Lost+r.AppliedTwice > 0 {
		errs = append(errs, fmt.Errorf("%d acknowledged writes lost, %d applied twice", r.Lost, r.AppliedTwice))
	}
	if r.Acknowledged == 0 || r.Watched == 0 {
		errs = append(errs, fmt.Errorf("%d writes acknowledged, %d changes watched: nothing was proved", r.Acknowledged, r.Watched))
	}
	return errors.Join(errs...)
}

func (l *load) checkWriter(ctx context.Context, w *writerState, r *report) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	s, err := l.sessions.Get(ctx, w.id, pb.ReadLevel_READ_LEVEL_LINEARIZABLE)
	if err != nil && !errors.Is(err, hastate.ErrNotFound) {
		return fmt.Errorf("read %s: %w", w.id, err)
	}
	got, revision := number(s), s.GetRevision()
	switch {
	case got < w.acked:
		r.Lost += int(w.acked - got) //nolint:gosec // small
	case got == w.acked && revision != w.revision:
		r.AppliedTwice++
	case got > w.acked && got != w.doubt:
		r.AppliedTwice++
	}
	return nil
}

// witness watches every change and counts numbers that do not grow.
type witness struct {
	// repeats is read when run has ended, told at any time.
	repeats int
	told    atomic.Int64
}

// run watches until ctx ends; the client resumes it over the kills. A reader that
// is behind may miss numbers (changes are merged), but must never see one twice
// under two revisions, nor a session that goes away.
func (w *witness) run(ctx context.Context, s sessions) error {
	type mark struct{ seq, revision uint64 }
	marks := map[string]mark{}
	return s.Watch(ctx, "", 0, func(change client.SessionChange) error {
		e := change.Event
		if e == nil {
			return nil
		}
		defer w.told.Add(1)
		id, is := e.GetSession().GetId(), mark{number(e.GetSession()), e.GetSession().GetRevision()}
		if was, ok := marks[id]; e.GetDeleted() || ok && is.seq <= was.seq && is != was {
			w.repeats++
		}
		marks[id] = is
		return nil
	})
}
