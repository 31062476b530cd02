// SPDX-License-Identifier: Apache-2.0

package propose

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeFuture is answered by the test.
type fakeFuture struct {
	entry *pb.Entry
	done  chan struct{}
	err   error
	resp  any
	index uint64
}

func (f *fakeFuture) Error() error  { <-f.done; return f.err }
func (f *fakeFuture) Response() any { return f.resp }
func (f *fakeFuture) Index() uint64 { return f.index }

func (f *fakeFuture) ok() {
	results := make([]*pb.Result, len(f.entry.GetCommands()))
	for i, c := range f.entry.GetCommands() {
		results[i] = &pb.Result{Code: pb.ResultCode_RESULT_CODE_OK, Message: c.GetOpenClient().GetName(), Index: f.index}
	}
	f.resp = results
	close(f.done)
}

func (f *fakeFuture) fail(err error) { f.err = err; close(f.done) }

// fakeRaft hands its futures to the test.
type fakeRaft struct {
	tb      testing.TB
	futures chan *fakeFuture

	mu     sync.Mutex // guards the fields below
	state  raft.RaftState
	leader raft.ServerID
	index  uint64
}

func newFakeRaft(tb testing.TB) *fakeRaft {
	tb.Helper()
	return &fakeRaft{tb: tb, futures: make(chan *fakeFuture, 1024), state: raft.Leader}
}

func (r *fakeRaft) Apply(cmd []byte, _ time.Duration) raft.ApplyFuture {
	e := &pb.Entry{}
	if err := proto.Unmarshal(cmd, e); err != nil {
		r.tb.Errorf("entry: %v", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.index++
	f := &fakeFuture{entry: e, done: make(chan struct{}), index: r.index}
	if r.state != raft.Leader {
		f.fail(raft.ErrNotLeader)
		return f
	}
	r.futures <- f
	return f
}

func (r *fakeRaft) State() raft.RaftState {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state
}

func (r *fakeRaft) LeaderWithID() (raft.ServerAddress, raft.ServerID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return raft.ServerAddress(r.leader), r.leader
}

func (r *fakeRaft) set(state raft.RaftState, leader raft.ServerID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state, r.leader = state, leader
}

func (r *fakeRaft) next() *fakeFuture {
	r.tb.Helper()
	select {
	case f := <-r.futures:
		return f
	case <-time.After(10 * time.Second):
		r.tb.Fatal("no entry was proposed")
		return nil
	}
}

// answerAll applies everything until the test ends.
func (r *fakeRaft) answerAll(tb testing.TB) {
	tb.Helper()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case f := <-r.futures:
				f.ok()
			case <-stop:
				return
			}
		}
	}()
	tb.Cleanup(func() { close(stop); <-done })
}

// runUntilCleanup runs fn with a context that ends with the test, and waits.
func runUntilCleanup(tb testing.TB, fn func(context.Context) error) context.CancelFunc {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- fn(ctx) }()
	var once sync.Once
	stop := func() {
		once.Do(func() {
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
	tb.Cleanup(stop)
	return stop
}

func named(name string) *pb.Command {
	return &pb.Command{Op: &pb.Command_OpenClient{OpenClient: &pb.OpenClient{Name: name}}}
}

// fakePeers serves nodes over in-memory connections.
type fakePeers struct {
	mu    sync.Mutex // guards conns
	conns map[raft.ServerID]*grpc.ClientConn
}

func (p *fakePeers) Conn(id raft.ServerID) (*grpc.ClientConn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c, ok := p.conns[id]; ok {
		return c, nil
	}
	return nil, fmt.Errorf("no connection to %s", id)
}

type peerServer struct {
	pb.UnimplementedPeerServiceServer
	node *Node
}

func (s *peerServer) Forward(stream pb.PeerService_ForwardServer) error {
	return s.node.ServeForward(stream)
}

// serve makes node reachable for the users of p; stop cuts it off.
func (p *fakePeers) serve(tb testing.TB, id raft.ServerID, srv pb.PeerServiceServer) (stop func()) {
	tb.Helper()
	lis := bufconn.Listen(1 << 20)
	gs := grpc.NewServer()
	pb.RegisterPeerServiceServer(gs, srv)
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
	p.mu.Lock()
	if p.conns == nil {
		p.conns = make(map[raft.ServerID]*grpc.ClientConn)
	}
	p.conns[id] = conn
	p.mu.Unlock()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			gs.Stop()
			_ = conn.Close()
			<-done
		})
	}
	tb.Cleanup(stop)
	return stop
}

func wantIs(tb testing.TB, err, target error) {
	tb.Helper()
	if !errors.Is(err, target) {
		tb.Fatalf("got error %v, want %v", err, target)
	}
}
