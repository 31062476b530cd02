// SPDX-License-Identifier: Apache-2.0

package readindex

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a node's Raft, transport, clock and state, moved by the test.
type world struct {
	clock clock.Fake
	kicks chan struct{}

	mu       sync.Mutex // guards the fields below
	state    raft.RaftState
	leader   raft.ServerID
	term     uint64
	commit   uint64
	barrier  uint64
	servers  []raft.Server
	sent     map[raft.ServerID]clock.Instant
	answered chan struct{}
	own      map[uint64]raft.LogType // entries that are not commands
	applied  []uint64                // indexes that were waited for
	looked   int                     // QuorumSentAt calls
}

func newWorld(ids ...raft.ServerID) *world {
	w := &world{
		kicks: make(chan struct{}, 1024), state: raft.Leader, leader: "n1", term: 3, barrier: 3, commit: 7,
		sent: map[raft.ServerID]clock.Instant{}, answered: make(chan struct{}), own: map[uint64]raft.LogType{},
	}
	w.clock.Advance(time.Second)
	for _, id := range ids {
		w.servers = append(w.servers, raft.Server{ID: id, Suffrage: raft.Voter})
	}
	return w
}

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

func (w *world) VerifyLeader() raft.Future {
	w.kicks <- struct{}{}
	return nil
}

type confFuture struct{ servers []raft.Server }

func (f confFuture) Error() error  { return nil }
func (f confFuture) Index() uint64 { return 0 }
func (f confFuture) Configuration() raft.Configuration {
	return raft.Configuration{Servers: f.servers}
}

func (w *world) GetConfiguration() raft.ConfigurationFuture {
	w.mu.Lock()
	defer w.mu.Unlock()
	return confFuture{slices.Clone(w.servers)}
}

// QuorumSentAt follows the transport's contract; n1 is the node itself.
func (w *world) QuorumSentAt(term uint64, voters []raft.ServerID) (clock.Instant, bool) {
	now := w.clock.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looked++
	var at []clock.Instant
	for _, id := range voters {
		if t, ok := w.sent[id]; id == "n1" {
			at = append(at, now)
		} else if ok && term == w.term {
			at = append(at, t)
		}
	}
	need := len(voters)/2 + 1
	if len(at) < need {
		return 0, false
	}
	slices.Sort(at)
	return at[len(at)-need], true
}

func (w *world) Answered() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.answered
}

// answer records that id has answered an append sent at t.
func (w *world) answer(id raft.ServerID, t clock.Instant) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent[id] = t
	close(w.answered)
	w.answered = make(chan struct{})
}

func (w *world) GetLog(index uint64, log *raft.Log) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	typ, ok := w.own[index]
	if ok && typ == 255 {
		return raft.ErrLogNotFound
	}
	*log = raft.Log{Index: index, Type: typ}
	return nil
}

func (w *world) Barrier() (uint64, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.barrier, w.barrier != 0
}

func (w *world) WaitApplied(_ context.Context, index uint64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.applied = append(w.applied, index)
	return nil
}

func (w *world) waitedFor() []uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.applied)
}

func (w *world) looks(n int) func() error {
	return func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.looked < n {
			return fmt.Errorf("%d looks at the evidence, want %d", w.looked, n)
		}
		return nil
	}
}

func runUntilCleanup(tb testing.TB, fn func(context.Context) error) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- fn(ctx) }()
	tb.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				tb.Errorf("run: %v", err)
			}
		case <-time.After(15 * time.Second):
			tb.Error("run did not return")
		}
	})
}

func newLeader(t *testing.T, w *world, round time.Duration) *Leader {
	t.Helper()
	l, err := NewLeader(LeaderConfig{Raft: w, Evidence: w, Log: w, Barrier: w.Barrier, Clock: &w.clock, Round: round})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

type peerServer struct {
	pb.UnimplementedPeerServiceServer
	node *Node
}

func (s *peerServer) ReadIndex(ctx context.Context, _ *pb.ReadIndexRequest) (*pb.ReadIndexResponse, error) {
	res, err := s.node.ServeReadIndex(ctx)
	return res, hastate.ToStatus(err)
}

// hungServer takes questions and does not answer.
type hungServer struct {
	pb.UnimplementedPeerServiceServer
	asked chan struct{}
}

func (s *hungServer) ReadIndex(ctx context.Context, _ *pb.ReadIndexRequest) (*pb.ReadIndexResponse, error) {
	s.asked <- struct{}{}
	<-ctx.Done()
	return nil, ctx.Err()
}

type fakePeers map[raft.ServerID]*grpc.ClientConn

func (p fakePeers) Conn(id raft.ServerID) (*grpc.ClientConn, error) {
	if c, ok := p[id]; ok {
		return c, nil
	}
	return nil, errors.New("no connection")
}

func (p fakePeers) serve(tb testing.TB, id raft.ServerID, server pb.PeerServiceServer) {
	tb.Helper()
	lis := bufconn.Listen(1 << 20)
	gs := grpc.NewServer()
	pb.RegisterPeerServiceServer(gs, server)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = gs.Serve(lis)
	}()
	conn, err := grpc.NewClient("passthrough:///"+string(id),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		tb.Fatal(err)
	}
	p[id] = conn
	tb.Cleanup(func() {
		gs.Stop()
		_ = conn.Close()
		<-done
	})
}
