// SPDX-License-Identifier: Apache-2.0

package logstore

import (
	"sync"
	"time"

	"github.com/hastate/hastate/internal/clock"
)

// running knows which writes are under way. There are as many as there are
// goroutines that write: raft's main loop and its snapshot loop.
type running struct {
	mu sync.Mutex
	// next numbers the writes. Guarded by mu.
	next uint64
	// since holds the begin of each running write. Guarded by mu.
	since map[uint64]clock.Instant
}

// begin notes that a write starts; the returned function notes its end.
func (r *running) begin(c clock.Clock) (end func()) {
	now := c.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.since == nil {
		r.since = make(map[uint64]clock.Instant)
	}
	id := r.next
	r.next++
	r.since[id] = now
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.since, id)
	}
}

// oldest is how long the oldest running write has been running.
func (r *running) oldest(now clock.Instant) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	var age time.Duration
	for _, since := range r.since {
		age = max(age, now.Sub(since))
	}
	return age
}
