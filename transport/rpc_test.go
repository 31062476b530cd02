// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func TestOptionsAreChecked(t *testing.T) {
	if _, err := New(Options{}); err == nil || !strings.Contains(err.Error(), "ID") || !strings.Contains(err.Error(), "Resolve") {
		t.Errorf("empty options: %v", err)
	}
	resolve := func(id raft.ServerID) (string, error) { return string(id), nil }
	for _, o := range []Options{{Heartbeat: -1}, {PipelineDepth: -1}, {SplitBytes: MaxMessageBytes}, {ParkLimit: 1}} {
		o.ID, o.Resolve = "n1", resolve
		if _, err := New(o); err == nil {
			t.Errorf("accepted %+v", o)
		}
	}
}

// Heartbeats go where everything goes; the handler is not called (raft#695).
func TestHeartbeatsGoToTheConsumer(t *testing.T) {
	m := newMesh()
	a, b := m.add(t, "n1", nil), m.add(t, "n2", nil)
	b.SetHeartbeatHandler(func(raft.RPC) { t.Error("the heartbeat handler was called") })
	var got atomic.Int32
	answer(t, b, func(rpc raft.RPC) {
		if r := rpc.Command.(*raft.AppendEntriesRequest); isHeartbeat(r) && string(r.Addr) == "n1" && string(r.Leader) == "n1" {
			got.Add(1)
		}
		accept(rpc)
	})
	var resp raft.AppendEntriesResponse
	if err := a.AppendEntries("n2", "n2", heartbeatOf("n1", 5), &resp); err != nil || !resp.Success || resp.Term != 5 || got.Load() != 1 {
		t.Fatalf("%+v, %v, %d heartbeats", resp, err, got.Load())
	}
}

func TestVotesAndTimeoutNow(t *testing.T) {
	m := newMesh()
	a, b := m.add(t, "n1", nil), m.add(t, "n2", nil)
	answer(t, b, accept)
	var vote raft.RequestVoteResponse
	if err := a.RequestVote("n2", "n2", &raft.RequestVoteRequest{RPCHeader: header("n1"), Term: 7}, &vote); err != nil || !vote.Granted || vote.Term != 7 {
		t.Errorf("%+v, %v", vote, err)
	}
	var pre raft.RequestPreVoteResponse
	if err := a.RequestPreVote("n2", "n2", &raft.RequestPreVoteRequest{RPCHeader: header("n1"), Term: 7}, &pre); err != nil || !pre.Granted || pre.Term != 7 {
		t.Errorf("%+v, %v", pre, err)
	}
	if err := a.TimeoutNow("n2", "n2", &raft.TimeoutNowRequest{RPCHeader: header("n1")}, &raft.TimeoutNowResponse{}); err != nil {
		t.Error(err)
	}
}

// A pre-vote goes to Raft after BeforePreVote has returned, which is told the end of the
// candidate's log.
func TestBeforePreVote(t *testing.T) {
	m := newMesh()
	var waited, early atomic.Bool
	a := m.add(t, "n1", nil)
	b := m.add(t, "n2", func(o *Options) {
		o.BeforePreVote = func(_ context.Context, lastTerm, lastIndex uint64) {
			waited.Store(lastTerm == 6 && lastIndex == 42)
		}
	})
	answer(t, b, func(rpc raft.RPC) {
		early.Store(!waited.Load())
		accept(rpc)
	})
	var pre raft.RequestPreVoteResponse
	err := a.RequestPreVote("n2", "n2", &raft.RequestPreVoteRequest{RPCHeader: header("n1"), Term: 7, LastLogTerm: 6, LastLogIndex: 42}, &pre)
	if err != nil || !pre.Granted || early.Load() {
		t.Errorf("%+v, %v; before it waited: %v", pre, err, early.Load())
	}
}

// A Raft node that does not take requests holds nobody up, and gets none of
// them late.
func TestDeadlines(t *testing.T) {
	m := newMesh()
	a := m.add(t, "n1", func(o *Options) {
		o.Heartbeat, o.Election, o.AppendTimeout = 40*time.Millisecond, 60*time.Millisecond, 80*time.Millisecond
	})
	b := m.add(t, "n2", nil)
	for kind, call := range map[string]func() error{
		KindHeartbeat: func() error {
			return a.AppendEntries("n2", "n2", heartbeatOf("n1", 5), &raft.AppendEntriesResponse{})
		},
		KindAppend: func() error {
			return a.AppendEntries("n2", "n2", appendOf("n1", 5, 1, 1), &raft.AppendEntriesResponse{})
		},
		KindVote: func() error {
			return a.RequestVote("n2", "n2", &raft.RequestVoteRequest{RPCHeader: header("n1"), Term: 7}, &raft.RequestVoteResponse{})
		},
		KindPreVote: func() error {
			return a.RequestPreVote("n2", "n2", &raft.RequestPreVoteRequest{RPCHeader: header("n1"), Term: 7}, &raft.RequestPreVoteResponse{})
		},
		KindTimeoutNow: func() error {
			return a.TimeoutNow("n2", "n2", &raft.TimeoutNowRequest{RPCHeader: header("n1")}, &raft.TimeoutNowResponse{})
		},
	} {
		if err := call(); status.Code(errors.Unwrap(err)) != codes.DeadlineExceeded {
			t.Errorf("%s: %v", kind, err)
		}
	}
	// Whatever the server still holds must not come out now.
	wait.Until(t, long, func() error {
		select {
		case rpc := <-b.Consumer():
			// A server may see the end of a call a moment after the caller.
			rpc.Respond(nil, errors.New("too late"))
			return errors.New("a late request came out")
		case <-time.After(20 * time.Millisecond):
			return nil
		}
	})
}

// The receiver drops a TimeoutNow that waited too long, whatever the caller's
// deadline.
func TestTimeoutNowIsDroppedWhenLate(t *testing.T) {
	m := newMesh()
	a, b := m.add(t, "n1", nil), m.add(t, "n2", nil)
	conn, err := a.Conn("n2")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), long)
	defer cancel()
	_, err = pb.NewRaftServiceClient(conn).TimeoutNow(ctx, &pb.TimeoutNowRequest{Header: headerToProto(header("n1")), DropAfterMs: 30})
	if status.Code(err) != codes.DeadlineExceeded || ctx.Err() != nil {
		t.Fatal(err)
	}
	select {
	case rpc := <-b.Consumer():
		t.Fatalf("%T came out", rpc.Command)
	case <-time.After(20 * time.Millisecond): // by a bug only
	}
}

func TestBadRequestsAreRefused(t *testing.T) {
	m := newMesh()
	a, b := m.add(t, "n1", nil), m.add(t, "n2", nil)
	answer(t, b, func(rpc raft.RPC) {
		t.Errorf("%T got through", rpc.Command)
		rpc.Respond(nil, errors.New("no"))
	})
	gap := appendOf("n1", 5, 1, 2)
	gap.Entries[1].Index = 9
	conf := appendOf("n1", 5, 1, 1)
	conf.Entries[0].Type = raft.LogConfiguration
	for name, r := range map[string]*raft.AppendEntriesRequest{
		"gap": gap, "configuration that Raft panics on": conf, "another sender": appendOf("n9", 5, 1, 1),
	} {
		if err := a.AppendEntries("n2", "n2", r, &raft.AppendEntriesResponse{}); !errors.Is(err, hastate.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		l := openPipeline(t, a)
		if _, err := l.AppendEntries(r, &raft.AppendEntriesResponse{}); err != nil {
			t.Fatal(err)
		}
		if err := fail(t, l); !errors.Is(err, hastate.ErrInvalid) {
			t.Errorf("%s in a pipeline: %v", name, err)
		}
	}
	conn, err := a.Conn("n2")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), long)
	defer cancel()
	if _, err := pb.NewRaftServiceClient(conn).Heartbeat(ctx, &pb.HeartbeatRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a heartbeat without a header: %v", err)
	}
}

// A response that another node gave counts for nothing.
func TestResponseOfAnotherNode(t *testing.T) {
	m := newMesh()
	a, b := m.add(t, "n1", nil), m.add(t, "n2", nil)
	a.Bind(&fakeRaft{state: raft.Leader, term: 5})
	answer(t, b, func(rpc raft.RPC) {
		rpc.Respond(&raft.AppendEntriesResponse{RPCHeader: header("n3"), Term: 5, Success: true}, nil)
	})
	for _, r := range []*raft.AppendEntriesRequest{heartbeatOf("n1", 5), appendOf("n1", 5, 1, 1)} {
		if err := a.AppendEntries("n2", "n2", r, &raft.AppendEntriesResponse{}); !errors.Is(err, hastate.ErrPrecondition) {
			t.Error(err)
		}
	}
	if _, ok := a.QuorumSentAt(5, []raft.ServerID{"n1", "n2"}); ok {
		t.Error("it gave evidence")
	}
}

// A node that must not lead says nothing that could keep or make it leader.
func TestNotServing(t *testing.T) {
	m, net := newMesh(), NewNetwork()
	var serving atomic.Bool
	a := m.add(t, "n1", func(o *Options) {
		o.Serving, o.Fault, o.Heartbeat = serving.Load, net, 20*time.Millisecond
		o.ParkLimit = 100 * time.Millisecond
	})
	b := m.add(t, "n2", nil)
	answer(t, b, accept)
	serving.Store(true)
	l := openPipeline(t, a)
	serving.Store(false)

	if _, err := l.AppendEntries(appendOf("n1", 5, 1, 1), &raft.AppendEntriesResponse{}); !errors.Is(err, errWithheld) {
		t.Error(err)
	}
	if err := a.AppendEntries("n2", "n2", heartbeatOf("n1", 5), &raft.AppendEntriesResponse{}); !errors.Is(err, errWithheld) {
		t.Error(err)
	}
	if err := a.RequestVote("n2", "n2", &raft.RequestVoteRequest{}, &raft.RequestVoteResponse{}); !errors.Is(err, errWithheld) {
		t.Error(err)
	}
	if err := a.RequestPreVote("n2", "n2", &raft.RequestPreVoteRequest{}, &raft.RequestPreVoteResponse{}); !errors.Is(err, errWithheld) {
		t.Error(err)
	}
	if err := a.InstallSnapshot("n2", "n2", &raft.InstallSnapshotRequest{}, &raft.InstallSnapshotResponse{}, nil); !errors.Is(err, errWithheld) {
		t.Error(err)
	}
	if err := a.AppendEntries("n2", "n2", appendOf("n1", 5, 1, 1), &raft.AppendEntriesResponse{}); err == nil {
		t.Error("an append was sent")
	}
	for _, kind := range []string{KindHeartbeat, KindAppend, KindPipeline, KindVote, KindPreVote, KindSnapshot} {
		if n := net.Sent("n1", "n2", kind); n != 0 {
			t.Errorf("%d messages of kind %s left", n, kind)
		}
	}
	serving.Store(true)
	if err := a.AppendEntries("n2", "n2", appendOf("n1", 5, 1, 1), &raft.AppendEntriesResponse{}); err != nil {
		t.Error(err)
	}
}

// A connection that is up follows the peer to a new address once calls fail.
func TestAddressChanges(t *testing.T) {
	m := newMesh()
	a, b := m.add(t, "n1", nil), m.add(t, "n2", nil)
	other := m.add(t, "n3", nil)
	answer(t, b, accept)
	answer(t, other, accept)
	beat := func() error {
		return a.AppendEntries("n2", "n2", heartbeatOf("n1", 5), &raft.AppendEntriesResponse{})
	}
	m.move("n2", "n3") // somebody else lives there
	if err := beat(); !errors.Is(err, hastate.ErrPrecondition) || !strings.Contains(err.Error(), "this is n3, not n2") {
		t.Fatalf("got %v", err)
	}
	m.move("n2", "n2")
	wait.Until(t, long, beat)
}

// remote is a connection to another address.
type remote struct {
	net.Conn
	addr net.Addr
}

func (r remote) RemoteAddr() net.Addr { return r.addr }

func TestPlaintextStaysOnTheMachine(t *testing.T) {
	for _, c := range []struct {
		ip    string
		allow bool
		want  bool
	}{{"127.0.0.1", false, true}, {"::1", false, true}, {"10.1.2.3", false, false}, {"10.1.2.3", true, true}} {
		m := newMesh()
		a := m.add(t, "n1", func(o *Options) {
			o.AllowPlaintext = c.allow
			o.Heartbeat = time.Second
			o.DialContext = func(ctx context.Context, address string) (net.Conn, error) {
				conn, err := m.dial(ctx, address)
				return remote{conn, &net.TCPAddr{IP: net.ParseIP(c.ip), Port: 1}}, err
			}
		})
		answer(t, m.add(t, "n2", nil), accept)
		err := a.AppendEntries("n2", "n2", heartbeatOf("n1", 5), &raft.AppendEntriesResponse{})
		if (err == nil) != c.want || (err != nil && !strings.Contains(err.Error(), "plaintext")) {
			t.Errorf("%s, allowed %v: %v", c.ip, c.allow, err)
		}
	}
}

func TestLogicalAddresses(t *testing.T) {
	a := newMesh().add(t, "n1", nil)
	if a.LocalAddr() != "n1" {
		t.Error(a.LocalAddr())
	}
	// A vote is stored under the encoded address: two nodes at one address must
	// not share it.
	if got := a.DecodePeer(a.EncodePeer("n2", "10.0.0.1:7000")); got != "n2" {
		t.Error(got)
	}
	if got := a.DecodePeer(a.EncodePeer("", "n2")); got != "n2" {
		t.Error(got)
	}
}

func TestConnAndClose(t *testing.T) {
	m := newMesh()
	a := m.add(t, "n1", nil)
	c1, err := a.Conn("n2")
	if err != nil {
		t.Fatal(err)
	}
	if c2, err := a.Conn("n2"); err != nil || c1 != c2 {
		t.Errorf("a second connection, %v", err)
	}
	for _, id := range []raft.ServerID{"n1", ""} {
		if _, err := a.Conn(id); !errors.Is(err, hastate.ErrInvalid) {
			t.Errorf("a connection to %q: %v", id, err)
		}
	}
	a.Connect("n3", nil)
	a.DisconnectAll()
	if c2, err := a.Conn("n2"); err != nil || c1 == c2 {
		t.Errorf("the old connection, %v", err)
	}
	for range 2 {
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Conn("n2"); !errors.Is(err, hastate.ErrClosed) {
		t.Error(err)
	}
	if _, err := a.AppendEntriesPipeline("n2", "n2"); !errors.Is(err, hastate.ErrClosed) {
		t.Error(err)
	}
	// The peer of a closed transport is told so at once.
	b := m.add(t, "n2", nil)
	if err := b.AppendEntries("n1", "n1", heartbeatOf("n2", 5), &raft.AppendEntriesResponse{}); err == nil {
		t.Error("a closed transport answered")
	}
}

func TestPeersAreBounded(t *testing.T) {
	a := newMesh().add(t, "n1", nil)
	var err error
	for i := 0; err == nil && i <= MaxPeers; i++ {
		_, err = a.Conn(raft.ServerID(strings.Repeat("x", i+1)))
	}
	if !errors.Is(err, hastate.ErrLimit) {
		t.Fatal(err)
	}
}

func TestLastAnsweredOfAStranger(t *testing.T) {
	a := newMesh().add(t, "n1", func(o *Options) { o.Clock = &clock.Fake{} })
	if _, ok := a.LastAnswered("n2"); ok {
		t.Error("a node that was never asked has answered")
	}
}
