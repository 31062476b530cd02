// SPDX-License-Identifier: Apache-2.0

package load

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// wrong is what the fake does wrong now and then.
type wrong int

const (
	nothing wrong = iota
	loseWrite
	appendTwice
	ignoreEpoch
	loseEvents
)

// fake is a cluster in memory with the rules of the real one, some unknown
// outcomes, and a defect.
type fake struct {
	wrong wrong

	mu       sync.Mutex // guards all below
	rng      *rand.Rand
	revision uint64
	sessions map[string]map[string]*pb.Session
	events   []*pb.SessionEvent
	groups   []*pb.Group
	epochs   map[string]uint64
	changed  chan struct{}
	late     []func()
	address  string
	resumed  int // watches that went on where they were
}

func newFake(w wrong) *fake {
	return &fake{
		wrong: w, rng: rand.New(rand.NewPCG(7, 7)), sessions: map[string]map[string]*pb.Session{}, epochs: map[string]uint64{},
		changed: make(chan struct{}),
	}
}

func (f *fake) amiss(w wrong) bool { return f.wrong == w && f.rng.IntN(10) == 0 }

// wake tells all who wait. mu is held.
func (f *fake) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// grant gives a group a new epoch.
func (f *fake) grant(group string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.revision++
	f.epochs[group] = f.revision
	f.groups = append(f.groups, &pb.Group{
		Name: group, Phase: pb.GroupPhase_GROUP_PHASE_SERVING, Holder: fmt.Sprintf("n%d", f.revision), Epoch: f.revision, Revision: f.revision,
	})
	f.wake()
}

// wait waits for changes after n of them; false: ctx has ended.
func (f *fake) wait(ctx context.Context, n func() int, seen int) bool {
	for {
		f.mu.Lock()
		changed, now := f.changed, n()
		f.mu.Unlock()
		if now > seen {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

func (f *fake) WatchGroups(ctx context.Context, _ []string, _ uint64, on func(*pb.WatchResponse) error) error {
	for i := 0; f.wait(ctx, func() int { return len(f.groups) }, i); i++ {
		f.mu.Lock()
		g := f.groups[i]
		f.mu.Unlock()
		if err := on(&pb.WatchResponse{Revision: g.GetRevision(), Group: g}); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (f *fake) WatchPrimary(ctx context.Context, group string) (<-chan client.Primary, error) {
	out := make(chan client.Primary)
	go func() {
		defer close(out)
		_ = f.WatchGroups(ctx, nil, 0, func(r *pb.WatchResponse) error {
			if r.GetGroup().GetName() != group {
				return nil
			}
			p := client.Primary{Group: group, NodeID: r.GetGroup().GetHolder(), Address: f.address, Epoch: r.GetGroup().GetEpoch(), Phase: r.GetGroup().GetPhase()}
			select {
			case out <- p:
			case <-ctx.Done():
			}
			return nil
		})
	}()
	return out, nil
}

func (f *fake) Close() error { return nil }

func (f *fake) Sessions(group string) sessions { return fakeSessions{f, group} }

type fakeSessions struct {
	*fake
	group string
}

// do applies a write, or keeps its outcome to itself and does it never, now or
// later.
func (f fakeSessions) do(id string, epoch uint64, apply func(cur *pb.Session) (*pb.SessionOpResult, error)) (*pb.SessionOpResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.late) > 0 && f.rng.IntN(4) == 0 {
		f.late[0]()
		f.late = f.late[1:]
	}
	checked := func() (*pb.SessionOpResult, error) {
		if newest := f.epochs[f.group]; epoch != 0 && epoch != newest && f.wrong != ignoreEpoch {
			return nil, &hastate.FencedError{Group: f.group, Epoch: epoch, NewestEpoch: newest}
		}
		return apply(f.sessions[f.group][id])
	}
	unknown := fmt.Errorf("write: %w", &hastate.OutcomeUnknownError{Reason: "as planned"})
	switch f.rng.IntN(60) {
	case 0:
		return nil, unknown
	case 1:
		_, _ = checked()
		return nil, unknown
	case 2:
		f.late = append(f.late, func() { _, _ = checked() })
		return nil, unknown
	case 3:
		return nil, &hastate.NotLeaderError{}
	}
	return checked()
}

// set writes a session. mu is held.
func (f fakeSessions) set(id, value string) *pb.SessionOpResult {
	f.revision++
	s := &pb.Session{Group: f.group, Id: id, Value: []byte(value), Revision: f.revision}
	result := &pb.SessionOpResult{Revision: f.revision, EndOffset: uint64(len(value))}
	if f.amiss(loseWrite) {
		return result
	}
	if f.sessions[f.group] == nil {
		f.sessions[f.group] = map[string]*pb.Session{}
	}
	f.sessions[f.group][id] = s
	f.tell(&pb.SessionEvent{Revision: f.revision, Session: s})
	return result
}

// tell tells the watches, but never of every tenth session if events are lost.
func (f fakeSessions) tell(e *pb.SessionEvent) {
	if f.wrong == loseEvents && strings.HasSuffix(e.GetSession().GetId(), "4") {
		return
	}
	f.events = append(f.events, e)
	f.wake()
}

func (f fakeSessions) conflict(cur *pb.Session) error {
	return fmt.Errorf("write: %w", &hastate.ConflictError{CurrentRevision: cur.GetRevision(), CurrentOffset: uint64(len(cur.GetValue()))})
}

func (f fakeSessions) Put(_ context.Context, r *pb.PutRequest) (*pb.SessionOpResult, error) {
	return f.do(r.GetSession().GetId(), r.GetSession().GetEpoch(), func(cur *pb.Session) (*pb.SessionOpResult, error) {
		if r.GetIfAbsent() && cur != nil || r.GetIfRevision() != 0 && cur.GetRevision() != r.GetIfRevision() {
			return nil, f.conflict(cur)
		}
		return f.set(r.GetSession().GetId(), string(r.GetSession().GetValue())), nil
	})
}

func (f fakeSessions) Append(_ context.Context, r *pb.AppendRequest) (*pb.SessionOpResult, error) {
	return f.do(r.GetId(), r.GetEpoch(), func(cur *pb.Session) (*pb.SessionOpResult, error) {
		value := string(cur.GetValue())
		if r.GetOffset() != uint64(len(value)) {
			return nil, f.conflict(cur)
		}
		if f.amiss(appendTwice) {
			value += string(r.GetData())
		}
		return f.set(r.GetId(), value+string(r.GetData())), nil
	})
}

func (f fakeSessions) Delete(_ context.Context, r *pb.DeleteRequest) (*pb.SessionOpResult, error) {
	return f.do(r.GetId(), r.GetEpoch(), func(cur *pb.Session) (*pb.SessionOpResult, error) {
		switch {
		case cur == nil:
			return &pb.SessionOpResult{}, nil
		case r.GetIfRevision() != 0 && r.GetIfRevision() != cur.GetRevision():
			return nil, f.conflict(cur)
		}
		delete(f.sessions[f.group], r.GetId())
		f.revision++
		f.tell(&pb.SessionEvent{Revision: f.revision, Session: &pb.Session{Group: f.group, Id: r.GetId()}, Deleted: true})
		return &pb.SessionOpResult{Deleted: true}, nil
	})
}

func (f fakeSessions) Get(_ context.Context, id string, _ pb.ReadLevel) (*pb.Session, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.sessions[f.group][id]; s != nil {
		return proto.CloneOf(s), nil
	}
	return nil, fmt.Errorf("get: %w", hastate.ErrNotFound)
}

func (f fakeSessions) List(context.Context) ([]*pb.Session, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Values(f.sessions[f.group])), nil
}

// Watch begins with the current sessions if after is 0, and anew now and then.
func (f fakeSessions) Watch(ctx context.Context, prefix string, after uint64, on func(client.SessionChange) error) error {
	if after != 0 && prefix == "" {
		f.mu.Lock()
		f.resumed++
		f.mu.Unlock()
	}
	for again := false; ; again = true {
		if again {
			if err := on(client.SessionChange{Resync: true}); err != nil {
				return err
			}
			after = 0
		}
		next := 0
		if after == 0 {
			var current []*pb.SessionEvent
			f.mu.Lock()
			for _, id := range slices.Sorted(maps.Keys(f.sessions[f.group])) {
				s := f.sessions[f.group][id]
				if !strings.HasPrefix(id, prefix) {
					continue
				}
				current = append(current, &pb.SessionEvent{Revision: s.GetRevision(), Session: s})
			}
			after, next = f.revision, len(f.events)
			f.mu.Unlock()
			for _, e := range current {
				if err := on(client.SessionChange{Event: e}); err != nil {
					return err
				}
			}
		}
		for left := 2000; left > 0; next++ {
			if !f.wait(ctx, func() int { return len(f.events) }, next) {
				return ctx.Err()
			}
			f.mu.Lock()
			e := f.events[next]
			f.mu.Unlock()
			if e.GetRevision() <= after || e.GetSession().GetGroup() != f.group || !strings.HasPrefix(e.GetSession().GetId(), prefix) {
				continue
			}
			left--
			if err := on(client.SessionChange{Event: e}); err != nil {
				return err
			}
		}
	}
}

// servePrimary answers requests as the primary that the fake has now.
func (f *fake) servePrimary(t *testing.T) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.address = listener.Addr().String()
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		g := f.groups[len(f.groups)-1]
		fmt.Fprintf(w, `{"node":%q,"group":%q,"epoch":%d,"at":%d}`, g.GetHolder(), g.GetName(), g.GetEpoch(), clock.Boot{}.Now())
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener) // it ends with Close
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
}
