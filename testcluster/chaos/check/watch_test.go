// SPDX-License-Identifier: Apache-2.0

package check

import (
	"strings"
	"testing"

	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

func told(key, value string, revision uint64) record.SessionEvent {
	return record.SessionEvent{Watcher: 1, Group: "g", Key: key, Value: value, Revision: revision}
}

func gone(key string, revision uint64) record.SessionEvent {
	return record.SessionEvent{Watcher: 1, Group: "g", Key: key, Revision: revision, Deleted: true}
}

func resync() record.SessionEvent { return record.SessionEvent{Watcher: 1, Group: "g", Resync: true} }

func on(key string, op record.Op) record.Op {
	op.Group, op.Key = "g", key
	if op.Outcome == "" {
		op.Outcome = record.OK
	}
	return op
}

// sessions are the final ones: key, value and revision.
func sessions(all ...record.SessionEvent) map[string]*pb.Session {
	out := map[string]*pb.Session{}
	for _, e := range all {
		out[e.Key] = &pb.Session{Group: "g", Id: e.Key, Value: []byte(e.Value), Revision: e.Revision}
	}
	return out
}

// tied are events of a watch that is tied to a node, of those of one with a prefix.
func tied(all ...record.SessionEvent) []record.SessionEvent {
	for i := range all {
		all[i].Tied = true
	}
	return all
}

func of(prefix string, all ...record.SessionEvent) []record.SessionEvent {
	for i := range all {
		all[i].Prefix = prefix
	}
	return all
}

type watched struct {
	events []record.SessionEvent
	ops    []record.Op
	final  map[string]*pb.Session
	want   string
}

func (w watched) judge() []record.Violation {
	var final map[string]map[string]*pb.Session
	if w.final != nil {
		final = map[string]map[string]*pb.Session{"g": w.final}
	}
	return Watches(w.events, w.ops, final)
}

func TestWatches_Honest(t *testing.T) {
	writes := []record.Op{on("a", put("a1", 3)), on("a", put("a2", 5)), on("b", put("b1", 6)), on("c", del(true)), on("c", put("c1", 2))}
	for name, w := range map[string]watched{
		"every change":      {events: []record.SessionEvent{told("c", "c1", 2), told("a", "a1", 3), gone("c", 4), told("a", "a2", 5), told("b", "b1", 6)}, ops: writes, final: sessions(told("a", "a2", 5), told("b", "b1", 6))},
		"merged":            {events: []record.SessionEvent{resync(), gone("c", 4), told("a", "a2", 5), told("b", "b1", 6)}, ops: writes, final: sessions(told("a", "a2", 5), told("b", "b1", 6))},
		"current first":     {events: []record.SessionEvent{resync(), told("a", "a2", 5), told("c", "c1", 2), gone("c", 4), told("b", "b1", 6)}, ops: writes, final: sessions(told("a", "a2", 5), told("b", "b1", 6))},
		"began late":        {events: []record.SessionEvent{told("b", "b1", 6)}, ops: writes},
		"anew in the midst": {events: []record.SessionEvent{resync(), told("c", "c1", 2), told("a", "a1", 3), resync(), told("a", "a2", 5), told("b", "b1", 6)}, ops: writes, final: sessions(told("a", "a2", 5), told("b", "b1", 6))},
		"anew, and older":   {events: []record.SessionEvent{resync(), told("a", "a2", 5), resync(), told("a", "a1", 3), told("a", "a2", 5), told("b", "b1", 6)}, ops: writes},
		"unknown at the end": {
			events: []record.SessionEvent{resync(), told("a", "a1", 3), told("a", "a2", 4)},
			ops:    []record.Op{on("a", put("a1", 3)), on("a", outcome(record.Unknown, put("a2", 0)))}, final: sessions(told("a", "a1", 3)),
		},
		"unknown after the watch": {
			events: []record.SessionEvent{resync(), told("a", "a1", 3)},
			ops:    []record.Op{on("a", put("a1", 3)), on("a", outcome(record.Unknown, put("a2", 0)))}, final: sessions(told("a", "a2", 4)),
		},
		"unknown deletion after the watch": {
			events: []record.SessionEvent{resync(), told("a", "a1", 3)},
			ops:    []record.Op{on("a", put("a1", 3)), on("a", outcome(record.Unknown, del(false)))}, final: sessions(),
		},
		"a stream":           {events: []record.SessionEvent{resync(), told("a", "x;y;", 4)}, ops: []record.Op{on("a", app("x;", 0, 2, 3)), on("a", app("y;", 2, 4, 4)), on("a", app("x;", 0, 4, 4))}},
		"somebody else's":    {events: []record.SessionEvent{told("z", "z", 7), gone("z", 8)}, ops: writes},
		"tied, and behind":   {events: tied(resync(), told("a", "a1", 3)), ops: []record.Op{on("a", put("a1", 3)), on("b", put("b1", 4))}, final: sessions(told("a", "a1", 3), told("b", "b1", 4))},
		"tied, and deleted":  {events: tied(resync(), told("a", "a1", 3)), ops: []record.Op{on("a", put("a1", 3)), on("a", del(true))}, final: sessions()},
		"of another prefix":  {events: of("x", resync(), told("xa", "x1", 3), told("xa", "x2", 5)), ops: []record.Op{on("xa", put("x1", 3)), on("a", put("a1", 4)), on("xa", put("x2", 5))}, final: sessions(told("xa", "x2", 5), told("a", "a1", 4))},
		"nothing of a group": {events: []record.SessionEvent{resync()}, final: sessions()},
	} {
		t.Run(name, func(t *testing.T) {
			if v := w.judge(); len(v) != 0 {
				t.Error(v)
			}
		})
	}
}

func TestWatches_Detects(t *testing.T) {
	writes := []record.Op{on("a", put("a1", 3)), on("b", put("b1", 4)), on("a", put("a2", 5))}
	end := sessions(told("a", "a2", 5), told("b", "b1", 4))
	for name, w := range map[string]watched{
		"missed":               {events: []record.SessionEvent{told("a", "a1", 3), told("a", "a2", 5)}, ops: writes, want: "did not show"},
		"missed before a list": {events: []record.SessionEvent{told("a", "a1", 3), told("a", "a2", 5), resync(), told("a", "a2", 5)}, ops: writes, want: "did not show"},
		"missed at the end":    {events: []record.SessionEvent{resync(), told("a", "a1", 3), told("b", "b1", 4)}, ops: writes, final: end, want: "it ended at revision 4"},
		"never arrived":        {events: []record.SessionEvent{resync()}, ops: writes, final: end, want: "it ended at revision 0"},
		"out of order":         {events: []record.SessionEvent{told("a", "a1", 3), told("a", "a2", 5), told("b", "b1", 4)}, ops: writes, want: "came after revision 5"},
		"twice":                {events: []record.SessionEvent{told("a", "a1", 3), told("b", "b1", 4), told("b", "b1", 4), told("a", "a2", 5)}, ops: writes, want: "came twice"},
		"again after resuming": {events: []record.SessionEvent{resync(), told("a", "a1", 3), told("b", "b1", 4), told("a", "a1", 3)}, ops: writes, want: "came twice"},
		"backwards":            {events: []record.SessionEvent{resync(), told("a", "a2", 5), told("a", "a1", 3)}, ops: writes, want: "of the same session"},
		"another value":        {events: []record.SessionEvent{told("a", "a2", 3)}, ops: writes, want: `that revision is "a1"`},
		"another revision":     {events: []record.SessionEvent{told("a", "a1", 6)}, ops: writes, want: "it was acknowledged at revision 3"},
		"nobody's value":       {events: []record.SessionEvent{told("a", "x", 4)}, ops: writes, want: "nobody wrote it"},
		"refused value":        {events: []record.SessionEvent{told("a", "x", 4)}, ops: append(writes, on("a", outcome(record.Refused, cas("x", 1, 0)))), want: "nobody wrote it"},
		"nobody's deletion":    {events: []record.SessionEvent{told("a", "a1", 3), gone("a", 4)}, ops: writes, want: "nobody has asked for it"},
		"a list without one":   {events: []record.SessionEvent{resync(), told("a", "a2", 5)}, ops: writes, final: end, want: "never showed"},
		"another end":          {events: []record.SessionEvent{resync(), told("a", "a2", 5), told("b", "b1", 4)}, ops: writes, final: sessions(told("a", "a1", 4), told("b", "b1", 4)), want: "but there is"},
		"gone at the end":      {events: []record.SessionEvent{resync(), told("a", "a2", 5), told("b", "b1", 4)}, ops: writes, final: sessions(told("a", "a2", 5)), want: "not there any more"},
		"back at the end":      {events: []record.SessionEvent{resync(), told("a", "a2", 5), told("b", "b1", 4), gone("b", 6), told("a", "a3", 7)}, ops: append(writes, on("b", del(true)), on("a", put("a3", 7))), final: sessions(told("a", "a3", 7), told("b", "b1", 4)), want: "it was deleted at revision 6"},
		"a piece twice":        {events: []record.SessionEvent{told("a", "x;x;", 4)}, ops: []record.Op{on("a", app("x;", 0, 2, 3))}, want: "is there 2 times"},
		"missed, tied":         {events: tied(told("a", "a1", 3), told("a", "a2", 5)), ops: writes, want: "did not show"},
		"never told, tied":     {events: tied(resync(), told("a", "a2", 5)), ops: writes, final: end, want: "never showed"},
		"missed of a prefix":   {events: of("b", told("b1", "b1", 3), told("b1", "b2", 5)), ops: []record.Op{on("b1", put("b1", 3)), on("b2", put("b2", 4)), on("b1", put("b2", 5))}, want: "did not show"},
		"a piece lost":         {events: []record.SessionEvent{told("a", "y;", 4)}, ops: []record.Op{on("a", app("x;", 0, 2, 3)), on("a", app("y;", 2, 4, 4))}, want: "append"},
		"a foreign piece":      {events: []record.SessionEvent{told("a", "x;z;", 4)}, ops: []record.Op{on("a", app("x;", 0, 2, 3))}, want: "nobody appended"},
	} {
		t.Run(name, func(t *testing.T) {
			v := w.judge()
			if len(v) == 0 || !strings.Contains(v[0].Text, w.want) || v[0].Check != checkWatch {
				t.Errorf("%v, not %q", v, w.want)
			}
		})
	}
}
