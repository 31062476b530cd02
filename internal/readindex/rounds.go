// SPDX-License-Identifier: Apache-2.0

package readindex

import (
	"context"
	"sync"

	"github.com/hastate/hastate"
)

// rounds lets requests share the work of finding an index. A request never
// joins a round that has begun: it shares the next one.
type rounds struct {
	// wake has room for one token: somebody waits. Never closed.
	wake chan struct{}

	// mu guards the fields below.
	mu     sync.Mutex
	next   *round
	closed bool
}

// round is one shared attempt. index and err are set before done is closed.
type round struct {
	done  chan struct{}
	index uint64
	err   error
}

func newRounds() *rounds { return &rounds{wake: make(chan struct{}, 1)} }

// wait joins the next round and waits for its end.
func (r *rounds) wait(ctx context.Context) (uint64, error) {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return 0, &hastate.NotLeaderError{}
	}
	if r.next == nil {
		r.next = &round{done: make(chan struct{})}
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
	mine := r.next
	r.mu.Unlock()
	select {
	case <-mine.done:
		return mine.index, mine.err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// run does rounds, one after the other, until ctx ends.
func (r *rounds) run(ctx context.Context, find func(context.Context) (uint64, error)) {
	for {
		select {
		case <-ctx.Done():
			r.close()
			return
		case <-r.wake:
		}
		r.mu.Lock()
		now := r.next
		r.next = nil
		r.mu.Unlock()
		now.index, now.err = find(ctx)
		close(now.done)
	}
}

func (r *rounds) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	if r.next != nil {
		r.next.err = &hastate.NotLeaderError{}
		close(r.next.done)
		r.next = nil
	}
}
