// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const (
	// maxWaitingBytes bounds the operations that wait for an answer; a further one
	// waits in its caller.
	maxWaitingBytes = 32 << 20
	// itemOverheadBytes is what an operation costs beside its own bytes.
	itemOverheadBytes = 256
	// maxReopens bounds how often one operation may find its writer's number
	// unknown.
	maxReopens = 3
)

// writer sends operations over one stream at a time and resends them with the
// same number until each is answered or given up.
//
// A writer's number and its window belong to a generation: when the cluster has
// forgotten the number a new generation begins, and operations of the old one
// keep their old numbers.
type writer struct {
	c     *Client
	wake  chan struct{} // capacity 1: the queue or the window changed
	bytes *semaphore.Weighted
	slots *semaphore.Weighted

	mu     sync.Mutex // guards all below and the fields of items and generations
	closed bool
	nextID uint64
	queue  []*item          // to be sent, by id: ids of resent ones are lower
	sent   map[uint64]*item // sent on the current stream and not answered, by id
	gen    *generation      // nil: open one before a new operation is sent
	last   error            // why the last stream broke, nil after an answer
	// quiet is when the current wait for an answer began.
	quiet time.Time
}

// generation is one writer's number. The sequence numbers below acked are all
// answered or given up; a copy of a given-up operation that is still on its way
// is refused by the cluster once acked is known there.
type generation struct {
	client, window uint64
	next, acked    uint64
	over           map[uint64]struct{} // above acked
}

func (g *generation) answered(seq uint64) {
	g.over[seq] = struct{}{}
	for {
		if _, ok := g.over[g.acked]; !ok {
			return
		}
		delete(g.over, g.acked)
		g.acked++
	}
}

// item is one operation under way.
type item struct {
	id   uint64
	ops  []*pb.SessionOp
	size int64
	done chan outcome // capacity 1; gets exactly one

	gen *generation // nil until it is numbered
	seq uint64
	// maybe: it may have been applied. maybeBefore: by an attempt before the
	// newest one.
	maybe, maybeBefore bool
	over               bool // an outcome was given
	reopens            int
	back               backoff // between attempts that found a full queue
}

type outcome struct {
	results []*pb.SessionOpResult
	err     error
}

func newWriter(c *Client) *writer {
	return &writer{
		c: c, wake: make(chan struct{}, 1), sent: make(map[uint64]*item),
		bytes: semaphore.NewWeighted(maxWaitingBytes),
		slots: semaphore.NewWeighted(hastate.MaxClientWindow),
	}
}

func (w *writer) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// submit queues operations. The writer's loop is started by the first.
func (w *writer) submit(ctx context.Context, ops []*pb.SessionOp, size int) (*Pending, error) {
	ctx, cancel := w.c.within(ctx)
	it := &item{ops: ops, size: int64(size + itemOverheadBytes), done: make(chan outcome, 1)}
	if err := w.admit(ctx, it); err != nil {
		cancel()
		return nil, err
	}
	// Not in Wait: an operation that nobody waits for ends too.
	context.AfterFunc(ctx, func() { w.abandon(ctx, it) })
	return &Pending{it: it, cancel: cancel}, nil
}

func (w *writer) admit(ctx context.Context, it *item) error {
	if err := w.slots.Acquire(ctx, 1); err != nil {
		return w.c.notSent(ctx, w.lastError())
	}
	if err := w.bytes.Acquire(ctx, it.size); err != nil {
		w.slots.Release(1)
		return w.c.notSent(ctx, w.lastError())
	}
	if err := w.c.startWriter(); err != nil {
		w.release(it)
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		w.release(it)
		return hastate.ErrClosed
	}
	w.nextID++
	it.id = w.nextID
	w.queue = append(w.queue, it)
	w.poke()
	return nil
}

func (c *Client) startWriter() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return fmt.Errorf("client: %w", hastate.ErrClosed)
	}
	if !c.writing {
		c.writing = true
		c.wg.Go(func() { c.writer.run(c.ctx) })
	}
	return nil
}

func (w *writer) release(it *item) {
	w.bytes.Release(it.size)
	w.slots.Release(1)
}

func (w *writer) lastError() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

// notSent is the error of an operation that was certainly not applied when its
// context ended.
func (c *Client) notSent(ctx context.Context, last error) error {
	cause := context.Cause(ctx)
	if c.leaderless.Load() && !errors.Is(last, hastate.ErrNoLeader) {
		return fmt.Errorf("not done: %w (%w)", &hastate.NotLeaderError{}, cause)
	}
	if last == nil {
		return fmt.Errorf("not done: %w", cause)
	}
	return fmt.Errorf("not done: %w: %w", cause, last)
}

// finish gives an operation its outcome. w.mu is held.
func (w *writer) finish(it *item, o outcome) {
	if it.over {
		return
	}
	it.over = true
	delete(w.sent, it.id)
	if it.gen != nil {
		it.gen.answered(it.seq)
	}
	w.release(it)
	it.done <- o
}

// abandon gives up an operation whose context has ended.
func (w *writer) abandon(ctx context.Context, it *item) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if it.over {
		return
	}
	if i := slices.Index(w.queue, it); i >= 0 {
		w.queue = slices.Delete(w.queue, i, i+1)
	}
	err := w.c.notSent(ctx, w.last)
	if it.maybe {
		err = fmt.Errorf("%w: %w", &hastate.OutcomeUnknownError{Reason: "no answer came in time"}, context.Cause(ctx))
	}
	w.finish(it, outcome{err: err})
	w.poke()
}

// failAll ends all operations with err, or with an OutcomeUnknownError those that
// may have been applied.
func (w *writer) failAll(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.requeue()
	for _, it := range w.queue {
		o := outcome{err: err}
		if it.maybe {
			o.err = &hastate.OutcomeUnknownError{Reason: err.Error()}
		}
		w.finish(it, o)
	}
	w.queue = nil
}

// requeue puts what was not answered on a broken stream back into the queue. w.mu
// is held.
func (w *writer) requeue() {
	for _, it := range w.sent {
		w.queue = append(w.queue, it)
	}
	clear(w.sent)
	slices.SortFunc(w.queue, func(a, b *item) int {
		if a.id < b.id {
			return -1
		}
		return 1
	})
}

// run serves one stream after the other until ctx ends.
func (w *writer) run(ctx context.Context) {
	defer func() {
		w.mu.Lock()
		w.closed = true
		w.mu.Unlock()
		w.failAll(fmt.Errorf("client: %w", hastate.ErrClosed))
	}()
	var back backoff
	patience := w.c.opts.AttemptTimeout
	for w.waitQueue(ctx) {
		ep, err := w.c.pool.best()
		if err != nil {
			return
		}
		answered, err := w.serve(ctx, ep.conn, patience)
		if ctx.Err() != nil {
			return
		}
		if lasting(err) {
			w.failAll(err)
			continue
		}
		w.mu.Lock()
		w.requeue()
		w.last = err
		w.mu.Unlock()
		w.c.log.Warn("session stream broke, sending again at another node", "endpoint", ep.addr, "error", err)
		w.c.pool.blame(ep, err)
		if answered {
			back.reset()
			patience = w.c.opts.AttemptTimeout
		} else if errors.Is(err, errSilent) {
			// All nodes are slow rather than one hung: sending everything again and
			// again would make them slower.
			patience = min(2*patience, 8*w.c.opts.AttemptTimeout)
		}
		if back.wait(ctx) != nil {
			return
		}
	}
}

// waitQueue waits until there is something to send.
func (w *writer) waitQueue(ctx context.Context) bool {
	for {
		w.mu.Lock()
		n := len(w.queue)
		w.mu.Unlock()
		if n > 0 {
			return true
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return false
		}
	}
}

// Pending is an operation under way.
type Pending struct {
	it     *item
	cancel context.CancelFunc
	once   sync.Once
	out    outcome
}

// Wait returns the results, in the order of the operations, once they are known
// or the context of the operation has ended. It may be called more than once.
func (p *Pending) Wait() ([]*pb.SessionOpResult, error) {
	p.once.Do(func() {
		p.out = <-p.it.done
		p.cancel()
	})
	return p.out.results, p.out.err
}
