// SPDX-License-Identifier: Apache-2.0

package load

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hastate/hastate/client"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

// stretch is about how many changes a watch that is resumed takes at a time.
const stretch = 60

// errResume ends a watch that is to be resumed.
var errResume = errors.New("to be resumed")

// watcher is one session watch of a whole group. It belongs to its goroutine but
// for reached.
type watcher struct {
	l        *Load
	id       int
	group    string
	sessions sessions
	rng      *rand.Rand
	// prefix of the sessions that it watches.
	prefix string
	// resumes: it is ended over and over and goes on where it was.
	resumes bool
	// idle, if not 0, is how long it waits for a change before it asks again where
	// it was: its client keeps to one node.
	idle time.Duration
	// endpoint is the node that its client keeps to; empty: to none.
	endpoint string
	// reached is the revision up to which it is complete, 0 if it is not known.
	reached atomic.Uint64

	// listing: what comes may be the current sessions, which come in order of id
	// and from whose revisions a watch cannot be resumed.
	listing bool
	lastKey string
	// left is how many changes it takes before it is resumed.
	left int
	// waiting ends the watch that runs when idle has passed; nil without idle.
	waiting *time.Timer
}

func (l *Load) newWatcher(c cluster, group string) *watcher {
	id := l.id()
	return &watcher{l: l, id: id, group: group, sessions: c.Sessions(group), rng: l.rng(id)}
}

// where says which node it keeps to, if it does.
func (w *watcher) where() string {
	if w.endpoint == "" {
		return ""
	}
	return " at " + w.endpoint
}

// run watches until the load's context ends.
func (w *watcher) run() {
	for w.l.ctx.Err() == nil {
		from := w.reached.Load()
		if from == 0 {
			w.anew()
		} else {
			w.tell(record.SessionEvent{Resumed: true, Revision: from})
		}
		w.left = 1 + w.rng.IntN(2*stretch)
		err := w.watch(from)
		if errors.Is(err, errResume) {
			continue
		}
		// It is not for a watch to end by itself, but clients survive it.
		if !after(w.l.ctx, retryEvery) {
			return
		}
	}
}

// watch watches once, until it is to be resumed or has been idle.
func (w *watcher) watch(from uint64) error {
	ctx, cancel := context.WithCancel(w.l.ctx)
	defer cancel()
	if w.idle > 0 {
		idle := w.idle
		if from == 0 { // perhaps there is no such node
			idle = w.l.o.OpTimeout
		}
		w.waiting = time.AfterFunc(idle, cancel)
		defer w.waiting.Stop()
	}
	return w.sessions.Watch(ctx, w.prefix, from, w.on)
}

// tell records an event.
func (w *watcher) tell(e record.SessionEvent) {
	e.Watcher, e.At, e.Group, e.Prefix, e.Tied = w.id, w.l.o.Clock.Now(), w.group, w.prefix, w.idle > 0
	w.l.sessions.add(e)
}

// anew: the current sessions come first.
func (w *watcher) anew() {
	w.reached.Store(0)
	w.listing, w.lastKey = true, ""
	w.tell(record.SessionEvent{Resync: true})
}

func (w *watcher) on(c client.SessionChange) error {
	if w.waiting != nil {
		w.waiting.Reset(w.idle)
	}
	if c.Resync {
		w.anew()
		return nil
	}
	e := c.Event
	if e == nil { // only the revision has moved on
		return nil
	}
	id := e.GetSession().GetId()
	w.tell(record.SessionEvent{Key: id, Value: string(e.GetSession().GetValue()), Revision: e.GetRevision(), Deleted: e.GetDeleted()})
	if w.listing = w.listing && !e.GetDeleted() && id > w.lastKey; w.listing {
		w.lastKey = id
		return nil
	}
	w.reached.Store(e.GetRevision())
	if w.left--; w.left <= 0 && w.resumes {
		return errResume
	}
	return nil
}

// epochs are those of all groups, as last heard of.
type epochs struct {
	mu             sync.Mutex // guards all below
	newest, before map[string]uint64
}

func newEpochs() *epochs { return &epochs{newest: map[string]uint64{}, before: map[string]uint64{}} }

func (e *epochs) see(group string, epoch uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if now := e.newest[group]; epoch > now {
		e.newest[group], e.before[group] = epoch, now
	}
}

// of is the newest epoch of a group and the one before; 0 if none is known.
func (e *epochs) of(group string) (newest, before uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.newest[group], e.before[group]
}

func (e *epochs) all() map[string]uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make(map[string]uint64, len(e.newest))
	for g, epoch := range e.newest {
		all[g] = epoch
	}
	return all
}
