// SPDX-License-Identifier: Apache-2.0

package testcluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// follower collects the sessions that a watch tells of, each once, in order.
type follower struct {
	// mu guards all below.
	mu       sync.Mutex
	ids      []string
	seen     map[string]bool
	revision uint64
	trouble  error
}

func (f *follower) take(e *pb.SessionEvent) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := e.GetSession().GetId()
	switch {
	case f.seen[id]:
		f.trouble = errors.Join(f.trouble, fmt.Errorf("%s is told of twice", id))
	case e.GetRevision() <= f.revision:
		f.trouble = errors.Join(f.trouble, fmt.Errorf("revision %d comes after %d", e.GetRevision(), f.revision))
	}
	if f.seen == nil {
		f.seen = map[string]bool{}
	}
	f.seen[id], f.revision = true, e.GetRevision()
	f.ids = append(f.ids, id)
}

// is compares what was told with what was written.
func (f *follower) is(want []string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.trouble != nil {
		return f.trouble
	}
	if !slices.Equal(f.ids, want) {
		return fmt.Errorf("told of %d sessions, %d were written", len(f.ids), len(want))
	}
	return nil
}

// wander watches with raw streams, a few events at one member and then on at the
// next, from the revision that the last one has told.
func (f *follower) wander(ctx context.Context, c *Cluster, conns []pb.SessionServiceClient) error {
	after := uint64(1) // the first revision is the cluster id's
	for at := 0; ctx.Err() == nil; at++ {
		stream, err := conns[at%len(conns)].WatchSessions(ctx, &pb.WatchSessionsRequest{Prefix: "w-", AfterRevision: after})
		if err != nil {
			return err
		}
		for n := 0; n < 5; {
			reply, err := stream.Recv()
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				return fmt.Errorf("watch after %d at %s: %w", after, c.Members[at%len(conns)].ID, err)
			}
			for _, e := range reply.GetEvents() {
				f.take(e)
				n++
			}
			if told := reply.GetRevision(); told != 0 {
				after = told
			}
		}
		if err := stream.CloseSend(); err != nil {
			return err
		}
	}
	return nil
}

// Watches go on where they left off, at other nodes and over changes of the
// leader: no change is missed and none is told twice.
func TestSessions_WatchOverLeaderChanges(t *testing.T) {
	t.Parallel()
	c := New(t, Options{NoInstances: true})
	c.WaitLeader()
	var conns []pb.SessionServiceClient
	for _, m := range c.Members {
		conns = append(conns, pb.NewSessionServiceClient(dial(t, m)))
	}
	var wandering, staying follower
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	defer func() { cancel(); watching.Wait() }()
	watching.Go(func() {
		if err := wandering.wander(ctx, c, conns); err != nil {
			t.Error(err)
		}
	})
	cl := c.Client()
	watching.Go(func() {
		err := cl.Sessions("").Watch(ctx, "w-", 1, func(change client.SessionChange) error {
			if change.Resync {
				return errors.New("the watch begins anew")
			}
			if change.Event != nil {
				staying.take(change.Event)
			}
			return nil
		})
		if ctx.Err() == nil {
			t.Error(err)
		}
	})
	var written []string
	write := func(n int) {
		t.Helper()
		for range n {
			id := fmt.Sprintf("w-%03d", len(written))
			if _, err := cl.Sessions("").Put(within(t), &pb.PutRequest{Session: &pb.Session{Id: id}, IfAbsent: true}); err != nil {
				t.Fatal(err)
			}
			written = append(written, id)
		}
	}
	for round := range 3 {
		write(10)
		leader := c.WaitLeader()
		if round == 1 {
			c.Network.Isolate(raftID(leader))
			write(10)
			c.Network.Heal()
		} else {
			makeLead(t, c, c.Others(leader)[0])
		}
		write(10)
	}
	for _, f := range []*follower{&wandering, &staying} {
		wait.Until(t, Patience, func() error { return f.is(written) })
	}
}

// A revision that a node no longer keeps is refused, with what is kept; the
// client begins anew and says so.
func TestSessions_WatchCompacted(t *testing.T) {
	t.Parallel()
	c := New(t, Options{NoInstances: true})
	leader := c.WaitLeader()
	for i := range 5 {
		put(t, leader, fmt.Sprint("s-", i), "v")
	}
	m := c.Others(leader)[0]
	caughtUp(t, m, leader) // or it hears of them only after the restart, and keeps them
	m.Stop()
	m.Start() // what it had for watchers was in memory
	caughtUp(t, m, leader)
	conn, compacted := dial(t, m), (*hastate.CompactedError)(nil)
	wait.Until(t, Patience, func() error { // on a busy machine it may be out of touch
		stream, err := pb.NewSessionServiceClient(conn).WatchSessions(within(t), &pb.WatchSessionsRequest{AfterRevision: 1})
		if err == nil {
			_, err = stream.Recv()
		}
		if err = hastate.FromStatus(err); !errors.As(err, &compacted) || compacted.Newest < 5 {
			return fmt.Errorf("watch after a revision that is not kept: %w", err)
		}
		return nil
	})
	cl, err := client.Dial(client.Options{Endpoints: []string{m.Config().Listen}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cl.Close(); err != nil {
			t.Error(err)
		}
	}()
	enough := errors.New("enough")
	var got []string
	err = cl.Sessions("").Watch(within(t), "s-", 1, func(change client.SessionChange) error {
		if change.Resync {
			got = append(got, "resync")
			return nil
		}
		if change.Event == nil { // all of them have been told
			return enough
		}
		got = append(got, change.Event.GetSession().GetId())
		if change.Revision != 0 {
			t.Errorf("revision %d is complete before all sessions were told", change.Revision)
		}
		return nil
	})
	if !errors.Is(err, enough) || strings.Join(got, " ") != "resync s-0 s-1 s-2 s-3 s-4" {
		t.Fatalf("the client's watch: %v, %v", got, err)
	}
}

// A write whose answer was lost is done again with the same number, by the node
// that took it and by others under another leader, and after all nodes have
// restarted: it is answered with the first result and applied once.
func TestSessions_AppliedOnceThoughTheAnswerIsLost(t *testing.T) {
	t.Parallel()
	c := New(t, Options{NoInstances: true})
	leader := c.WaitLeader()
	via, third := c.Others(leader)[0], c.Others(leader)[1]
	opened, err := pb.NewSessionServiceClient(dial(t, via)).OpenClient(within(t), &pb.OpenClientRequest{Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	request := func() *pb.PutRequest {
		return &pb.PutRequest{
			Request: &pb.RequestId{Client: opened.GetClient(), Seq: 1},
			Session: &pb.Session{Id: "s", Value: []byte("once")},
		}
	}
	held := c.Network.HoldResponses(raftID(via), raftID(leader), pb.PeerService_Forward_FullMethodName)
	defer held.Release()
	lost := make(chan uint64, 1)
	conn := dial(t, via)
	ctx := within(t)
	go func() {
		reply, err := pb.NewSessionServiceClient(conn).Put(ctx, request())
		if err != nil {
			t.Errorf("a write whose answer was lost: %v", err)
		}
		lost <- reply.GetRevision()
	}()
	var applied *pb.Session
	wait.Until(t, Patience, func() error {
		s, found, err := leader.Node().Machine().Session(hastate.DefaultGroup, "s")
		if applied = s; err != nil || !found {
			return fmt.Errorf("the write is not applied: %w", err)
		}
		return nil
	})
	makeLead(t, c, third)
	// The node itself does it again.
	if got := <-lost; got != applied.GetRevision() {
		t.Fatalf("it is answered with revision %d, was applied with %d", got, applied.GetRevision())
	}
	again := func(m *Member) {
		t.Helper()
		reply, err := pb.NewSessionServiceClient(dial(t, m)).Put(within(t), request())
		if err != nil || reply.GetRevision() != applied.GetRevision() {
			t.Fatalf("the same request again at %s: revision %d, %v, want %d", m.ID, reply.GetRevision(), err, applied.GetRevision())
		}
	}
	if held.Count() == 0 {
		t.Fatal("no answer was held back")
	}
	again(third)
	held.Release()
	again(via)
	for _, m := range c.Members {
		m.Crash()
	}
	for _, m := range c.Members {
		m.Start()
	}
	again(c.WaitLeader())
	s, _, err := c.WaitLeader().Node().Machine().Session(hastate.DefaultGroup, "s")
	if err != nil || s.GetRevision() != applied.GetRevision() {
		t.Fatalf("the session has revision %d, %v: it was written again", s.GetRevision(), err)
	}
}

// expired waits until the cluster has let a session expire.
func expired(t *testing.T, m *Member, id string, after uint64) {
	t.Helper()
	stream, err := pb.NewSessionServiceClient(dial(t, m)).WatchSessions(within(t), &pb.WatchSessionsRequest{Prefix: id, AfterRevision: after})
	if err != nil {
		t.Fatal(err)
	}
	for {
		reply, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range reply.GetEvents() {
			if e.GetSession().GetId() == id && e.GetExpired() {
				return
			}
		}
	}
}

// A session with a time to live is gone some time after it, never before: a
// write, a touch and a change of the leader begin the time anew.
func TestSessions_TimeToLive(t *testing.T) {
	t.Parallel()
	c := New(t, Options{NoInstances: true})
	leader := c.WaitLeader()
	api := pb.NewSessionServiceClient(dial(t, leader))
	const ttl = 700 * time.Millisecond
	revision := leader.Node().Machine().Revision()
	begin := func(id string, ttl time.Duration) {
		t.Helper()
		_, err := api.Put(within(t), &pb.PutRequest{Session: &pb.Session{Id: id, TtlMs: uint64(ttl.Milliseconds())}})
		if err != nil {
			t.Fatal(err)
		}
	}
	notBefore := func(id string, since time.Time, ttl time.Duration) {
		t.Helper()
		expired(t, leader, id, revision)
		if took := time.Since(since); took < ttl {
			t.Fatalf("%s with %v to live expired after %v", id, ttl, took)
		}
	}
	begin("for-ever", 0)
	since := time.Now()
	begin("short", ttl)
	notBefore("short", since, ttl)

	begin("touched", ttl)
	for range 3 {
		since = time.Now()
		if _, err := api.Touch(within(t), &pb.TouchRequest{Id: "touched"}); err != nil {
			t.Fatal(err)
		}
	}
	notBefore("touched", since, ttl)

	begin("moved", 2*ttl)
	since = time.Now()
	makeLead(t, c, c.Others(leader)[0])
	notBefore("moved", since, 2*ttl)
	if _, err := read(within(t), dial(t, leader), "for-ever"); err != nil {
		t.Fatal(err)
	}
}

func TestSessions_Limits(t *testing.T) {
	t.Parallel()
	c := New(t, Options{Nodes: 1, NoInstances: true})
	api := pb.NewSessionServiceClient(dial(t, c.WaitLeader()))
	value := func(n int) *pb.PutRequest {
		return &pb.PutRequest{Session: &pb.Session{Id: "s", Value: make([]byte, n)}}
	}
	many := func(n int) []*pb.SessionOp {
		var ops []*pb.SessionOp
		for i := range n {
			ops = append(ops, &pb.SessionOp{Op: &pb.SessionOp_Put{Put: &pb.PutRequest{Session: &pb.Session{Id: fmt.Sprint("b-", i)}}}})
		}
		return ops
	}
	labels := map[string]string{}
	for i := range hastate.MaxMapEntries + 1 {
		labels[fmt.Sprint("l", i)] = "v"
	}
	do := func(f func(context.Context) error) func() error {
		return func() error { return f(within(t)) }
	}
	putOf := func(r *pb.PutRequest) func() error {
		return do(func(ctx context.Context) error { _, err := api.Put(ctx, r); return err })
	}
	get := func(r *pb.GetRequest) func() error {
		return do(func(ctx context.Context) error { _, err := api.Get(ctx, r); return err })
	}
	batch := func(ops []*pb.SessionOp) func() error {
		return do(func(ctx context.Context) error { _, err := api.Batch(ctx, &pb.BatchRequest{Ops: ops}); return err })
	}
	for _, test := range []struct {
		name string
		call func() error
		code codes.Code
	}{
		{"largest value", putOf(value(hastate.DefaultSessionValueBytes)), codes.OK},
		{"value above the group's limit", putOf(value(hastate.DefaultSessionValueBytes + 1)), codes.ResourceExhausted},
		{"value above every limit", putOf(value(hastate.MaxSessionValueBytes + 1)), codes.ResourceExhausted},
		{"message above the limit", putOf(value(hastate.MaxMessageBytes)), codes.ResourceExhausted},
		{"longest id", putOf(&pb.PutRequest{Session: &pb.Session{Id: strings.Repeat("i", hastate.MaxSessionIDBytes)}}), codes.OK},
		{"id too long", putOf(&pb.PutRequest{Session: &pb.Session{Id: strings.Repeat("i", hastate.MaxSessionIDBytes+1)}}), codes.ResourceExhausted},
		{"no id", putOf(&pb.PutRequest{Session: &pb.Session{}}), codes.InvalidArgument},
		{"no session", putOf(&pb.PutRequest{}), codes.InvalidArgument},
		{"id with a line feed", putOf(&pb.PutRequest{Session: &pb.Session{Id: "a\nb"}}), codes.InvalidArgument},
		{"too many labels", putOf(&pb.PutRequest{Session: &pb.Session{Id: "s", Labels: labels}}), codes.ResourceExhausted},
		{"both conditions", putOf(&pb.PutRequest{Session: &pb.Session{Id: "s"}, IfAbsent: true, IfRevision: 1}), codes.InvalidArgument},
		{"number of no writer", putOf(&pb.PutRequest{Request: &pb.RequestId{Client: 99, Seq: 1}, Session: &pb.Session{Id: "s"}}), codes.FailedPrecondition},
		{"sequence 0", putOf(&pb.PutRequest{Request: &pb.RequestId{Client: 1}, Session: &pb.Session{Id: "s"}}), codes.InvalidArgument},
		{"largest batch", batch(many(hastate.MaxBatchOps)), codes.OK},
		{"batch too large", batch(many(hastate.MaxBatchOps + 1)), codes.ResourceExhausted},
		{"empty batch", batch(nil), codes.InvalidArgument},
		{"operation of no kind", batch([]*pb.SessionOp{{}}), codes.InvalidArgument},
		{"unknown read level", get(&pb.GetRequest{Id: "s", Level: 99}), codes.InvalidArgument},
		{"local read", get(&pb.GetRequest{Id: "s", Level: pb.ReadLevel_READ_LEVEL_LOCAL}), codes.OK},
		{"group name too long", get(&pb.GetRequest{Group: strings.Repeat("g", hastate.MaxNameBytes+1), Id: "s"}), codes.ResourceExhausted},
		{"page too large", do(func(ctx context.Context) error {
			_, err := api.List(ctx, &pb.ListRequest{PageSize: 1001})
			return err
		}), codes.ResourceExhausted},
		{"page token of nobody", do(func(ctx context.Context) error {
			_, err := api.List(ctx, &pb.ListRequest{PageToken: "%"})
			return err
		}), codes.InvalidArgument},
	} {
		if err := test.call(); status.Code(err) != test.code {
			t.Errorf("%s: %v, want %v", test.name, err, test.code)
		}
	}
	// A batch is done whole or not at all.
	ops := append(many(2), &pb.SessionOp{Op: &pb.SessionOp_Put{Put: &pb.PutRequest{Session: &pb.Session{Id: "b-9", Value: []byte("x")}, IfRevision: 1 << 40}}})
	ops[0].GetPut().GetSession().Value = []byte("never")
	if err := batch(ops)(); !errors.Is(hastate.FromStatus(err), hastate.ErrConflict) {
		t.Errorf("a batch with a conflict: %v", err)
	}
	if got, err := api.Get(within(t), &pb.GetRequest{Id: "b-0"}); err != nil || len(got.GetSession().GetValue()) != 0 {
		t.Errorf("part of a refused batch was done: %v, %v", got, err)
	}
}

// Many operations are under way on one stream through a follower while leadership
// moves; each is answered once, by its id. What was refused for want of a leader
// or is unknown is sent again with its number.
func TestSessions_PipelineOverLeaderChange(t *testing.T) {
	t.Parallel()
	c := New(t, Options{NoInstances: true})
	leader := c.WaitLeader()
	via, next := c.Others(leader)[0], c.Others(leader)[1]
	api := pb.NewSessionServiceClient(dial(t, via))
	opened, err := api.OpenClient(within(t), &pb.OpenClientRequest{})
	if err != nil {
		t.Fatal(err)
	}
	stream, err := api.Pipeline(within(t))
	if err != nil {
		t.Fatal(err)
	}
	const n = 400
	item := func(i uint64) *pb.PipelineItem {
		return &pb.PipelineItem{
			Id: i, Request: &pb.RequestId{Client: opened.GetClient(), Seq: i},
			Ops: []*pb.SessionOp{{Op: &pb.SessionOp_Put{Put: &pb.PutRequest{Session: &pb.Session{Id: fmt.Sprint("p-", i)}, IfAbsent: true}}}},
		}
	}
	send := func(ids ...uint64) {
		t.Helper()
		req := &pb.PipelineRequest{}
		for _, i := range ids {
			req.Items = append(req.Items, item(i))
		}
		if err := stream.Send(req); err != nil {
			t.Fatal(err)
		}
	}
	for i := uint64(1); i < n; i += 2 {
		send(i, i+1)
	}
	send(n + 1)
	if err := stream.Send(&pb.PipelineRequest{Items: []*pb.PipelineItem{{Id: n + 2, Ops: []*pb.SessionOp{{}}}}}); err != nil {
		t.Fatal(err)
	}
	moved := make(chan struct{})
	go func() {
		defer close(moved)
		// Whether it succeeds is of no interest.
		_ = leader.Node().TransferLeadership(t.Context(), next.ID)
	}()
	answered := map[uint64]codes.Code{}
	for len(answered) < n+2 {
		reply, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range reply.GetResults() {
			if _, twice := answered[r.GetId()]; twice {
				t.Fatalf("item %d is answered twice", r.GetId())
			}
			switch code := codes.Code(r.GetCode()); code {
			case codes.Unavailable, codes.Aborted:
				send(r.GetId())
			default:
				answered[r.GetId()] = code
			}
		}
	}
	<-moved
	for id, code := range answered {
		want := codes.OK
		if id == n+2 {
			want = codes.InvalidArgument
		}
		if code != want {
			t.Errorf("item %d: %v", id, code)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	page, err := api.List(within(t), &pb.ListRequest{Prefix: "p-", PageSize: 1000, KeysOnly: true})
	if err != nil || len(page.GetSessions()) != n+1 {
		t.Fatalf("%d sessions were written, %v, want %d", len(page.GetSessions()), err, n+1)
	}
}
