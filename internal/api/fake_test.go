// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeState is a replicated state that the test changes.
type fakeState struct {
	mu        sync.Mutex // guards the fields below
	revision  uint64
	applied   uint64
	floor     uint64
	groups    map[string]*pb.Group
	instances []*pb.Instance
	sessions  map[string]*pb.Session
	models    []*pb.ModelVersion
	aliases   []*pb.ModelAlias
	history   []*pb.Transition
	events    []Event
	changed   chan struct{}
}

func newFakeState() *fakeState {
	return &fakeState{groups: map[string]*pb.Group{}, sessions: map[string]*pb.Session{}, changed: make(chan struct{})}
}

// change applies fn to the state as one revision with one event.
func (f *fakeState) change(fn func(rev uint64) Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.revision++
	e := fn(f.revision)
	e.Revision = f.revision
	f.events = append(f.events, e)
	close(f.changed)
	f.changed = make(chan struct{})
}

// compact forgets all events.
func (f *fakeState) compact() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.floor, f.events = f.revision, nil
}

// replace takes the place of all that was, as a snapshot does.
func (f *fakeState) replace(g *pb.Group) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.revision += 10
	f.floor, f.events = f.revision, nil
	g.Revision = f.revision
	f.groups[g.GetName()] = g
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeState) putGroup(g *pb.Group, t *pb.Transition) {
	f.change(func(rev uint64) Event {
		g.Revision = rev
		f.groups[g.GetName()] = g
		return Event{Group: g, Transition: t}
	})
}

func (f *fakeState) putSession(s *pb.Session) {
	f.change(func(rev uint64) Event {
		s.Revision = rev
		f.sessions[s.GetGroup()+"/"+s.GetId()] = s
		return Event{Session: &pb.SessionEvent{Revision: rev, Session: s}}
	})
}

func (f *fakeState) ClusterID() string { return "c1" }
func (f *fakeState) Revision() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.revision
}

func (f *fakeState) Applied() (uint64, uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.applied, 1
}
func (f *fakeState) WaitApplied(context.Context, uint64) error { return nil }
func (f *fakeState) Hash() (uint64, [32]byte)                  { return 5, [32]byte{1} }
func (f *fakeState) Changed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

func (f *fakeState) Group(name string) (*pb.Group, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g, ok := f.groups[name]
	return g, ok
}

func (f *fakeState) Groups() []*pb.Group {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*pb.Group
	for _, g := range f.groups {
		out = append(out, g)
	}
	slices.SortFunc(out, func(a, b *pb.Group) int { return strings.Compare(a.GetName(), b.GetName()) })
	return out
}

func (f *fakeState) Instances(group string) []*pb.Instance {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*pb.Instance
	for _, i := range f.instances {
		if group == "" || i.GetGroup() == group {
			out = append(out, i)
		}
	}
	return out
}

func (f *fakeState) History(string, int) []*pb.Transition {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.history
}

func (f *fakeState) Session(group, id string) (*pb.Session, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.sessions[group+"/"+id]
	return s, ok, nil
}

func (f *fakeState) Sessions(q SessionQuery) (SessionPage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	page := SessionPage{Revision: f.revision}
	var ids []string
	for _, s := range f.sessions {
		if s.GetGroup() == q.Group && strings.HasPrefix(s.GetId(), q.Prefix) && s.GetId() > q.After {
			ids = append(ids, s.GetId())
		}
	}
	slices.Sort(ids)
	for _, id := range ids {
		if len(page.Sessions) == q.Limit {
			page.Next = page.Sessions[q.Limit-1].GetId()
			break
		}
		page.Sessions = append(page.Sessions, f.sessions[q.Group+"/"+id])
	}
	return page, nil
}

func (f *fakeState) Model(name, version string) (*pb.ModelVersion, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.models {
		if m.GetRef().GetName() == name && m.GetRef().GetVersion() == version {
			return m, true
		}
	}
	return nil, false
}

func (f *fakeState) ModelByAlias(name, alias string) (*pb.ModelVersion, bool) {
	for _, a := range f.aliases {
		if a.GetName() == name && a.GetAlias() == alias {
			return f.Model(name, a.GetVersion())
		}
	}
	return nil, false
}

func (f *fakeState) Models(string) ([]*pb.ModelVersion, []*pb.ModelAlias) { return f.models, f.aliases }
func (f *fakeState) Members() []*pb.Member                                { return nil }

type fakeFeed struct {
	f     *fakeState
	after uint64
}

func (f *fakeState) Subscribe(after uint64) (Feed, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if after < f.floor {
		return nil, &hastate.CompactedError{Oldest: f.floor, Newest: f.revision}
	}
	return &fakeFeed{f: f, after: after}, nil
}

func (x *fakeFeed) Close() {}
func (x *fakeFeed) Next(ctx context.Context) ([]Event, error) {
	for {
		x.f.mu.Lock()
		changed, floor, revision := x.f.changed, x.f.floor, x.f.revision
		var out []Event
		for _, e := range x.f.events {
			if e.Revision > x.after {
				out = append(out, e)
			}
		}
		x.f.mu.Unlock()
		if x.after < floor {
			return nil, &hastate.CompactedError{Oldest: floor, Newest: revision}
		}
		if len(out) > 0 {
			x.after = out[len(out)-1].Revision
			return out, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-changed:
		}
	}
}
