// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/election"
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// world is everything else that the services use.
type world struct {
	clock clock.Fake
	*fakeState

	mu     sync.Mutex // guards the fields below
	rstate raft.RaftState
	leader raft.ServerID
	// fresh is what is known of the state; 0: nothing.
	fresh    clock.Instant
	commit   uint64
	stored   clock.Instant
	readErr  error
	reads    int
	commands []*pb.Command
	apply    func(*pb.Command) (*pb.Result, error)
	moves    []string
	holders  map[string]Holder
	conns    map[raft.ServerID]*grpc.ClientConn
	members  []*pb.Member
	archive  []byte
	deadline time.Duration
}

// lock runs fn with the locks of the world and of its state.
func (w *world) lock(fn func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fakeState.mu.Lock()
	defer w.fakeState.mu.Unlock()
	fn()
}

func (w *world) Propose(ctx context.Context, cmd *pb.Command) (*pb.Result, error) {
	d, ok := ctx.Deadline()
	w.mu.Lock()
	defer w.mu.Unlock()
	if ok {
		w.deadline = time.Until(d)
	}
	w.commands = append(w.commands, cmd)
	return w.apply(cmd)
}

func (w *world) ProposeAsync(cmd *pb.Command, done func(*pb.Result, error)) {
	done(w.Propose(context.Background(), cmd))
}
func (w *world) ServeForward(pb.PeerService_ForwardServer) error { return nil }
func (w *world) Read(context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reads++
	return w.readErr
}

func (w *world) ServeReadIndex(context.Context) (*pb.ReadIndexResponse, error) {
	return &pb.ReadIndexResponse{Index: 9}, nil
}

func (w *world) FreshAsOf() (clock.Instant, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fresh, w.fresh != 0
}

// raftSide and logSide keep apart what has the same name as in the state.
type raftSide struct{ w *world }

func (r raftSide) State() raft.RaftState {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	return r.w.rstate
}

func (r raftSide) LeaderWithID() (raft.ServerAddress, raft.ServerID) {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	return raft.ServerAddress(r.w.leader), r.w.leader
}
func (r raftSide) CurrentTerm() uint64 { return 7 }
func (r raftSide) LastIndex() uint64   { return 11 }
func (r raftSide) CommitIndex() uint64 {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	return r.w.commit
}

func (w *world) GetLog(uint64, *raft.Log) error { return raft.ErrLogNotFound }
func (w *world) StoredAt(uint64) clock.Instant {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stored
}

func (w *world) Conn(id raft.ServerID) (*grpc.ClientConn, error) {
	if c, ok := w.conns[id]; ok {
		return c, nil
	}
	return nil, fmt.Errorf("no connection to %s", id)
}

func (w *world) move(verb, group, to, reason string) (*pb.Transition, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.moves = append(w.moves, verb+" "+group+" "+to+" "+reason)
	return &pb.Transition{Group: group, To: to, Reason: reason}, nil
}

func (w *world) Switchover(_ context.Context, group, to, reason string) (*pb.Transition, error) {
	return w.move("switchover", group, to, reason)
}

func (w *world) Failover(_ context.Context, group, to, reason string, force bool) (*pb.Transition, error) {
	return w.move(fmt.Sprintf("failover force=%v", force), group, to, reason)
}

type memberSide struct{ w *world }

func (m memberSide) Members() []*pb.Member { return m.w.members }
func (m memberSide) Add(_ context.Context, id, address string, replica bool) (*pb.Member, error) {
	m.w.lock(func() { m.w.moves = append(m.w.moves, fmt.Sprintf("add %s %s %v", id, address, replica)) })
	return &pb.Member{NodeId: id}, nil
}
func (m memberSide) Remove(context.Context, string, bool) error { return nil }
func (m memberSide) Promote(context.Context, string) error {
	return fmt.Errorf("%w: not now", hastate.ErrPrecondition)
}
func (m memberSide) Demote(context.Context, string) error { panic("demote") }
func (m memberSide) Transfer(_ context.Context, to string) (string, error) {
	return to, nil
}

func (m memberSide) Join(context.Context, *pb.JoinRequest) (*pb.JoinResponse, error) {
	return &pb.JoinResponse{ClusterId: "c1"}, nil
}

func (w *world) Save(_ context.Context, out io.Writer) error {
	_, err := out.Write(w.archive)
	return err
}

func (w *world) Restore(_ context.Context, in io.Reader) (uint64, error) {
	b, err := io.ReadAll(in)
	w.lock(func() { w.archive = b })
	return uint64(len(b)), err
}

func (w *world) Hello(context.Context, *pb.HelloRequest) (*pb.HelloResponse, error) {
	return &pb.HelloResponse{NodeId: "n1"}, nil
}

func (w *world) For(group string) (Holder, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h, ok := w.holders[group]
	return h, ok
}

type fakeHolder struct{ holds bool }

func (h *fakeHolder) Canvass(context.Context, *pb.CanvassRequest) (*pb.CanvassResponse, error) {
	return &pb.CanvassResponse{Present: true}, nil
}

func (h *fakeHolder) Nominate(context.Context, *pb.NominateRequest) (*pb.NominateResponse, error) {
	return &pb.NominateResponse{Consent: true}, nil
}

func (h *fakeHolder) Granted(context.Context, *pb.GrantedRequest) (*pb.GrantedResponse, error) {
	return &pb.GrantedResponse{}, nil
}

func (h *fakeHolder) Fence(context.Context, *pb.FenceRequest) (*pb.FenceResponse, error) {
	return &pb.FenceResponse{Fenced: true}, nil
}
func (h *fakeHolder) Holds() bool { return h.holds }

// rig is a node's services behind a connection.
type rig struct {
	*world
	services *Services
	conn     *grpc.ClientConn
}

func newRig(t testing.TB, id string, change ...func(*Config)) *rig {
	t.Helper()
	w := &world{fakeState: newFakeState(), rstate: raft.Leader, leader: raft.ServerID(id), commit: 1, conns: map[raft.ServerID]*grpc.ClientConn{}}
	w.apply = func(*pb.Command) (*pb.Result, error) {
		return &pb.Result{Code: pb.ResultCode_RESULT_CODE_OK, Index: 3, Sessions: []*pb.SessionOpResult{{Revision: 8}}}, nil
	}
	cfg := Config{
		NodeID: id, Version: "v1", Profile: election.Fast, State: w.fakeState, Proposer: w, Reader: w, Raft: raftSide{w},
		Log: w, Peers: w, Groups: w, Membership: memberSide{w}, Snapshots: w, Greeter: w, Holders: w, Clock: &w.clock,
	}
	for _, c := range change {
		c(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	lis := bufconn.Listen(1 << 20)
	gs := grpc.NewServer(grpc.ChainUnaryInterceptor(s.UnaryInterceptor()), grpc.ChainStreamInterceptor(s.StreamInterceptor()), grpc.MaxRecvMsgSize(64<<20))
	s.Register(gs)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = gs.Serve(lis)
	}()
	conn, err := grpc.NewClient("passthrough:///"+id,
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("run: %v", err)
		}
		gs.Stop()
		_ = conn.Close()
		<-served
	})
	return &rig{world: w, services: s, conn: conn}
}

// follow makes r a follower of leader, with a connection to it.
func (r *rig) follow(leader *rig, id raft.ServerID) {
	r.lock(func() {
		r.rstate, r.leader = raft.Follower, id
		r.conns[id] = leader.conn
	})
}
