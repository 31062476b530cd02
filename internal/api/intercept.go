// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const (
	ourPrefix  = "/hastate.v1."
	raftPrefix = "/hastate.v1.RaftService/"
	peerPrefix = "/hastate.v1.PeerService/"
)

// deadlines are the defaults that differ from DefaultDeadline; 0: none here.
var deadlines = map[string]time.Duration{
	pb.GroupService_Watch_FullMethodName:             0,
	pb.SessionService_WatchSessions_FullMethodName:   0,
	pb.SessionService_Pipeline_FullMethodName:        0,
	pb.PeerService_Forward_FullMethodName:            0,
	pb.ClusterService_SaveSnapshot_FullMethodName:    archiveDeadline,
	pb.ClusterService_RestoreSnapshot_FullMethodName: archiveDeadline,
	pb.ClusterService_AddMember_FullMethodName:       moveDeadline,
	pb.ClusterService_RemoveMember_FullMethodName:    moveDeadline,
	pb.GroupService_Failover_FullMethodName:          moveDeadline,
	// The switchover may be scheduled: its handler adds the wait.
	pb.GroupService_Switchover_FullMethodName: 0,
}

// ours reports whether the interceptors concern a method. Raft's own calls and
// health checks pass untouched.
func ours(method string) bool {
	return strings.HasPrefix(method, ourPrefix) && !strings.HasPrefix(method, raftPrefix)
}

func (s *Services) withDeadline(ctx context.Context, method string) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	d, special := deadlines[method]
	if !special {
		d = DefaultDeadline
	}
	if d == 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, d)
}

// answerInTime is withDeadline, and ends a little before the caller's deadline: a
// node that has waited for a leader in vain must be able to say so.
func (s *Services) answerInTime(ctx context.Context, method string) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok || strings.HasPrefix(method, peerPrefix) {
		return s.withDeadline(ctx, method)
	}
	return context.WithDeadline(ctx, deadline.Add(-min(maxReplyTime, time.Until(deadline)/10)))
}

// maxReplyTime bounds what is set aside of a caller's time for the way back.
const maxReplyTime = 100 * time.Millisecond

// UnaryInterceptor is to be the first of the server's.
func (s *Services) UnaryInterceptor() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (reply any, err error) {
		if !ours(info.FullMethod) {
			return handle(ctx, req)
		}
		ctx, cancel := s.answerInTime(ctx, info.FullMethod)
		defer cancel()
		defer func() {
			if r := recover(); r != nil {
				reply, err = nil, s.panicked(info.FullMethod, r)
			}
		}()
		if err := checkSize(info.FullMethod, req); err != nil {
			return nil, hastate.ToStatus(err)
		}
		reply, err = handle(ctx, req)
		if err != nil {
			return nil, hastate.ToStatus(err)
		}
		s.fillHeader(reply)
		return reply, nil
	}
}

// StreamInterceptor is to be the first of the server's.
func (s *Services) StreamInterceptor() grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
		if !ours(info.FullMethod) {
			return handle(srv, stream)
		}
		ctx, cancel := s.withDeadline(stream.Context(), info.FullMethod)
		defer cancel()
		defer func() {
			if r := recover(); r != nil {
				err = s.panicked(info.FullMethod, r)
			}
		}()
		return hastate.ToStatus(handle(srv, &serverStream{ServerStream: stream, ctx: ctx, s: s, method: info.FullMethod}))
	}
}

func (s *Services) panicked(method string, r any) error {
	s.cfg.Logger.Error("call panicked", "method", method, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
	return status.Error(codes.Internal, "internal error: the node's log has the particulars")
}

// serverStream applies to each message what the unary interceptor applies to
// its one.
type serverStream struct {
	grpc.ServerStream
	ctx    context.Context
	s      *Services
	method string
}

func (t *serverStream) Context() context.Context { return t.ctx }

func (t *serverStream) RecvMsg(m any) error {
	if err := t.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return checkSize(t.method, m)
}

func (t *serverStream) SendMsg(m any) error {
	t.s.fillHeader(m)
	return t.ServerStream.SendMsg(m)
}

// checkSize bounds the messages of the public API. The server itself must let
// larger ones in, for Raft.
func checkSize(method string, m any) error {
	msg, ok := m.(proto.Message)
	if !ok || strings.HasPrefix(method, peerPrefix) {
		return nil
	}
	if n := proto.Size(msg); n > hastate.MaxMessageBytes {
		return &hastate.LimitError{Limit: "bytes of a message", Maximum: hastate.MaxMessageBytes, Actual: uint64(n)}
	}
	return nil
}

// fillHeader sets the header of a reply that has the field and no header yet: a
// reply of the leader that is passed on keeps the leader's.
func (s *Services) fillHeader(m any) {
	msg, ok := m.(proto.Message)
	if !ok {
		return
	}
	r := msg.ProtoReflect()
	field := r.Descriptor().Fields().ByName("header")
	if field == nil || field.Message() == nil || field.Message().FullName() != headerName || r.Has(field) {
		return
	}
	r.Set(field, protoreflect.ValueOfMessage((&pb.ReplyHeader{
		ClusterId: s.cfg.State.ClusterID(),
		NodeId:    s.cfg.NodeID,
		Term:      s.cfg.Raft.CurrentTerm(),
		Revision:  s.cfg.State.Revision(),
	}).ProtoReflect()))
}

var headerName = (&pb.ReplyHeader{}).ProtoReflect().Descriptor().FullName()
