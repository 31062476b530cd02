// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// pinned is the cluster id of a node that learns it.
type pinned struct {
	mu sync.Mutex
	id string // guarded by mu
}

func (p *pinned) get() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.id
}

func (p *pinned) pin(id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.id = id
	return nil
}

func TestClusterIsChecked(t *testing.T) {
	cases := map[string]struct {
		caller, callee string
		pinErr         error
		ok             bool
		after          string
	}{
		"the same":        {"c1", "c1", nil, true, "c1"},
		"another":         {"c1", "c2", nil, false, "c2"},
		"caller is new":   {"", "c2", nil, true, "c2"},
		"both are new":    {"", "", nil, true, ""},
		"callee is new":   {"c1", "", nil, true, "c1"},
		"callee will not": {"c1", "", errors.New("I have data of my own"), false, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			m, own := newMesh(), &pinned{id: c.callee}
			a := m.add(t, "n1", func(o *Options) { o.ClusterID = func() string { return c.caller } })
			b := m.add(t, "n2", func(o *Options) {
				o.ClusterID = own.get
				o.OnClusterID = func(id string) error {
					if c.pinErr != nil {
						return c.pinErr
					}
					return own.pin(id)
				}
			})
			answer(t, b, accept)

			// A candidate does not tell a node where it belongs.
			err := a.RequestVote("n2", "n2", &raft.RequestVoteRequest{RPCHeader: header("n1"), Term: 7}, &raft.RequestVoteResponse{})
			if own.get() != c.callee || (c.callee != "" && (err == nil) != c.ok) {
				t.Fatalf("vote: %v, pinned %q", err, own.get())
			}
			err = a.AppendEntries("n2", "n2", heartbeatOf("n1", 5), &raft.AppendEntriesResponse{})
			if (err == nil) != c.ok || own.get() != c.after {
				t.Fatalf("heartbeat: %v, pinned %q", err, own.get())
			}
			if err != nil && (!errors.Is(err, hastate.ErrPrecondition) || !strings.Contains(err.Error(), "cluster")) {
				t.Errorf("got %v", err)
			}
			if c.ok {
				return
			}
			// Nor does anything else of Raft get through.
			if err := a.AppendEntries("n2", "n2", appendOf("n1", 5, 1, 1), &raft.AppendEntriesResponse{}); !errors.Is(err, hastate.ErrPrecondition) {
				t.Errorf("append: %v", err)
			}
			l := openPipeline(t, a)
			if err := fail(t, l); !errors.Is(err, hastate.ErrPrecondition) {
				t.Errorf("pipeline: %v", err)
			}
			if err := a.InstallSnapshot("n2", "n2", &raft.InstallSnapshotRequest{RPCHeader: header("n1")}, &raft.InstallSnapshotResponse{}, strings.NewReader("")); !errors.Is(err, hastate.ErrPrecondition) {
				t.Errorf("snapshot: %v", err)
			}
		})
	}
}

func TestTwoNodesWithOneID(t *testing.T) {
	m, other := newMesh(), newMesh()
	m.add(t, "n2", nil)
	double := other.add(t, "n2", func(o *Options) { o.DialContext = m.dial })
	m.move("n1", "n2")
	other.move("n1", "n2") // it believes that n1 is there
	err := double.RequestVote("n1", "n1", &raft.RequestVoteRequest{RPCHeader: header("n2"), Term: 7}, &raft.RequestVoteResponse{})
	if !errors.Is(err, hastate.ErrPrecondition) || !strings.Contains(err.Error(), "own id") {
		t.Fatal(err)
	}
}

// peers answers Hello.
type peers struct {
	pb.UnimplementedPeerServiceServer
	hello func(context.Context)
}

func (p *peers) Hello(ctx context.Context, _ *pb.HelloRequest) (*pb.HelloResponse, error) {
	p.hello(ctx)
	return &pb.HelloResponse{}, nil
}

func TestPeerCallsCarryIdentity(t *testing.T) {
	check := newMesh().add(t, "n2", func(o *Options) { o.ClusterID = func() string { return "c1" } })
	var cluster string
	var from, to raft.ServerID
	srv := &peers{hello: func(ctx context.Context) { cluster, from, to = Incoming(ctx) }}
	call := func(ctx context.Context, method string) error {
		out, _ := metadata.FromOutgoingContext(ctx)
		in := metadata.NewIncomingContext(context.Background(), out)
		_, err := check.UnaryServerInterceptor()(in, &pb.HelloRequest{}, &grpc.UnaryServerInfo{FullMethod: method}, func(ctx context.Context, req any) (any, error) {
			return srv.Hello(ctx, req.(*pb.HelloRequest))
		})
		return err
	}
	hello := pb.PeerService_Hello_FullMethodName
	if err := call(Outgoing(context.Background(), "c1", "n1", "n2"), hello); err != nil || cluster != "c1" || from != "n1" || to != "n2" {
		t.Errorf("%v: %q %q %q", err, cluster, from, to)
	}
	if err := call(Outgoing(context.Background(), "", "n1", ""), hello); err != nil || cluster != "" || to != "" {
		t.Errorf("%v: %q %q", err, cluster, to)
	}
	wrong := []context.Context{Outgoing(context.Background(), "c2", "n1", "n2"), Outgoing(context.Background(), "c1", "n1", "n3")}
	for _, ctx := range wrong {
		if err := call(ctx, hello); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("got %v", err)
		}
		// The public API is not between nodes.
		if err := call(ctx, pb.ClusterService_ServiceDesc.ServiceName+"/Any"); err != nil {
			t.Errorf("a public call: %v", err)
		}
	}
	// What came from another node is not passed on.
	ctx := Outgoing(Outgoing(context.Background(), "c9", "n8", "n9"), "", "n1", "")
	if md, _ := metadata.FromOutgoingContext(ctx); len(md.Get(mdCluster)) != 0 || len(md.Get(mdTo)) != 0 || len(md.Get(mdFrom)) != 1 {
		t.Errorf("metadata %v", md)
	}
}
