// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// The kinds of calls that a FaultHook is told. A call that is not of Raft has
// its full method name as its kind, for example
// "/hastate.v1.PeerService/Nominate".
const (
	KindHeartbeat  = "heartbeat"
	KindAppend     = "append"
	KindPipeline   = "pipeline"
	KindVote       = "vote"
	KindPreVote    = "prevote"
	KindTimeoutNow = "timeout_now"
	KindSnapshot   = "snapshot"
)

// FaultHook lets a test disturb the calls that a node makes. It sits at the
// caller and sees both directions: Before a message leaves from for to, and
// After one came back from to, before the caller sees it. For streams
// (pipelines, snapshots, forwarding) it is called for every message; After is
// called in the order of the messages. Both may be called concurrently, may
// block until ctx is done, and must then return.
type FaultHook interface {
	// Before drops the message if it returns an error, which the caller gets.
	Before(ctx context.Context, from, to raft.ServerID, kind string) error
	// After is given the outcome of the call and returns what the caller gets:
	// err to leave it as it is, or another error to lose a response. It can
	// not turn an error into a success.
	After(ctx context.Context, from, to raft.ServerID, kind string, err error) error
}

func kindOf(method string) string {
	switch method {
	case pb.RaftService_Heartbeat_FullMethodName:
		return KindHeartbeat
	case pb.RaftService_AppendEntries_FullMethodName:
		return KindAppend
	case pb.RaftService_AppendPipeline_FullMethodName:
		return KindPipeline
	case pb.RaftService_RequestVote_FullMethodName:
		return KindVote
	case pb.RaftService_RequestPreVote_FullMethodName:
		return KindPreVote
	case pb.RaftService_TimeoutNow_FullMethodName:
		return KindTimeoutNow
	case pb.RaftService_InstallSnapshot_FullMethodName:
		return KindSnapshot
	}
	return method
}

// FaultUnaryInterceptor applies a hook to the unary calls of a connection from
// one node to another. The connections of a Transport have it already.
func FaultUnaryInterceptor(hook FaultHook, from, to raft.ServerID) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		kind := kindOf(method)
		if err := hook.Before(ctx, from, to, kind); err != nil {
			return err
		}
		err := invoke(ctx, method, req, reply, cc, opts...)
		if after := hook.After(ctx, from, to, kind, err); after != nil {
			return after
		}
		return err
	}
}

// FaultStreamInterceptor is FaultUnaryInterceptor for streams.
func FaultStreamInterceptor(hook FaultHook, from, to raft.ServerID) grpc.StreamClientInterceptor {
	return func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		stream, err := open(ctx, desc, cc, method, opts...)
		if err != nil {
			return nil, err
		}
		return &faultyStream{ClientStream: stream, hook: hook, from: from, to: to, kind: kindOf(method)}, nil
	}
}

type faultyStream struct {
	grpc.ClientStream
	hook     FaultHook
	from, to raft.ServerID
	kind     string
}

func (s *faultyStream) SendMsg(m any) error {
	if err := s.hook.Before(s.Context(), s.from, s.to, s.kind); err != nil {
		return err
	}
	return s.ClientStream.SendMsg(m)
}

func (s *faultyStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if after := s.hook.After(s.Context(), s.from, s.to, s.kind, err); after != nil {
		return after
	}
	return err
}
