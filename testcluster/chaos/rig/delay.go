// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// delayed is a packet that is under way.
type delayed struct {
	due    time.Time
	n      uint64 // keeps the order of those due at the same time
	d      *direction
	packet []byte
}

// delayQueue hands packets over when they are due. Each direction bounds what it
// puts in.
type delayQueue struct {
	wake chan struct{} // a packet that is due before all others was put in

	mu  sync.Mutex // guards the rest
	all delayHeap
	n   uint64
}

func newDelayQueue() *delayQueue { return &delayQueue{wake: make(chan struct{}, 1)} }

func (q *delayQueue) put(p delayed) {
	q.mu.Lock()
	q.n++
	p.n = q.n
	heap.Push(&q.all, p)
	first := q.all[0].n == p.n
	q.mu.Unlock()
	if first {
		select {
		case q.wake <- struct{}{}:
		default: // it is woken already
		}
	}
}

// next takes the first packet if it is due, or says how long to wait; 0: there is
// none.
func (q *delayQueue) next(now time.Time) (p delayed, ok bool, wait time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.all) == 0 {
		return p, false, 0
	}
	if wait := q.all[0].due.Sub(now); wait > 0 {
		return p, false, wait
	}
	return heap.Pop(&q.all).(delayed), true, 0
}

// run hands packets over until ctx ends.
func (q *delayQueue) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		p, ok, wait := q.next(time.Now())
		if ok {
			p.d.arrive(p.packet)
			continue
		}
		if wait == 0 {
			wait = time.Hour
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
		case <-q.wake:
		case <-timer.C:
		}
	}
}

// delayHeap is ordered by due.
type delayHeap []delayed

func (h delayHeap) Len() int { return len(h) }
func (h delayHeap) Less(i, j int) bool {
	if h[i].due.Equal(h[j].due) {
		return h[i].n < h[j].n
	}
	return h[i].due.Before(h[j].due)
}
func (h delayHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

// Push is for package heap.
func (h *delayHeap) Push(v any) { *h = append(*h, v.(delayed)) }

// Pop is for package heap.
func (h *delayHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = delayed{}
	*h = old[:len(old)-1]
	return last
}
