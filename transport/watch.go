// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// watchInterval is how often the Raft node is looked at while calls of a leader
// are under way. Raft has no way to tell a transport that it stepped down or
// shuts down, and waits for these calls when it does.
const watchInterval = 20 * time.Millisecond

// watch ends the calls of a leader when it does not lead any more.
type watch struct {
	t *Transport

	mu      sync.Mutex
	raft    RaftState                // guarded by mu; nil until bound
	calls   map[*leaderCall]struct{} // guarded by mu
	running bool                     // guarded by mu; the goroutine looks after calls
}

type leaderCall struct {
	term   uint64
	cancel context.CancelCauseFunc
}

func newWatch(t *Transport) *watch {
	return &watch{t: t, calls: make(map[*leaderCall]struct{})}
}

func (w *watch) bind(r RaftState) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.raft = r
	w.ensureRunning()
}

// leads tells whether the Raft node leads in a term, true if it is not known.
func leads(r RaftState, term uint64) bool {
	return r == nil || (r.State() == raft.Leader && r.CurrentTerm() == term)
}

// surelyLeads tells whether the Raft node leads in a term, false if it is not
// known.
func (w *watch) surelyLeads(term uint64) bool {
	w.mu.Lock()
	r := w.raft
	w.mu.Unlock()
	return r != nil && leads(r, term)
}

// term is the present term, 0 if it is not known.
func (w *watch) term() uint64 {
	w.mu.Lock()
	r := w.raft
	w.mu.Unlock()
	if r == nil {
		return 0
	}
	return r.CurrentTerm()
}

// lead returns a context for a call that this node makes as the leader of a
// term: it ends with errNotLeading when it is not that any more. end must be
// called.
func (w *watch) lead(parent context.Context, term uint64) (ctx context.Context, end func()) {
	ctx, cancel := context.WithCancelCause(parent)
	call := &leaderCall{term: term, cancel: cancel}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !leads(w.raft, term) {
		cancel(errNotLeading)
	}
	w.calls[call] = struct{}{}
	w.ensureRunning()
	return ctx, func() {
		w.mu.Lock()
		delete(w.calls, call)
		w.mu.Unlock()
		cancel(nil)
	}
}

// ensureRunning is called with mu held.
func (w *watch) ensureRunning() {
	if w.raft == nil || w.running || len(w.calls) == 0 {
		return
	}
	w.running = w.t.start(w.run)
}

// run ends when there are no calls left.
func (w *watch) run() {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if !w.sweep() {
				return
			}
		case <-w.t.ctx.Done():
			return // every call's context is a child of this one
		}
	}
}

func (w *watch) sweep() (more bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for call := range w.calls {
		if !leads(w.raft, call.term) {
			call.cancel(errNotLeading)
		}
	}
	w.running = len(w.calls) > 0
	return w.running
}
