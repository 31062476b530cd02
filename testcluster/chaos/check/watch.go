// SPDX-License-Identifier: Apache-2.0

package check

import (
	"cmp"
	"strings"

	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

// Watches checks what session watches told. Each watches the sessions of one
// group, or those whose ids have a prefix. A watch that begins with the current sessions, or begins anew with them,
// has a Resync before them.
//
// Between two of these the revisions grow and nothing comes twice; each
// acknowledged write shows as it was written, or a later write of its session in
// its place; and nothing shows that nobody wrote, or that was acknowledged under
// another revision.
//
// final are the sessions after the end, by group and id. If it is not nil every
// watch must have got as far as the last acknowledged write of what it watches, and
// what it told must add up to the final sessions. One that is tied to a node need
// not get there.
func Watches(events []record.SessionEvent, ops []record.Op, final map[string]map[string]*pb.Session) []record.Violation {
	f := &found{check: checkWatch}
	written := writesOf(ops)
	watchers := map[int][]record.SessionEvent{}
	for _, e := range events {
		watchers[e.Watcher] = append(watchers[e.Watcher], e)
	}
	for _, id := range sorted(watchers, cmp.Compare[int]) {
		w := &watcher{f: f, id: id, written: written}
		w.replay(watchers[id])
		w.judge(ops)
		if final != nil {
			w.addsUp(w.lastAcked(ops), final[w.group])
		}
	}
	return f.violations()
}

// Resyncs is how often session watches began anew with the current sessions, but
// for the first time of each. No single one is wrong, but a cluster that does so
// each time that a watch is resumed keeps nothing to go on with: hold them against
// Resumes.
func Resyncs(events []record.SessionEvent) int {
	n, begun := 0, map[int]bool{}
	for _, e := range events {
		if e.Resync && begun[e.Watcher] && !e.Tied {
			n++
		}
		begun[e.Watcher] = true
	}
	return n
}

// Resumes is how often session watches were resumed at a revision, but for tied
// ones.
func Resumes(events []record.SessionEvent) int {
	n := 0
	for _, e := range events {
		if e.Resumed && !e.Tied {
			n++
		}
	}
	return n
}

// watcher replays one watch.
type watcher struct {
	f             *found
	id            int
	group, prefix string
	tied          bool
	written       map[place]*writes

	stretches []*stretch
	// known is the newest event of each session since the last Resync.
	known map[string]record.SessionEvent
	// top is the newest revision of each session over all stretches.
	top map[string]uint64
}

// stretch is what came between two Resyncs.
type stretch struct {
	// first and last are the revisions of the changes, not of the current sessions
	// with which it may have begun; 0: there were none.
	first, last uint64
}

func (w *watcher) bad(key, format string, args ...any) {
	w.f.add(place{w.group, key}.String(), "watch %d: "+format, append([]any{w.id}, args...)...)
}

func (w *watcher) replay(events []record.SessionEvent) {
	w.known, w.top = map[string]record.SessionEvent{}, map[string]uint64{}
	var s *stretch
	listing, lastKey := false, ""
	for _, e := range events {
		w.group, w.prefix, w.tied = cmp.Or(w.group, e.Group), e.Prefix, e.Tied
		if e.Resumed {
			w.resumed(s, e)
			continue
		}
		if e.Resync || s == nil {
			s = &stretch{}
			w.stretches = append(w.stretches, s)
			listing, lastKey = e.Resync, ""
			clear(w.known)
		}
		if e.Resync {
			continue
		}
		// The current sessions come in order of id, each once.
		if listing = listing && !e.Deleted && e.Key > lastKey; listing {
			lastKey = e.Key
		} else {
			w.change(s, e)
		}
		w.value(e)
		w.known[e.Key] = e
		w.top[e.Key] = max(w.top[e.Key], e.Revision)
	}
}

// resumed: a watch is resumed where it was, or its test shows nothing.
func (w *watcher) resumed(s *stretch, e record.SessionEvent) {
	if s == nil || s.last != e.Revision {
		w.bad("", "it was resumed after revision %d, which was not its last", e.Revision)
	}
}

// change judges the order of a change.
func (w *watcher) change(s *stretch, e record.SessionEvent) {
	before, ok := w.known[e.Key]
	switch {
	case ok && e.Revision == before.Revision:
		w.bad(e.Key, "revision %d came twice", e.Revision)
	case ok && e.Revision < before.Revision:
		w.bad(e.Key, "revision %d came after revision %d of the same session", e.Revision, before.Revision)
	case e.Revision <= s.last:
		w.bad(e.Key, "revision %d came after revision %d", e.Revision, s.last)
	}
	if s.first == 0 {
		s.first = e.Revision
	}
	s.last = max(s.last, e.Revision)
}

// value judges what an event shows.
func (w *watcher) value(e record.SessionEvent) {
	x := w.written[place{w.group, e.Key}]
	if x == nil {
		return // somebody else's
	}
	if e.Deleted {
		if x.deletes == 0 {
			w.bad(e.Key, "deleted at revision %d, and nobody has asked for it", e.Revision)
		}
		return
	}
	if why := x.explain(e.Revision, e.Value); why != "" {
		w.bad(e.Key, "revision %d shows %q: %s", e.Revision, tail(e.Value), why)
	}
}

// judge looks for acknowledged writes that a watch passed over.
func (w *watcher) judge(ops []record.Op) {
	for _, op := range ops {
		if !w.watches(op) || !ackedWrite(op) || w.top[op.Key] >= op.Revision {
			continue
		}
		for _, s := range w.stretches {
			if s.first != 0 && s.first <= op.Revision && op.Revision <= s.last {
				w.bad(op.Key, "%s did not show, though changes from revision %d to %d did", describe(op), s.first, s.last)
				break
			}
		}
	}
}

// watches reports whether an operation is on a session that it watches.
func (w *watcher) watches(op record.Op) bool {
	return op.Group == w.group && strings.HasPrefix(op.Key, w.prefix)
}

func ackedWrite(op record.Op) bool {
	return op.Outcome == record.OK && op.Revision != 0 && op.Kind != record.Get && op.Kind != record.Delete
}

// reached is the last revision that the watch told of.
func (w *watcher) reached() uint64 {
	reached := uint64(0)
	for _, s := range w.stretches {
		reached = max(reached, s.last)
	}
	for _, e := range w.known {
		reached = max(reached, e.Revision)
	}
	return reached
}

// lastAcked is the acknowledged write, of what it watches, with the highest
// revision.
func (w *watcher) lastAcked(ops []record.Op) record.Op {
	var last record.Op
	for _, op := range ops {
		if w.watches(op) && ackedWrite(op) && op.Revision > last.Revision {
			last = op
		}
	}
	return last
}

// addsUp compares what is known from the watch with the final sessions. A write
// of unknown outcome may come between the two, on either side; it comes after the
// last one that was acknowledged.
func (w *watcher) addsUp(last record.Op, final map[string]*pb.Session) {
	newest := last.Revision
	for _, s := range final {
		newest = max(newest, s.GetRevision())
	}
	reached := w.reached()
	if w.tied && reached < last.Revision {
		return
	}
	if reached < last.Revision {
		w.bad(last.Key, "it ended at revision %d, but %s", reached, describe(last))
	}
	for _, key := range sorted(w.known, cmp.Compare[string]) {
		e, s := w.known[key], final[key]
		switch {
		case e.Revision > newest, s.GetRevision() > reached:
		case e.Deleted && s != nil:
			w.bad(key, "it was deleted at revision %d, but is there with revision %d", e.Revision, s.GetRevision())
		case e.Deleted:
		case s == nil && w.deletable(key):
		case s == nil:
			w.bad(key, "revision %d was the last, but it is not there any more", e.Revision)
		case e.Revision != s.GetRevision() || e.Value != string(s.GetValue()):
			w.bad(key, "the last was %q at revision %d, but there is %q at revision %d",
				tail(e.Value), e.Revision, tail(string(s.GetValue())), s.GetRevision())
		}
	}
	for _, key := range sorted(final, cmp.Compare[string]) {
		if _, ok := w.known[key]; !ok && strings.HasPrefix(key, w.prefix) && final[key].GetRevision() <= reached {
			w.bad(key, "it is there with revision %d and never showed", final[key].GetRevision())
		}
	}
}

// deletable reports whether a deletion may have come after the end of the watch: one
// of unknown outcome, or for a tied watch any.
func (w *watcher) deletable(key string) bool {
	x := w.written[place{w.group, key}]
	return x != nil && (x.doubtfulDeletes || w.tied && x.deletes > 0)
}
