// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// timeline collects what happened when, by this process's clock.
type timeline struct {
	// mu guards all below.
	mu     sync.Mutex
	zero   time.Time
	events []event
}

type event struct {
	at   time.Time
	text string
}

func newTimeline() *timeline { return &timeline{} }

// mark sets the zero of the timeline: the fault.
func (t *timeline) mark(what string) time.Time {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.zero = now
	t.events = append(t.events, event{now, what})
	return now
}

func (t *timeline) add(at time.Time, format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.events = append(t.events, event{at, fmt.Sprintf(format, args...)})
}

// quiet reports whether nothing has been broken yet.
func (t *timeline) quiet() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.zero.IsZero()
}

// print shows the events from the fault on, and the verdict.
func (t *timeline) print(w io.Writer, r Result) {
	t.mu.Lock()
	defer t.mu.Unlock()
	slices.SortStableFunc(t.events, func(a, b event) int { return a.at.Compare(b.at) })
	fmt.Fprintf(w, "\n%s\n", r.Fault)
	for _, e := range t.events {
		if !t.zero.IsZero() && !e.at.Before(t.zero) {
			fmt.Fprintf(w, "  %+7d ms  %s\n", e.at.Sub(t.zero).Milliseconds(), e.text)
		}
	}
	fmt.Fprintf(w, "\n  epoch %d -> %d, client without a token for %d ms\n", r.EpochBefore, r.EpochAfter, r.ClientGapMillis)
	fmt.Fprintf(w, "  %d tokens streamed, tokens lost %d, repeated %d\n", tokens, r.Lost, r.Repeated)
}
