// SPDX-License-Identifier: Apache-2.0

package propose

import (
	"context"
	"sync"
	"time"

	"github.com/hastate/hastate"
)

// queue holds items that nobody has sent yet, first in first out, bounded in
// number and bytes.
type queue struct {
	name               string
	maxItems, maxBytes int
	// ready has room for one token: something was pushed. Never closed.
	ready chan struct{}

	// mu guards the fields below.
	mu     sync.Mutex
	items  []*item
	bytes  int
	closed bool
}

func newQueue(name string, maxItems, maxBytes int) *queue {
	return &queue{name: name, maxItems: maxItems, maxBytes: maxBytes, ready: make(chan struct{}, 1)}
}

// push adds an item, or says at once that there is no room.
func (q *queue) push(it *item) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.closed:
		return notBegun(errQueueClosed)
	case len(q.items) >= q.maxItems:
		return &hastate.LimitError{Limit: q.name + "_commands", Maximum: uint64(q.maxItems), Actual: uint64(len(q.items)) + 1}
	case q.bytes+it.size > q.maxBytes:
		return &hastate.LimitError{Limit: q.name + "_bytes", Maximum: uint64(q.maxBytes), Actual: uint64(q.bytes + it.size)}
	}
	q.items = append(q.items, it)
	q.bytes += it.size
	q.nudge()
	return nil
}

func (q *queue) nudge() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// pop claims items for sending: at most maxItems and maxBytes, at least one if
// there is any. Items that were given up are dropped.
func (q *queue) pop(maxItems, maxBytes int) []*item {
	q.mu.Lock()
	defer q.mu.Unlock()
	var out []*item
	n, size := 0, 0
	for _, it := range q.items {
		if len(out) == maxItems || (len(out) > 0 && size+it.size > maxBytes) {
			break
		}
		n++
		q.bytes -= it.size
		if it.take() {
			out = append(out, it)
			size += it.size
		}
	}
	clear(q.items[:n])
	q.items = q.items[n:]
	if len(q.items) == 0 {
		q.items = nil
	} else {
		q.nudge()
	}
	return out
}

// expire gives up the items whose deadline has passed and drops those that were
// given up, so that they do not take room while nothing can be sent.
func (q *queue) expire(now time.Time) {
	q.mu.Lock()
	var late []*item
	kept := q.items[:0]
	for _, it := range q.items {
		switch {
		case it.over():
			q.bytes -= it.size
		case now.After(it.deadline):
			q.bytes -= it.size
			late = append(late, it)
		default:
			kept = append(kept, it)
		}
	}
	clear(q.items[len(kept):])
	q.items = kept
	q.mu.Unlock()
	for _, it := range late {
		it.giveUp(context.DeadlineExceeded)
	}
}

// drain ends all queued items; none of them was sent.
func (q *queue) drain(err error) {
	q.mu.Lock()
	items := q.items
	q.items, q.bytes = nil, 0
	q.mu.Unlock()
	finishAll(items, err)
}

// close ends all queued items and refuses further ones.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.drain(notBegun(errQueueClosed))
}
