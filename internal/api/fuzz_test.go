// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// obedient is a membership that refuses nothing and does nothing.
type obedient struct{ memberSide }

func (obedient) Demote(context.Context, string) error { return nil }

// unaryMethods are those of all services between nodes and for clients.
func unaryMethods(t testing.TB) []protoreflect.MethodDescriptor {
	t.Helper()
	var out []protoreflect.MethodDescriptor
	for _, name := range []protoreflect.FullName{
		"hastate.v1.ClusterService", "hastate.v1.GroupService", "hastate.v1.ModelService", "hastate.v1.PeerService", "hastate.v1.SessionService",
	} {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
		if err != nil {
			t.Fatal(err)
		}
		methods := d.(protoreflect.ServiceDescriptor).Methods()
		for i := range methods.Len() {
			if m := methods.Get(i); !m.IsStreamingClient() && !m.IsStreamingServer() {
				out = append(out, m)
			}
		}
	}
	return out
}

// samples are requests that a client may send, so that others are near them.
func samples() []proto.Message {
	ref := &pb.ModelRef{Name: "m", Version: "1", Digest: "sha256:" + strings.Repeat("a", 64)}
	return []proto.Message{
		&pb.PutRequest{Session: &pb.Session{Group: "g", Id: "s", Value: []byte("v"), Labels: map[string]string{"a": "b"}}, Request: &pb.RequestId{Client: 1, Seq: 1}},
		&pb.AppendRequest{Group: "g", Id: "s", Offset: 1, Data: []byte("x"), TrimBefore: 1},
		&pb.BatchRequest{Ops: []*pb.SessionOp{{Op: &pb.SessionOp_Delete{Delete: &pb.DeleteRequest{Id: "s"}}}, {}}},
		&pb.ListRequest{Prefix: "s", PageToken: "s", PageSize: 4_000_000_000},
		&pb.ConfigureRequest{Group: "g", Policy: &pb.GroupPolicy{TtlMs: 1200, MaxLag: 1}}, &pb.PauseRequest{Group: "g"},
		&pb.RegisterRequest{Model: &pb.ModelVersion{Ref: ref}}, &pb.SetAliasRequest{Name: "m", Alias: "a", Version: "1"},
		&pb.GetModelRequest{Name: "m", Version: "1"}, &pb.SwitchoverRequest{Group: "g", To: "n1"}, &pb.AddMemberRequest{NodeId: "n2", Address: "a:1"},
		&pb.StatusRequest{}, &pb.HistoryRequest{Group: "g", Limit: 4_000_000_000},
	}
}

// FuzzRequest sends any message to any method, to a node with a real state machine: it
// is answered, with a reply or an error of a kind, and never by a panic.
func FuzzRequest(f *testing.F) {
	r := newMachineRig(f, func(c *Config) { c.Membership = obedient{memberSide{&world{fakeState: newFakeState()}}} })
	methods := unaryMethods(f)
	for i, m := range methods {
		f.Add(uint8(i), []byte(nil))
		for _, s := range samples() {
			if s.ProtoReflect().Descriptor().FullName() == m.Input().FullName() {
				b, err := proto.Marshal(s)
				if err != nil {
					f.Fatal(err)
				}
				f.Add(uint8(i), b)
			}
		}
	}
	f.Fuzz(func(t *testing.T, n uint8, data []byte) {
		m := methods[int(n)%len(methods)]
		req, reply := dynamicpb.NewMessage(m.Input()), dynamicpb.NewMessage(m.Output())
		if proto.Unmarshal(data, req) != nil {
			return
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		method := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
		if m.Name() == "Switchover" {
			forgetTheTime(req)
		}
		err := r.conn.Invoke(ctx, method, req, reply)
		switch status.Code(err) {
		case codes.OK, codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition, codes.ResourceExhausted, codes.OutOfRange, codes.Unimplemented:
		default:
			t.Fatalf("%s of %v: %v", method, req, err)
		}
		if err != nil && (strings.TrimSpace(status.Convert(err).Message()) == "" || hastate.FromStatus(err) == nil) {
			t.Fatalf("%s of %v: an error without a word: %v", method, req, err)
		}
	})
}

// forgetTheTime keeps a switchover from being scheduled: it would wait.
func forgetTheTime(req *dynamicpb.Message) {
	if at := req.Descriptor().Fields().ByName("at_unix_ms"); at != nil {
		req.Clear(at)
	}
}

// FuzzPipeline sends any two messages down a Pipeline: each item is answered once, by
// as many results as it has operations or by an error, and then the stream ends.
func FuzzPipeline(f *testing.F) {
	r := newMachineRig(f, func(c *Config) { c.Membership = obedient{memberSide{&world{fakeState: newFakeState()}}} })
	client := pb.NewSessionServiceClient(r.conn)
	for _, items := range [][]*pb.PipelineItem{
		{{Id: 1, Ops: []*pb.SessionOp{{Op: &pb.SessionOp_Put{Put: &pb.PutRequest{Session: &pb.Session{Id: "s"}}}}}}, {Id: 1}},
		{{Id: 2, Ops: []*pb.SessionOp{{Op: &pb.SessionOp_Touch{}}}, Request: &pb.RequestId{Client: 9, Seq: 1}}, {}},
	} {
		b, err := proto.Marshal(&pb.PipelineRequest{Items: items})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, []byte(nil))
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		stream, err := client.Pipeline(ctx)
		if err != nil {
			t.Fatal(err)
		}
		ops, open := map[uint64][]int{}, 0
		for _, data := range [][]byte{first, second} {
			msg := &pb.PipelineRequest{}
			if proto.Unmarshal(data, msg) != nil || len(msg.GetItems()) > maxPipelineItems {
				continue
			}
			if err := stream.Send(msg); err != nil {
				t.Fatal(err)
			}
			for _, item := range msg.GetItems() {
				ops[item.GetId()] = append(ops[item.GetId()], len(item.GetOps()))
				open++
			}
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		for open > 0 {
			open -= takeResults(t, stream, ops)
		}
		if resp, err := stream.Recv(); !errors.Is(err, io.EOF) {
			t.Fatalf("after all results: %v, %v", resp, err)
		}
	})
}

// takeResults takes one message of results and returns their number.
func takeResults(t *testing.T, stream grpc.BidiStreamingClient[pb.PipelineRequest, pb.PipelineResponse], ops map[uint64][]int) int {
	t.Helper()
	resp, err := stream.Recv()
	if err != nil {
		t.Fatalf("items %v have no result: %v", ops, err)
	}
	for _, res := range resp.GetResults() {
		want := ops[res.GetId()]
		if len(want) == 0 {
			t.Fatalf("nobody asked for %v", res)
		}
		switch codes.Code(res.GetCode()) {
		case codes.OK:
			at := slices.Index(want, len(res.GetResults()))
			if at < 0 {
				t.Fatalf("%v, items with %v operations were sent", res, want)
			}
			ops[res.GetId()] = slices.Delete(want, at, at+1)
		case codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition, codes.ResourceExhausted, codes.AlreadyExists:
			ops[res.GetId()] = want[1:]
		default:
			t.Fatalf("the result is %v", res)
		}
	}
	return len(resp.GetResults())
}
