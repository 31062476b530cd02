// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func TestSession_Writes(t *testing.T) {
	r := newRig(t, "n1")
	c := pb.NewSessionServiceClient(r.conn)
	id := &pb.RequestId{Client: 1, Seq: 1}
	if res, err := c.Put(t.Context(), &pb.PutRequest{Request: id, Session: &pb.Session{Id: "s"}}); err != nil || res.GetRevision() != 8 || res.GetHeader() == nil {
		t.Fatalf("%v, %v", res, err)
	}
	if _, err := c.Append(t.Context(), &pb.AppendRequest{Request: id, Group: "g", Id: "s", Data: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Delete(t.Context(), &pb.DeleteRequest{Request: id, Id: "s"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Touch(t.Context(), &pb.TouchRequest{Request: id, Id: "s"}); err != nil {
		t.Fatal(err)
	}
	put := r.commands[0]
	if put.GetRequest().GetSeq() != 1 || len(put.GetSessions().GetOps()) != 1 {
		t.Fatalf("proposed %v", put)
	}
	op := put.GetSessions().GetOps()[0].GetPut()
	if op.GetRequest() != nil || op.GetSession().GetGroup() != hastate.DefaultGroup {
		t.Fatalf("proposed operation %v", op)
	}
	if g := r.commands[1].GetSessions().GetOps()[0].GetAppend().GetGroup(); g != "g" {
		t.Fatalf("group %q", g)
	}
}

func TestSession_Refusals(t *testing.T) {
	r := newRig(t, "n1")
	c := pb.NewSessionServiceClient(r.conn)
	big := bytes.Repeat([]byte("x"), hastate.MaxSessionValueBytes+1)
	many := map[string]string{}
	for i := range hastate.MaxMapEntries + 1 {
		many[fmt.Sprint(i)] = ""
	}
	for name, s := range map[string]*pb.Session{
		"none": nil, "no id": {}, "long id": {Id: strings.Repeat("x", 257)}, "control": {Id: "a\nb"},
		"value": {Id: "s", Value: big}, "labels": {Id: "s", Labels: many}, "group": {Id: "s", Group: "\x01"},
	} {
		_, err := c.Put(t.Context(), &pb.PutRequest{Session: s})
		if code := status.Code(err); code != codes.InvalidArgument && code != codes.ResourceExhausted {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := c.Append(t.Context(), &pb.AppendRequest{Id: "s", Data: big})
	wantIs(t, err, hastate.ErrLimit)
	_, err = c.Put(t.Context(), &pb.PutRequest{Session: &pb.Session{Id: "s"}, IfAbsent: true, IfRevision: 1})
	wantIs(t, err, hastate.ErrInvalid)
	_, err = c.Batch(t.Context(), &pb.BatchRequest{})
	wantIs(t, err, hastate.ErrInvalid)
	touch := func(group string) *pb.SessionOp {
		return &pb.SessionOp{Op: &pb.SessionOp_Touch{Touch: &pb.TouchRequest{Group: group, Id: "s"}}}
	}
	_, err = c.Batch(t.Context(), &pb.BatchRequest{Ops: []*pb.SessionOp{touch("a"), touch("b")}})
	wantIs(t, err, hastate.ErrInvalid)
	_, err = c.Batch(t.Context(), &pb.BatchRequest{Ops: []*pb.SessionOp{touch("a"), {}}})
	wantIs(t, err, hastate.ErrInvalid)
	if len(r.commands) != 0 {
		t.Fatalf("bad requests were proposed: %v", r.commands)
	}
	// A request id that was used for something else.
	_, err = c.Batch(t.Context(), &pb.BatchRequest{Ops: []*pb.SessionOp{touch("a"), touch("a")}})
	wantIs(t, err, hastate.ErrInvalid)
	// Messages are bounded although the server takes larger ones, for Raft.
	_, err = c.Put(t.Context(), &pb.PutRequest{Session: &pb.Session{Id: "s", Value: bytes.Repeat([]byte("x"), hastate.MaxMessageBytes+1)}})
	wantIs(t, err, hastate.ErrLimit)
	// What the state machine refuses keeps its type.
	r.lock(func() {
		r.apply = func(*pb.Command) (*pb.Result, error) {
			return &pb.Result{Code: pb.ResultCode_RESULT_CODE_FENCED, Epoch: 9, Holder: "n3"}, nil
		}
	})
	_, err = c.Put(t.Context(), &pb.PutRequest{Session: &pb.Session{Id: "s", Group: "g", Epoch: 5}})
	var fenced *hastate.FencedError
	if !errors.As(hastate.FromStatus(err), &fenced) || fenced.Group != "g" || fenced.Epoch != 5 || fenced.NewestEpoch != 9 {
		t.Fatalf("got %v", err)
	}
}

func TestSession_GetAndList(t *testing.T) {
	r := newRig(t, "n1")
	c := pb.NewSessionServiceClient(r.conn)
	_, err := c.Get(t.Context(), &pb.GetRequest{Id: "s"})
	wantIs(t, err, hastate.ErrNotFound)
	for i := range 10 {
		r.putSession(&pb.Session{Group: "default", Id: fmt.Sprintf("s%d", i), Value: bytes.Repeat([]byte("v"), 500<<10)})
	}
	if res, err := c.Get(t.Context(), &pb.GetRequest{Id: "s3"}); err != nil || res.GetSession().GetId() != "s3" {
		t.Fatalf("%v, %v", res, err)
	}
	var ids []string
	pages := 0
	for req := (&pb.ListRequest{Prefix: "s", PageSize: 7}); ; pages++ {
		res, err := c.List(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range res.GetSessions() {
			ids = append(ids, s.GetId())
		}
		if req.PageToken = res.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	if strings.Join(ids, " ") != "s0 s1 s2 s3 s4 s5 s6 s7 s8 s9" || pages < 2 {
		t.Fatalf("%d pages of %v: pages must be bounded in bytes and leave nothing out", pages, ids)
	}
	_, err = c.List(t.Context(), &pb.ListRequest{PageSize: 5000})
	wantIs(t, err, hastate.ErrLimit)
	_, err = c.List(t.Context(), &pb.ListRequest{PageToken: "%%"})
	wantIs(t, err, hastate.ErrInvalid)
	open, err := c.OpenClient(t.Context(), &pb.OpenClientRequest{Name: "me"})
	if err != nil || open.GetWindow() != hastate.MaxClientWindow || open.GetIdleMs() == 0 {
		t.Fatalf("%v, %v", open, err)
	}
}

func item(id uint64, session string) *pb.PipelineItem {
	return &pb.PipelineItem{Id: id, Request: &pb.RequestId{Client: 1, Seq: id}, Ops: []*pb.SessionOp{
		{Op: &pb.SessionOp_Touch{Touch: &pb.TouchRequest{Id: session}}},
	}}
}

func TestSession_Pipeline(t *testing.T) {
	r := newRig(t, "n1")
	r.lock(func() {
		ok := r.apply
		r.apply = func(cmd *pb.Command) (*pb.Result, error) {
			switch cmd.GetSessions().GetOps()[0].GetTouch().GetId() {
			case "conflict":
				return &pb.Result{Code: pb.ResultCode_RESULT_CODE_CONFLICT, ConflictKey: "k", CurrentRevision: 4}, nil
			case "unknown":
				return nil, &hastate.OutcomeUnknownError{Reason: "lost"}
			}
			return ok(cmd)
		}
	})
	p, err := pb.NewSessionServiceClient(r.conn).Pipeline(timed(t))
	if err != nil {
		t.Fatal(err)
	}
	const n = 3000
	go func() {
		for base := 0; base < n; base += 1000 {
			msg := &pb.PipelineRequest{}
			for i := range 1000 {
				msg.Items = append(msg.Items, item(uint64(base+i+1), "s"))
			}
			_ = p.Send(msg)
		}
		_ = p.Send(&pb.PipelineRequest{Items: []*pb.PipelineItem{item(n+1, "conflict"), item(n+2, "unknown"), item(n+3, "")}})
		_ = p.CloseSend()
	}()
	seen := map[uint64]*pb.PipelineResult{}
	for {
		res, err := p.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, one := range res.GetResults() {
			if seen[one.GetId()] != nil {
				t.Fatalf("item %d was answered twice", one.GetId())
			}
			seen[one.GetId()] = one
		}
	}
	if len(seen) != n+3 {
		t.Fatalf("%d results for %d items", len(seen), n+3)
	}
	if one := seen[1]; one.GetCode() != 0 || one.GetResults()[0].GetRevision() != 8 {
		t.Fatalf("result %v", one)
	}
	typed := func(r *pb.PipelineResult) error {
		st := status.New(codes.Code(r.GetCode()), r.GetMessage()).Proto()
		for _, d := range r.GetDetails() {
			a := &anypb.Any{}
			if err := proto.Unmarshal(d, a); err != nil {
				t.Fatal(err)
			}
			st.Details = append(st.Details, a)
		}
		return hastate.FromStatus(status.FromProto(st).Err())
	}
	var conflict *hastate.ConflictError
	if err := typed(seen[n+1]); !errors.As(err, &conflict) || conflict.CurrentRevision != 4 {
		t.Fatalf("conflict came as %v", err)
	}
	wantIs(t, typed(seen[n+2]), hastate.ErrOutcomeUnknown)
	wantIs(t, typed(seen[n+3]), hastate.ErrInvalid)
}

// TestSession_PipelineIsBounded: a client that reads no results is not read.
func TestSession_PipelineIsBounded(t *testing.T) {
	r := newRig(t, "n1")
	release := make(chan struct{})
	blocked := &blockedProposer{world: r.world, release: release}
	r2 := newRig(t, "n1", func(c *Config) { c.Proposer = blocked })
	p, err := pb.NewSessionServiceClient(r2.conn).Pipeline(timed(t), grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	sent := make(chan int, 1)
	go func() {
		n := 0
		for range 10 {
			msg := &pb.PipelineRequest{}
			for range 1000 {
				n++
				msg.Items = append(msg.Items, item(uint64(n), "s"))
			}
			if p.Send(msg) != nil {
				break
			}
		}
		_ = p.CloseSend()
		sent <- n
	}()
	for range maxPipelineOpen {
		<-blocked.started()
	}
	select {
	case <-blocked.started():
		t.Fatalf("more than %d items are under way", maxPipelineOpen)
	default:
	}
	close(release)
	got := 0
	for {
		res, err := p.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got += len(res.GetResults())
	}
	if n := <-sent; got != n {
		t.Fatalf("%d results for %d items", got, n)
	}
}

// blockedProposer answers when it is released.
type blockedProposer struct {
	*world
	release chan struct{}
	once    sync.Once
	begun   chan struct{}
}

func (b *blockedProposer) started() chan struct{} {
	b.once.Do(func() { b.begun = make(chan struct{}, 1<<16) })
	return b.begun
}

func (b *blockedProposer) ProposeAsync(_ *pb.Command, done func(*pb.Result, error)) {
	b.started() <- struct{}{}
	go func() {
		<-b.release
		done(&pb.Result{Code: pb.ResultCode_RESULT_CODE_OK, Sessions: []*pb.SessionOpResult{{}}}, nil)
	}()
}
