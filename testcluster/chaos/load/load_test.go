// SPDX-License-Identifier: Apache-2.0

package load

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/internal/wait"
	"github.com/hastate/hastate/testcluster/chaos/check"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

// run loads a fake for a number of acknowledgements, with new epochs and chapters,
// and stops.
func run(t *testing.T, f *fake, acks int) (*Load, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	f.grant("g")
	l, err := Start(ctx, Options{
		Groups: []string{"g", "h"}, Dir: t.TempDir(), Seed: 3, Think: time.Millisecond, AppendEvery: time.Millisecond, CallEvery: 2 * time.Millisecond,
		NoCallers: f.address == "", dial: func() (cluster, error) { return f, nil },
		Endpoints: []string{"a", "b"}, dialNode: func(string) (cluster, error) { return f, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if err := l.Progress(ctx, acks/4); err != nil {
			t.Error(err)
		}
		f.grant("g")
		l.NextChapter()
	}
	short, stop := context.WithTimeout(ctx, 5*time.Second)
	defer stop()
	return l, l.Stop(short)
}

// judge runs all checks on what a load has recorded.
func judge(l *Load) []record.Violation {
	_, v := check.ExactlyOnce(l.Ops(0))
	v = append(v, check.Linearizable(l.Ops(0), patience).Violations...)
	v = append(v, check.Watches(l.SessionEvents(0), l.Ops(0), l.Final())...)
	v = append(v, check.GroupWatch(l.GroupEvents(0))...)
	return append(v, check.OnePrimary(nil, nil, l.GroupEvents(0), l.Ops(0), l.Requests(0))...)
}

// TestLoad_Honest: what clients of a correct cluster record is judged correct, and
// it has everything in it that is to be tried.
func TestLoad_Honest(t *testing.T) {
	f := newFake(nothing)
	f.servePrimary(t)
	l, err := run(t, f, 2000)
	if err != nil {
		t.Fatal(err)
	}
	if v := judge(l); len(v) != 0 {
		t.Error(v)
	}
	if f.resumed < 5 {
		t.Errorf("watches were resumed only %d times", f.resumed)
	}
	if n := check.Resumes(l.SessionEvents(0)); n != f.resumed {
		t.Errorf("%d of %d resumes are recorded", n, f.resumed)
	}
	if l.Strange() != 0 {
		t.Errorf("%d strange outcomes", l.Strange())
	}
	counts, _ := check.ExactlyOnce(l.Ops(0))
	if counts.Acknowledged == 0 || counts.Unread != 0 {
		t.Errorf("%+v", counts)
	}
	kinds := map[string]int{}
	for _, op := range l.Ops(0) {
		kinds[op.Kind+" "+op.Outcome]++
		if op.Epoch != 0 {
			kinds["under an epoch "+op.Outcome]++
		}
	}
	for _, kind := range []string{
		"put ok", "create ok", "cas ok", "append ok", "delete ok", "get ok", "create refused", "cas refused", "append refused",
		"put unknown", "cas unknown", "append unknown", "put failed", "under an epoch ok", "under an epoch refused",
	} {
		if kinds[kind] == 0 {
			t.Errorf("nothing was %s: %v", kind, kinds)
		}
	}
	tied := 0
	for _, e := range l.SessionEvents(0) {
		if e.Tied && e.Key != "" {
			tied++
		}
	}
	if tied == 0 {
		t.Error("tied watches told of nothing")
	}
	if len(l.GroupEvents(0)) < 5 || l.Epochs()["g"] == 0 {
		t.Errorf("%d group events, %v", len(l.GroupEvents(0)), l.Epochs())
	}
	onDisk, err := record.Read[record.Op](filepath.Join(l.o.Dir, "records", "ops.jsonl"))
	if err != nil || len(onDisk) != len(l.Ops(0)) {
		t.Errorf("%d of %d operations are in the file: %v", len(onDisk), len(l.Ops(0)), err)
	}
	if n := len(l.Ops(len(onDisk) - 3)); n != 3 {
		t.Errorf("%d operations since the third last", n)
	}
	answered := 0
	for _, r := range l.Requests(0) {
		if r.Error == "" && r.Epoch != 0 {
			answered++
		}
	}
	if answered == 0 {
		t.Errorf("no answer in %d requests", len(l.Requests(0)))
	}
}

// TestLoad_Detects: what a wrong cluster does is in the records.
func TestLoad_Detects(t *testing.T) {
	for name, c := range map[string]struct {
		wrong
		check string
	}{
		"write lost": {loseWrite, "linearizability"}, "appended twice": {appendTwice, "exactly-once"},
		"epoch ignored": {ignoreEpoch, "one-primary"}, "events lost": {loseEvents, "watch"},
	} {
		t.Run(name, func(t *testing.T) {
			l, _ := run(t, newFake(c.wrong), 1000) // a watch that lost the end does not get there
			for _, v := range judge(l) {
				if v.Check == c.check {
					return
				}
			}
			t.Errorf("not found by %s: %v", c.check, judge(l))
		})
	}
}

// TestLoad_Retires: a session with many unknown outcomes gets no more writes.
func TestLoad_Retires(t *testing.T) {
	o := Options{Groups: []string{"g"}, KVKeys: 1, StreamKeys: 1}
	b := newBook(o)
	kv, stream := b.slots[0], b.slots[1]
	for range maxUnknowns {
		b.done(kv, record.Op{Kind: record.Put, Outcome: record.Unknown})
	}
	b.done(kv, record.Op{Kind: record.Get, Outcome: record.Unknown})
	if b.slots[0] != kv {
		t.Error("retired too early")
	}
	b.done(kv, record.Op{Kind: record.Put, Outcome: record.Unknown})
	if b.slots[0] == kv || b.slots[0].id == kv.id || b.slots[0].stream {
		t.Errorf("not replaced: %+v", b.slots[0])
	}
	b.done(kv, record.Op{Kind: record.Put, Outcome: record.Unknown}) // one that was under way
	b.done(stream, record.Op{Kind: record.Append, Outcome: record.OK, EndOffset: maxStreamBytes + 1})
	if b.slots[1] == stream || !b.slots[1].stream {
		t.Errorf("not replaced: %+v", b.slots[1])
	}
}

func TestSettle(t *testing.T) {
	for _, c := range []struct {
		kind    string
		err     error
		want    record.Op
		strange bool
	}{
		{record.Put, nil, record.Op{Outcome: record.OK}, false},
		{record.Put, &hastate.OutcomeUnknownError{}, record.Op{Outcome: record.Unknown}, false},
		{record.Put, errors.Join(&hastate.NotLeaderError{}, &hastate.OutcomeUnknownError{}), record.Op{Outcome: record.Unknown}, false},
		{record.CAS, &hastate.ConflictError{CurrentRevision: 4, CurrentOffset: 7}, record.Op{Outcome: record.Refused, Revision: 4, EndOffset: 7}, false},
		{record.Put, &hastate.FencedError{NewestEpoch: 9}, record.Op{Outcome: record.Refused}, false},
		{record.Put, &hastate.NotLeaderError{LeaderID: "n2"}, record.Op{Outcome: record.Failed}, false},
		{record.Put, &hastate.NotLeaderError{}, record.Op{Outcome: record.Failed}, false},
		{record.Put, &hastate.LimitError{}, record.Op{Outcome: record.Failed}, false},
		{record.Put, context.DeadlineExceeded, record.Op{Outcome: record.Failed}, false},
		{record.Put, errors.New("what?"), record.Op{Outcome: record.Unknown}, true},
		{record.Get, hastate.ErrNotFound, record.Op{Outcome: record.OK}, false},
		{record.Get, errors.New("what?"), record.Op{Outcome: record.Failed}, false},
	} {
		op := record.Op{Kind: c.kind}
		strange := settle(&op, c.err)
		op.Kind, op.Error = "", ""
		if op != c.want || strange != c.strange {
			t.Errorf("%s, %v: %+v, %v", c.kind, c.err, op, strange)
		}
	}
}

func TestGap(t *testing.T) {
	requests, err := newLog[record.Request](t.TempDir(), "requests")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = requests.close() }()
	l := &Load{requests: requests}
	for _, r := range []record.Request{
		{Group: "g", Return: 10}, {Group: "g", Return: 100, Error: "no"}, {Group: "g", Return: 70}, {Group: "g", Return: 40}, {Group: "h", Return: 55},
	} {
		requests.add(r)
	}
	for _, c := range []struct{ from, until, want clock.Instant }{{0, 80, 30}, {0, 200, 130}, {-70, 80, 80}, {80, 120, 40}} {
		if got, err := l.Gap("g", c.from, c.until); err != nil || got != time.Duration(c.want) {
			t.Errorf("from %d until %d: %v, %v", c.from, c.until, got, err)
		}
	}
	if _, err := l.Gap("x", 0, 100); err == nil || !strings.Contains(err.Error(), `"x"`) {
		t.Errorf("%v", err)
	}
}

// TestLoad_Ends: a load whose context has ended is stopped like any other.
func TestLoad_Ends(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	f := newFake(nothing)
	l, err := Start(ctx, Options{Groups: []string{"g"}, Dir: t.TempDir(), NoCallers: true, Think: time.Millisecond, dial: func() (cluster, error) { return f, nil }})
	if err != nil {
		t.Fatal(err)
	}
	wait.Until(t, patience, func() error {
		if l.Acked() == 0 {
			return errors.New("nothing was acknowledged")
		}
		return nil
	})
	cancel()
	if err := l.Progress(t.Context(), 1_000_000); err == nil {
		t.Error("progress after the end")
	}
	if err := l.Stop(t.Context()); err == nil {
		t.Errorf("%v", err)
	}
}

// TestStart_Refuses: what cannot be done leaves nothing running.
func TestStart_Refuses(t *testing.T) {
	no := errors.New("no")
	dials := 0
	for name, o := range map[string]Options{
		"no groups": {Dir: t.TempDir()},
		"no folder": {Groups: []string{"g"}},
		"no client": {Groups: []string{"g"}, Dir: t.TempDir(), dial: func() (cluster, error) {
			if dials++; dials > 4 {
				return nil, no
			}
			return newFake(nothing), nil
		}},
		"no file": {Groups: []string{"g"}, Dir: "/dev/null"},
	} {
		if l, err := Start(t.Context(), o); err == nil || l != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// behind is a cluster whose watches of whole groups tell of a change only when there
// is a later one.
type behind struct{ *fake }

func (b behind) Sessions(group string) sessions {
	return behindSessions{fakeSessions{b.fake, group}}
}

type behindSessions struct{ fakeSessions }

func (b behindSessions) Watch(ctx context.Context, prefix string, after uint64, on func(client.SessionChange) error) error {
	if prefix != "" {
		return b.fakeSessions.Watch(ctx, prefix, after, on)
	}
	return b.fakeSessions.Watch(ctx, prefix, after, func(c client.SessionChange) error {
		// The last one is let through if it is the end of the group's own watches.
		own := strings.HasPrefix(c.Event.GetSession().GetId(), "!end-")
		if !own && !b.wait(ctx, func() int { return int(b.revision) }, int(c.Event.GetRevision())) {
			return ctx.Err()
		}
		return on(c)
	})
}

// TestStop_WatchesOfWholeGroups get to all that was acknowledged before the end, the
// marks for the watches that keep to a node included.
func TestStop_WatchesOfWholeGroups(t *testing.T) {
	f := newFake(nothing)
	l, err := Start(t.Context(), Options{
		Groups: []string{"g"}, Dir: t.TempDir(), NoCallers: true, Think: time.Millisecond,
		dial: func() (cluster, error) { return behind{f}, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := l.Progress(ctx, 20); err != nil {
		t.Error(err)
	}
	if err := l.Stop(ctx); err != nil {
		t.Error(err)
	}
	for _, v := range check.Watches(l.SessionEvents(0), l.Ops(0), l.Final()) {
		t.Errorf("%+v", v)
	}
}

// silent is a node whose session watches tell of nothing.
type silent struct{ *fake }

func (s silent) Sessions(group string) sessions {
	return silentSessions{s.fake.Sessions(group)}
}

type silentSessions struct{ sessions }

func (silentSessions) Watch(ctx context.Context, _ string, _ uint64, _ func(client.SessionChange) error) error {
	<-ctx.Done()
	return ctx.Err()
}

// TestStop_TiedWatches: the watches of every member have to get to the end, those of
// a node that has left need not.
func TestStop_TiedWatches(t *testing.T) {
	for member, ok := range map[string]bool{"talks": true, "silent": false} {
		f := newFake(nothing)
		l, err := Start(t.Context(), Options{
			Groups: []string{"g"}, Dir: t.TempDir(), NoCallers: true, Think: time.Millisecond, OpTimeout: 200 * time.Millisecond,
			dial:      func() (cluster, error) { return f, nil },
			Endpoints: []string{"talks", "silent"},
			dialNode: func(endpoint string) (cluster, error) {
				if endpoint == "silent" {
					return silent{f}, nil
				}
				return f, nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if !ok {
			cancel()
			ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		}
		err = l.Stop(ctx, member)
		cancel()
		if (err == nil) != ok {
			t.Errorf("with the member %q: %v", member, err)
		}
		if !ok && err != nil && !strings.Contains(err.Error(), "at silent did not get to") {
			t.Errorf("with the member %q: %v", member, err)
		}
	}
}
