// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a cluster as its leader n1 sees it: Raft, state, and the others.
type world struct {
	clock clock.Fake

	mu        sync.Mutex // guards the fields below
	state     raft.RaftState
	leader    raft.ServerID
	term      uint64
	barrier   uint64
	commit    uint64
	conf      raft.Configuration
	index     uint64 // of conf
	known     uint64 // index that the state machine tells; index unless set
	records   map[string]*pb.Member
	groups    []*pb.Group
	instances []*pb.Instance
	answered  map[raft.ServerID]clock.Instant
	seen      map[raft.ServerID]Seen
	at        map[string]*pb.HelloResponse // who answers where
	did       []string
	raftErr   error
	transfer  func(to raft.ServerID) error
	// unborn: the cluster id is not written yet.
	unborn bool
}

func newWorld(voters ...raft.ServerID) *world {
	w := &world{
		state: raft.Leader, leader: "n1", term: 3, barrier: 3, commit: 10_000, index: 7,
		records: map[string]*pb.Member{}, answered: map[raft.ServerID]clock.Instant{}, seen: map[raft.ServerID]Seen{},
		at: map[string]*pb.HelloResponse{},
	}
	w.clock.Advance(time.Hour)
	for _, id := range voters {
		w.add(id, raft.Voter)
	}
	return w
}

// add makes a healthy member.
func (w *world) add(id raft.ServerID, s raft.ServerSuffrage) {
	w.conf.Servers = append(w.conf.Servers, raft.Server{ID: id, Address: raft.ServerAddress(id), Suffrage: s})
	w.records[string(id)] = &pb.Member{NodeId: string(id), Address: addr(id), Role: roleOf(s), Version: "v1"}
	w.answered[id] = w.clock.Now()
	w.seen[id] = Seen{Applied: w.commit, Version: "v1"}
	w.at[addr(id)] = &pb.HelloResponse{NodeId: string(id), BootId: "boot-" + string(id), ClusterId: "c1", HasState: true}
}

// newcomer is an empty node that runs at address.
func (w *world) newcomer(id, address string) {
	w.at[address] = &pb.HelloResponse{NodeId: id, BootId: "boot-" + id}
}

// silence makes nodes stop answering.
func (w *world) silence(ids ...raft.ServerID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range ids {
		w.answered[id] = w.clock.Now().Add(-time.Hour)
		delete(w.at, addr(id))
	}
}

func addr(id raft.ServerID) string { return string(id) + ":1" }

func (w *world) locked(fn func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fn()
}

func (w *world) State() raft.RaftState {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state
}

func (w *world) CurrentTerm() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.term
}

func (w *world) CommitIndex() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.commit
}

func (w *world) LeaderWithID() (raft.ServerAddress, raft.ServerID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return raft.ServerAddress(w.leader), w.leader
}

type future struct{ err error }

func (f future) Error() error  { return f.err }
func (f future) Index() uint64 { return 0 }

// reconfigure is what raft does with a change.
func (w *world) reconfigure(what string, id raft.ServerID, prev uint64, change func([]raft.Server) []raft.Server) raft.IndexFuture {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.raftErr != nil:
		return future{w.raftErr}
	case prev == 0:
		return future{errors.New("a change without the index of its configuration")}
	case prev != w.index:
		return future{fmt.Errorf("configuration changed since %d (latest is %d)", prev, w.index)}
	}
	w.did = append(w.did, what+" "+string(id))
	w.conf.Servers = change(slices.Clone(w.conf.Servers))
	w.index++
	return future{}
}

func set(id raft.ServerID, address raft.ServerAddress, s raft.ServerSuffrage) func([]raft.Server) []raft.Server {
	return func(in []raft.Server) []raft.Server {
		in = slices.DeleteFunc(in, func(x raft.Server) bool { return x.ID == id })
		return append(in, raft.Server{ID: id, Address: address, Suffrage: s})
	}
}

func (w *world) AddNonvoter(id raft.ServerID, a raft.ServerAddress, prev uint64, _ time.Duration) raft.IndexFuture {
	return w.reconfigure("nonvoter", id, prev, set(id, a, raft.Nonvoter))
}

func (w *world) AddVoter(id raft.ServerID, a raft.ServerAddress, prev uint64, _ time.Duration) raft.IndexFuture {
	return w.reconfigure("voter", id, prev, set(id, a, raft.Voter))
}

func (w *world) DemoteVoter(id raft.ServerID, prev uint64, _ time.Duration) raft.IndexFuture {
	return w.reconfigure("demote", id, prev, set(id, raft.ServerAddress(id), raft.Nonvoter))
}

func (w *world) RemoveServer(id raft.ServerID, prev uint64, _ time.Duration) raft.IndexFuture {
	return w.reconfigure("remove", id, prev, func(in []raft.Server) []raft.Server {
		return slices.DeleteFunc(in, func(x raft.Server) bool { return x.ID == id })
	})
}

func (w *world) LeadershipTransferToServer(id raft.ServerID, _ raft.ServerAddress) raft.Future {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.did = append(w.did, "transfer "+string(id))
	if w.transfer != nil {
		return future{w.transfer(id)}
	}
	w.state, w.leader, w.term = raft.Follower, id, w.term+1
	return future{}
}

func (w *world) ClusterID() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.unborn {
		return ""
	}
	return "c1"
}
func (w *world) Applied() (index, term uint64) { return 4711, 3 }

func (w *world) Configuration() (raft.Configuration, uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.known != 0 {
		return w.conf.Clone(), w.known
	}
	return w.conf.Clone(), w.index
}

func (w *world) Members() []*pb.Member {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []*pb.Member
	for _, r := range w.records {
		out = append(out, proto.CloneOf(r))
	}
	return out
}

func (w *world) Groups() []*pb.Group {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.groups
}

func (w *world) Instances(string) []*pb.Instance {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.instances
}

func (w *world) Propose(_ context.Context, cmd *pb.Command) (*pb.Result, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	ok := &pb.Result{Code: pb.ResultCode_RESULT_CODE_OK}
	switch op := cmd.GetOp().(type) {
	case *pb.Command_SetMember:
		rec := op.SetMember.GetMember()
		w.records[rec.GetNodeId()] = rec
		w.did = append(w.did, "record "+rec.GetNodeId())
	case *pb.Command_DeleteMember:
		if _, known := w.records[op.DeleteMember.GetNodeId()]; !known {
			return &pb.Result{Code: pb.ResultCode_RESULT_CODE_NOT_FOUND}, nil
		}
		delete(w.records, op.DeleteMember.GetNodeId())
		w.did = append(w.did, "forget "+op.DeleteMember.GetNodeId())
	case *pb.Command_RemoveInstance:
		w.did = append(w.did, "instance "+op.RemoveInstance.GetNodeId())
	}
	return ok, nil
}

func (w *world) LastAnswered(id raft.ServerID) (clock.Instant, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at, ok := w.answered[id]
	return at, ok
}

func (w *world) greet(_ context.Context, address string) (*pb.HelloResponse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if h, ok := w.at[address]; ok {
		return h, nil
	}
	return nil, errors.New("connection refused")
}

func (w *world) story() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.did, ", ")
}

func newMembership(t *testing.T, w *world) *Membership {
	t.Helper()
	m, err := New(Config{
		ID: "n1", Version: "v1", Raft: w, State: w, Proposer: w, Reach: w, Greet: w.greet, Clock: &w.clock,
		Heartbeat: 100 * time.Millisecond, Interval: time.Millisecond,
		Barrier: func() (uint64, bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.barrier, true
		},
		Seen: func(id raft.ServerID) (Seen, bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			s, ok := w.seen[id]
			return s, ok
		},
		Address: func(id raft.ServerID) string {
			if id == "n9" {
				return ""
			}
			return addr(id)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func wantIs(tb testing.TB, err, target error) {
	tb.Helper()
	if !errors.Is(hastate.FromStatus(err), target) {
		tb.Fatalf("got error %v, want %v", err, target)
	}
}
