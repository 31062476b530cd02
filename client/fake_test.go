// SPDX-License-Identifier: Apache-2.0

package client_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// fakeCluster is the state behind some fake nodes: a primary, and sessions that
// are applied once per request id.
type fakeCluster struct {
	id string

	mu         sync.Mutex // guards all below
	changed    chan struct{}
	primary    *pb.Primary
	revision   uint64
	oldest     uint64 // watches from an older revision are refused
	nextClient uint64
	window     uint32
	clients    map[uint64]map[uint64]*pb.PipelineResult
	applied    []string
	maxSpan    uint64
	sessions   map[string]*pb.Session
	events     []*pb.SessionEvent
}

func newFakeCluster(id string) *fakeCluster {
	return &fakeCluster{
		id: id, changed: make(chan struct{}), revision: 1, window: 64,
		clients: make(map[uint64]map[uint64]*pb.PipelineResult), sessions: make(map[string]*pb.Session),
		primary: &pb.Primary{Group: "g", Phase: pb.GroupPhase_GROUP_PHASE_VACANT},
	}
}

// setPrimary makes a change that watches report.
func (c *fakeCluster) setPrimary(node, addr string, epoch uint64, phase pb.GroupPhase) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.primary = &pb.Primary{Group: "g", NodeId: node, Address: addr, Epoch: epoch, Phase: phase, ValidForMs: 60_000}
	c.bump()
}

// bump is called with mu held.
func (c *fakeCluster) bump() {
	c.revision++
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *fakeCluster) snapshot() (*pb.Primary, uint64, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return proto.CloneOf(c.primary), c.revision, c.changed
}

func (c *fakeCluster) forgetClients() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.clients)
}

func (c *fakeCluster) appliedOps() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.applied)
}

// apply does one item, at most once.
func (c *fakeCluster) apply(item *pb.PipelineItem) *pb.PipelineResult {
	c.mu.Lock()
	defer c.mu.Unlock()
	req := item.GetRequest()
	answers, ok := c.clients[req.GetClient()]
	if !ok {
		return failure(item.GetId(), &hastate.ClientExpiredError{Client: req.GetClient()})
	}
	if req.GetSeq() < req.GetAckedBelow() {
		return failure(item.GetId(), fmt.Errorf("%w: own request acknowledged", hastate.ErrInvalid))
	}
	c.maxSpan = max(c.maxSpan, req.GetSeq()-req.GetAckedBelow()+1)
	if r, ok := answers[req.GetSeq()]; ok {
		r = proto.CloneOf(r)
		r.Id = item.GetId()
		return r
	}
	result := &pb.PipelineResult{Id: item.GetId()}
	for _, op := range item.GetOps() {
		c.bump()
		s := &pb.Session{Group: "g", Id: op.GetPut().GetSession().GetId(), Value: op.GetPut().GetSession().GetValue(), Revision: c.revision}
		c.sessions[s.Id] = s
		c.events = append(c.events, &pb.SessionEvent{Revision: c.revision, Session: s})
		c.applied = append(c.applied, s.Id)
		result.Results = append(result.Results, &pb.SessionOpResult{Revision: c.revision})
	}
	answers[req.GetSeq()] = result
	return result
}

func failure(id uint64, err error) *pb.PipelineResult {
	st := status.Convert(hastate.ToStatus(err))
	r := &pb.PipelineResult{Id: id, Code: uint32(st.Code()), Message: st.Message()}
	for _, d := range st.Proto().GetDetails() {
		raw, _ := proto.Marshal(d)
		r.Details = append(r.Details, raw)
	}
	return r
}

// fakeNode is one server of a cluster. Its behaviour can be bent.
type fakeNode struct {
	pb.UnimplementedClusterServiceServer
	pb.UnimplementedGroupServiceServer
	pb.UnimplementedSessionServiceServer
	id, addr string
	cluster  *fakeCluster
	server   *grpc.Server

	mu    sync.Mutex // guards all below
	hung  bool
	calls map[string]int
	bend  bend
}

// bend replaces parts of a node's behaviour; nil keeps it.
type bend struct {
	leaderless bool // Status names no leader
	getPrimary func() (*pb.GetPrimaryResponse, error)
	openClient func() error
	// answer replaces the answer to an item. drop: the stream is cut instead.
	answer func(item *pb.PipelineItem, apply func() *pb.PipelineResult) (result *pb.PipelineResult, drop bool)
	watch  func(req *pb.WatchRequest, stream grpc.ServerStreamingServer[pb.WatchResponse]) error
}

func startNode(t *testing.T, id string, cluster *fakeCluster) *fakeNode {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &fakeNode{id: id, addr: listener.Addr().String(), cluster: cluster, calls: make(map[string]int)}
	n.server = grpc.NewServer(
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			if err := n.block(ctx); err != nil {
				return nil, err
			}
			return handle(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			if err := n.block(stream.Context()); err != nil {
				return err
			}
			return handle(srv, stream)
		}),
	)
	pb.RegisterClusterServiceServer(n.server, n)
	pb.RegisterGroupServiceServer(n.server, n)
	pb.RegisterSessionServiceServer(n.server, n)
	served := make(chan error, 1)
	go func() { served <- n.server.Serve(listener) }()
	t.Cleanup(func() {
		n.server.Stop()
		<-served
	})
	return n
}

func (n *fakeNode) set(b bend) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.bend = b
}

func (n *fakeNode) hang(hung bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hung = hung
}

func (n *fakeNode) called(method string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.calls[method]
}

// block holds a call on a hung node until its caller gives up.
func (n *fakeNode) block(ctx context.Context) error {
	n.mu.Lock()
	hung := n.hung
	n.mu.Unlock()
	if !hung {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

// enter counts a call.
func (n *fakeNode) enter(method string) bend {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls[method]++
	return n.bend
}

func (n *fakeNode) header() *pb.ReplyHeader {
	return &pb.ReplyHeader{ClusterId: n.cluster.id, NodeId: n.id}
}

func (n *fakeNode) Status(_ context.Context, _ *pb.StatusRequest) (*pb.StatusResponse, error) {
	b := n.enter("Status")
	resp := &pb.StatusResponse{Header: n.header(), LeaderId: "n1"}
	if b.leaderless {
		resp.LeaderId = ""
	}
	return resp, nil
}

func (n *fakeNode) GetPrimary(_ context.Context, req *pb.GetPrimaryRequest) (*pb.GetPrimaryResponse, error) {
	if b := n.enter("GetPrimary"); b.getPrimary != nil {
		return b.getPrimary()
	}
	p, _, _ := n.cluster.snapshot()
	if req.GetGroup() != p.GetGroup() {
		return nil, hastate.ToStatus(hastate.ErrNotFound)
	}
	return &pb.GetPrimaryResponse{Header: n.header(), Primary: p}, nil
}

func (n *fakeNode) Watch(req *pb.WatchRequest, stream grpc.ServerStreamingServer[pb.WatchResponse]) error {
	if b := n.enter("Watch"); b.watch != nil {
		return b.watch(req, stream)
	}
	n.cluster.mu.Lock()
	oldest := n.cluster.oldest
	n.cluster.mu.Unlock()
	if after := req.GetAfterRevision(); after > 0 && after < oldest {
		return hastate.ToStatus(&hastate.CompactedError{Oldest: oldest})
	}
	beat := time.NewTicker(20 * time.Millisecond)
	defer beat.Stop()
	told := req.GetAfterRevision()
	for {
		p, revision, changed := n.cluster.snapshot()
		resp := &pb.WatchResponse{Header: n.header(), Revision: revision, Heartbeat: true, Primaries: []*pb.Primary{p}}
		if revision > told {
			resp = &pb.WatchResponse{Header: n.header(), Revision: revision, Group: &pb.Group{Name: "g"}, Primary: p}
			told = revision
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-beat.C:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (n *fakeNode) OpenClient(_ context.Context, _ *pb.OpenClientRequest) (*pb.OpenClientResponse, error) {
	if b := n.enter("OpenClient"); b.openClient != nil {
		if err := b.openClient(); err != nil {
			return nil, hastate.ToStatus(err)
		}
	}
	c := n.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nextClient++
	c.clients[c.nextClient] = make(map[uint64]*pb.PipelineResult)
	return &pb.OpenClientResponse{Header: n.header(), Client: c.nextClient, Window: c.window, IdleMs: 60_000}, nil
}

func (n *fakeNode) Pipeline(stream grpc.BidiStreamingServer[pb.PipelineRequest, pb.PipelineResponse]) error {
	n.enter("Pipeline")
	for {
		msg, err := stream.Recv()
		if err != nil {
			return err
		}
		b := n.enter("PipelineMessage")
		resp := &pb.PipelineResponse{Header: n.header()}
		for _, item := range msg.GetItems() {
			apply := func() *pb.PipelineResult { return n.cluster.apply(item) }
			var result *pb.PipelineResult
			if b.answer == nil {
				result = apply()
			} else {
				var drop bool
				if result, drop = b.answer(item, apply); drop {
					return hastate.ToStatus(hastate.ErrClosed)
				}
			}
			if result != nil {
				resp.Results = append(resp.Results, result)
			}
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

func (n *fakeNode) Get(_ context.Context, req *pb.GetRequest) (*pb.GetResponse, error) {
	n.enter("Get")
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	s, ok := n.cluster.sessions[req.GetId()]
	if !ok {
		return nil, hastate.ToStatus(fmt.Errorf("session %q: %w", req.GetId(), hastate.ErrNotFound))
	}
	return &pb.GetResponse{Header: n.header(), Session: s}, nil
}

func (n *fakeNode) List(_ context.Context, req *pb.ListRequest) (*pb.ListResponse, error) {
	n.enter("List")
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	var ids []string
	for id := range n.cluster.sessions {
		if strings.HasPrefix(id, req.GetPrefix()) && id > req.GetPageToken() {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	resp := &pb.ListResponse{Header: n.header()}
	for i, id := range ids {
		if i == int(req.GetPageSize()) {
			resp.NextPageToken = ids[i-1]
			break
		}
		resp.Sessions = append(resp.Sessions, n.cluster.sessions[id])
	}
	return resp, nil
}

func (n *fakeNode) WatchSessions(req *pb.WatchSessionsRequest, stream grpc.ServerStreamingServer[pb.WatchSessionsResponse]) error {
	n.enter("WatchSessions")
	after := req.GetAfterRevision()
	c := n.cluster
	for {
		c.mu.Lock()
		if after > 0 && after < c.oldest {
			defer c.mu.Unlock()
			return hastate.ToStatus(&hastate.CompactedError{Oldest: c.oldest})
		}
		resp := &pb.WatchSessionsResponse{Header: n.header(), Revision: c.revision}
		for _, e := range c.events {
			if e.GetRevision() > after {
				resp.Events = append(resp.Events, e)
			}
		}
		after = c.revision
		changed := c.changed
		c.mu.Unlock()
		if err := stream.Send(resp); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// dial makes a client that is closed with the test.
func dial(t *testing.T, opts client.Options, nodes ...*fakeNode) *client.Client {
	t.Helper()
	for _, n := range nodes {
		opts.Endpoints = append(opts.Endpoints, n.addr)
	}
	if opts.AttemptTimeout == 0 {
		opts.AttemptTimeout = 300 * time.Millisecond
	}
	c, err := client.Dial(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close client: %v", err)
		}
	})
	return c
}
