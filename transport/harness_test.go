// SPDX-License-Identifier: Apache-2.0

package transport

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
	"google.golang.org/grpc/test/bufconn"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const long = 10 * time.Second // far longer than anything takes

// mesh is a network of pipes: address -> listener.
type mesh struct {
	mu        sync.Mutex
	listeners map[string]*bufconn.Listener // guarded by mu
	addresses map[raft.ServerID]string     // guarded by mu; absent: the id itself
}

func newMesh() *mesh {
	return &mesh{listeners: make(map[string]*bufconn.Listener), addresses: make(map[raft.ServerID]string)}
}

func (m *mesh) dial(ctx context.Context, address string) (net.Conn, error) {
	m.mu.Lock()
	l := m.listeners[address]
	m.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("nobody listens at %s", address)
	}
	return l.DialContext(ctx)
}

func (m *mesh) resolve(id raft.ServerID) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a, ok := m.addresses[id]; ok {
		return a, nil
	}
	return string(id), nil
}

func (m *mesh) move(id raft.ServerID, address string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.addresses[id] = address
}

// add makes a transport and lets it listen at its id.
func (m *mesh) add(tb testing.TB, id raft.ServerID, change func(*Options)) *Transport {
	tb.Helper()
	opts := Options{ID: id, Resolve: m.resolve, DialContext: m.dial, Heartbeat: 2 * time.Second}
	if change != nil {
		change(&opts)
	}
	t, err := New(opts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := t.Close(); err != nil {
			tb.Error(err)
		}
	})
	m.listen(tb, string(id), t)
	return t
}

// listen serves t at an address until the test ends or stop is called.
func (m *mesh) listen(tb testing.TB, address string, t *Transport) (stop func()) {
	tb.Helper()
	l := bufconn.Listen(1 << 20)
	s := grpc.NewServer(append(ServerOptions(),
		grpc.ChainUnaryInterceptor(t.UnaryServerInterceptor()),
		grpc.ChainStreamInterceptor(t.StreamServerInterceptor()))...)
	t.Register(s)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	m.mu.Lock()
	m.listeners[address] = l
	m.mu.Unlock()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			m.mu.Lock()
			if m.listeners[address] == l {
				delete(m.listeners, address)
			}
			m.mu.Unlock()
			s.Stop()
			if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				tb.Error(err)
			}
		})
	}
	tb.Cleanup(stop)
	return stop
}

// answer plays the Raft node of t until the test ends.
func answer(tb testing.TB, t *Transport, f func(raft.RPC)) {
	tb.Helper()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case rpc := <-t.Consumer():
				f(rpc)
			case <-stop:
				return
			}
		}
	}()
	tb.Cleanup(func() {
		close(stop)
		<-done
	})
}

// accept answers appends with success in their own term.
func accept(rpc raft.RPC) {
	switch r := rpc.Command.(type) {
	case *raft.AppendEntriesRequest:
		rpc.Respond(&raft.AppendEntriesResponse{Term: r.Term, Success: true, LastLog: r.PrevLogEntry + uint64(len(r.Entries))}, nil)
	case *raft.RequestVoteRequest:
		rpc.Respond(&raft.RequestVoteResponse{Term: r.Term, Granted: true}, nil)
	case *raft.RequestPreVoteRequest:
		rpc.Respond(&raft.RequestPreVoteResponse{Term: r.Term, Granted: true}, nil)
	case *raft.TimeoutNowRequest:
		rpc.Respond(&raft.TimeoutNowResponse{}, nil)
	default:
		rpc.Respond(nil, fmt.Errorf("unexpected %T", r))
	}
}

func header(id raft.ServerID) raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: 3, ID: []byte(id), Addr: []byte(id)}
}

func heartbeatOf(id raft.ServerID, term uint64) *raft.AppendEntriesRequest {
	return &raft.AppendEntriesRequest{RPCHeader: header(id), Term: term, Leader: []byte(id)}
}

// appendOf is an append of n entries after prev, all of one term.
func appendOf(id raft.ServerID, term, prev uint64, n int) *raft.AppendEntriesRequest {
	r := &raft.AppendEntriesRequest{RPCHeader: header(id), Term: term, Leader: []byte(id), PrevLogEntry: prev, PrevLogTerm: term, LeaderCommitIndex: prev}
	if prev == 0 {
		r.PrevLogTerm = 0
	}
	for i := range n {
		r.Entries = append(r.Entries, &raft.Log{Index: prev + 1 + uint64(i), Term: term, Type: raft.LogCommand, Data: []byte("data")})
	}
	return r
}

// fakeRaft is a RaftState that is set by hand.
type fakeRaft struct {
	mu    sync.Mutex
	state raft.RaftState // guarded by mu
	term  uint64         // guarded by mu
}

func (f *fakeRaft) set(s raft.RaftState, term uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state, f.term = s, term
}

func (f *fakeRaft) State() raft.RaftState {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

func (f *fakeRaft) CurrentTerm() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.term
}
