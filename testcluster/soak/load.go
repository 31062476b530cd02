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

// load writes sequence numbers into sessions, one writer each, by
// compare-and-set on the revision before: a write that is lost, applied twice or
// applied although it was refused shows.
type load struct {
	c      *cluster
	cancel context.CancelFunc
	done   sync.WaitGroup
	acked  atomic.Int64
	// wait is closed and replaced at every acknowledgement; mu guards it and fault.
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
	// unknown is the sequence number whose outcome is not known, 0 if none.
	unknown  uint64
	unknowns int
}

func startLoad(ctx context.Context, c *cluster, writers int) (*load, error) {
	ctx, cancel := context.WithCancel(ctx)
	l := &load{c: c, cancel: cancel, wait: make(chan struct{}), seen: newWitness()}
	l.done.Go(func() { l.seen.run(ctx, c.client) })
	for i := range writers {
		w := &writerState{id: fmt.Sprintf("writer-%02d", i)}
		l.writers = append(l.writers, w)
		l.done.Go(func() { l.write(ctx, w) })
	}
	return l, l.progress(ctx, int64(writers))
}

// write runs one writer until ctx ends or something is wrong.
func (l *load) write(ctx context.Context, w *writerState) {
	sessions := l.c.client.Sessions(hastate.DefaultGroup)
	for ctx.Err() == nil {
		seq := w.acked + 1
		req := &pb.PutRequest{
			Session:    &pb.Session{Id: w.id, Value: binary.BigEndian.AppendUint64(nil, seq)},
			IfRevision: w.revision, IfAbsent: w.revision == 0,
		}
		attempt, cancel := context.WithTimeout(ctx, 15*time.Second)
		result, err := sessions.Put(attempt, req)
		cancel()
		switch {
		case err == nil:
			w.acked, w.revision = seq, result.GetRevision()
			l.ack()
		case ctx.Err() != nil:
			w.unknown = seq // the load was stopped in the middle of it
			return
		case errors.Is(err, hastate.ErrOutcomeUnknown):
			w.unknowns++
			if err := l.resolve(ctx, w, seq); err != nil {
				l.fail(err)
				return
			}
		case errors.Is(err, hastate.ErrNoLeader), errors.Is(err, hastate.ErrNotLeader), errors.Is(err, context.DeadlineExceeded):
			// certainly not applied: the same number again
		default:
			// There is one writer per session: a conflict means that a write was
			// applied twice, or lost.
			l.fail(fmt.Errorf("%s, number %d: %w", w.id, seq, err))
			return
		}
	}
}

// resolve reads back after an unknown outcome.
func (l *load) resolve(ctx context.Context, w *writerState, seq uint64) error {
	s, err := l.c.client.Sessions(hastate.DefaultGroup).Get(ctx, w.id, pb.ReadLevel_READ_LEVEL_LINEARIZABLE)
	switch {
	case ctx.Err() != nil:
		w.unknown = seq
		return nil
	case errors.Is(err, hastate.ErrNotFound) && w.acked == 0:
		return nil
	case err != nil:
		return fmt.Errorf("%s: read back: %w", w.id, err)
	}
	if got := binary.BigEndian.Uint64(s.GetValue()); got == seq {
		w.acked, w.revision = seq, s.GetRevision()
	} else if got != w.acked {
		return fmt.Errorf("%s: read back %d, acknowledged was %d", w.id, got, w.acked)
	}
	return nil
}

func (l *load) ack() {
	l.acked.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.wait)
	l.wait = make(chan struct{})
}

func (l *load) acknowledged() int64 { return l.acked.Load() }

func (l *load) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fault == nil {
		l.fault = err
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

// check compares what is there with what was acknowledged.
func (l *load) check(ctx context.Context, r *report) error {
	r.Acknowledged = int(l.acked.Load())
	sessions := l.c.client.Sessions(hastate.DefaultGroup)
	for _, w := range l.writers {
		r.Unknown += w.unknowns
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		s, err := sessions.Get(ctx, w.id, pb.ReadLevel_READ_LEVEL_LINEARIZABLE)
		cancel()
		if err != nil {
			return fmt.Errorf("read %s: %w", w.id, err)
		}
		got := binary.BigEndian.Uint64(s.GetValue())
		if got < w.acked {
			r.Lost += int(w.acked - got) //nolint:gosec // small
		}
		if got > w.acked && got != w.unknown {
			r.AppliedTwice++
		}
	}
	r.AppliedTwice += l.seen.repeats
	if r.Lost+r.AppliedTwice > 0 {
		return fmt.Errorf("%d acknowledged writes lost, %d applied twice", r.Lost, r.AppliedTwice)
	}
	return nil
}

// witness watches every change and counts numbers that do not grow.
type witness struct {
	repeats int
	events  int
}

func newWitness() *witness { return &witness{} }

// run watches until ctx ends; the client resumes it over the kills. A reader that
// is behind may miss numbers (changes are merged), but must never see one twice
// under two revisions.
func (w *witness) run(ctx context.Context, c *client.Client) {
	type mark struct{ seq, revision uint64 }
	marks := map[string]mark{}
	_ = c.Sessions(hastate.DefaultGroup).Watch(ctx, "", 0, func(change client.SessionChange) error {
		e := change.Event
		if e == nil || e.GetDeleted() || len(e.GetSession().GetValue()) != 8 {
			return nil
		}
		w.events++
		id, seq := e.GetSession().GetId(), binary.BigEndian.Uint64(e.GetSession().GetValue())
		if m, ok := marks[id]; ok && seq <= m.seq && e.GetSession().GetRevision() != m.revision {
			w.repeats++
		}
		marks[id] = mark{seq, e.GetSession().GetRevision()}
		return nil
	}) // it ends with ctx
}
