// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"context"
	"fmt"
	"sync"

	"github.com/hastate/hastate"
)

// maxFeedBatch bounds one answer of Feed.Next.
const maxFeedBatch = 1024

// ring keeps the newest events for watchers, within bounds. It never waits for
// a reader: one that falls behind is told so.
type ring struct {
	maxEvents, maxBytes int
	added               broadcast

	// mu guards the fields below.
	mu sync.Mutex
	// events have the revisions floor+1, floor+2, ... without a gap.
	events []Event
	bytes  int
	floor  uint64
	// generation grows when the state is replaced: readers of an older one have
	// missed something whatever their revision.
	generation uint64
	closed     bool
}

func newRing(maxEvents, maxBytes int) *ring { return &ring{maxEvents: maxEvents, maxBytes: maxBytes} }

// add appends events, whose revisions follow those before.
func (r *ring) add(events []Event) {
	if len(events) == 0 {
		return
	}
	r.mu.Lock()
	for i := range events {
		if want := r.floor + uint64(len(r.events)) + 1; events[i].Revision != want {
			panic(fmt.Sprintf("fsm: event of revision %d follows revision %d", events[i].Revision, want-1))
		}
		r.events = append(r.events, events[i])
		r.bytes += events[i].size()
	}
	drop := 0
	for drop < len(r.events) && (len(r.events)-drop > r.maxEvents || r.bytes > r.maxBytes) {
		r.bytes -= r.events[drop].size()
		drop++
	}
	// Readers have copies: the memory behind the dropped ones can go.
	clear(r.events[:drop])
	r.events = r.events[drop:]
	r.floor += uint64(drop)
	r.mu.Unlock()
	r.added.wake()
}

// reset forgets all events; the next one follows revision.
func (r *ring) reset(revision uint64) {
	r.mu.Lock()
	r.events, r.bytes, r.floor = nil, 0, revision
	r.generation++
	r.mu.Unlock()
	r.added.wake()
}

func (r *ring) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.added.wake()
}

// Feed reads the changes of the state in order of revision.
type Feed struct {
	ring       *ring
	generation uint64
	// done is closed by Close.
	done  chan struct{}
	close sync.Once
	// mu guards after: the revision up to which events were given out.
	mu    sync.Mutex
	after uint64
}

// Subscribe returns a Feed of the changes after a revision. If not all of them
// are kept it returns a *hastate.CompactedError: list afresh, and subscribe
// after the revision of the list. A revision that this node has not reached yet
// is waited for.
func (m *Machine) Subscribe(after uint64) (*Feed, error) {
	r := m.ring
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, fmt.Errorf("subscribe: %w", hastate.ErrClosed)
	}
	if after < r.floor {
		return nil, r.compacted()
	}
	return &Feed{ring: r, generation: r.generation, after: after, done: make(chan struct{})}, nil
}

// compacted names what is kept: a Feed can begin after Oldest. mu is held.
func (r *ring) compacted() error {
	return &hastate.CompactedError{Oldest: r.floor, Newest: r.floor + uint64(len(r.events))}
}

// Next waits for changes and returns the next ones in order, without a gap. It
// returns a *hastate.CompactedError if the reader was too slow and missed some,
// or if the state was replaced by a snapshot.
func (f *Feed) Next(ctx context.Context) ([]Event, error) {
	for {
		added := f.ring.added.wait()
		events, err := f.take()
		if err != nil || len(events) > 0 {
			return events, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for changes: %w", context.Cause(ctx))
		case <-f.done:
			return nil, fmt.Errorf("wait for changes: %w", hastate.ErrClosed)
		case <-added:
		}
	}
}

func (f *Feed) take() ([]Event, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.ring
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return nil, fmt.Errorf("wait for changes: %w", hastate.ErrClosed)
	case f.generation != r.generation || f.after < r.floor:
		return nil, r.compacted()
	}
	at := f.after - r.floor
	if at >= uint64(len(r.events)) {
		return nil, nil
	}
	n := min(uint64(len(r.events))-at, maxFeedBatch)
	events := append([]Event(nil), r.events[at:at+n]...)
	f.after += n
	return events, nil
}

// Close ends a Next that is waiting.
func (f *Feed) Close() { f.close.Do(func() { close(f.done) }) }
