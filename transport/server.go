// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// service is what peers call. Everything goes to the Raft node through Consumer,
// one request at a time as it takes them, heartbeats too.
type service struct {
	pb.UnimplementedRaftServiceServer
	t *Transport
}

func invalid(err error) error {
	return hastate.ToStatus(fmt.Errorf("%w: %w", hastate.ErrInvalid, err))
}

// checkHeader compares who a request says it is from with who sent it.
func checkHeader(from raft.ServerID, r raft.WithRPCHeader) error {
	if id := r.GetRPCHeader().ID; len(id) > 0 && raft.ServerID(id) != from {
		return invalid(fmt.Errorf("the Raft header is of node %s, but node %s sent it", id, from))
	}
	return nil
}

// handOver gives a request to the Raft node and returns its answer. ctx ends
// with the caller's deadline: a request that Raft has not taken by then is
// dropped.
func (t *Transport) handOver(ctx context.Context, command any, reader io.Reader) (any, error) {
	// Raft does not wait when it responds, and may respond after we are gone.
	answer := make(chan raft.RPCResponse, 1)
	if ctx.Err() != nil { // select would choose at random
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	select {
	case t.consumer <- raft.RPC{Command: command, Reader: reader, RespChan: answer}:
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	case <-t.ctx.Done():
		return nil, t.stopping()
	}
	return t.await(ctx, answer)
}

func (t *Transport) await(ctx context.Context, answer <-chan raft.RPCResponse) (any, error) {
	select {
	case r := <-answer:
		if r.Error != nil {
			return nil, status.Error(codes.Unknown, "raft: "+r.Error.Error())
		}
		return r.Response, nil
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	case <-t.ctx.Done():
		return nil, t.stopping()
	}
}

func (t *Transport) stopping() error {
	return status.Errorf(codes.Unavailable, "node %s is stopping", t.opts.ID)
}

// as gives Raft's answer its type.
func as[R any](answer any, err error) (R, error) {
	r, ok := answer.(R)
	if err == nil && !ok {
		err = status.Errorf(codes.Internal, "raft answered with a %T", answer)
	}
	return r, err
}

// checkAppend refuses what would damage the log or make Raft panic.
func checkAppend(r *raft.AppendEntriesRequest) error {
	for i, l := range r.Entries {
		if want := r.PrevLogEntry + 1 + uint64(i); l.Index != want {
			return invalid(fmt.Errorf("the append has entry %d where %d belongs", l.Index, want))
		}
		if l.Type == raft.LogConfiguration {
			if err := checkConfiguration(l.Data); err != nil {
				return invalid(fmt.Errorf("log entry %d: %w", l.Index, err))
			}
		}
	}
	return nil
}

// appendRequest decodes and checks an append.
func appendRequest(from raft.ServerID, in *pb.AppendEntriesRequest) (*raft.AppendEntriesRequest, error) {
	r, err := appendRequestFromProto(in)
	if err != nil {
		return nil, invalid(err)
	}
	if err := checkHeader(from, r); err != nil {
		return nil, err
	}
	return r, checkAppend(r)
}

func (s *service) append(ctx context.Context, in *pb.AppendEntriesRequest) (*pb.AppendEntriesResponse, error) {
	from, err := s.t.admit(ctx, true)
	if err != nil {
		return nil, err
	}
	r, err := appendRequest(from, in)
	if err != nil {
		return nil, err
	}
	resp, err := as[*raft.AppendEntriesResponse](s.t.handOver(ctx, r, nil))
	if err != nil {
		return nil, err
	}
	return appendResponseToProto(resp), nil
}

func (s *service) Heartbeat(ctx context.Context, in *pb.HeartbeatRequest) (*pb.HeartbeatResponse, error) {
	out, err := s.append(ctx, in.GetAppend())
	if err != nil {
		return nil, err
	}
	return &pb.HeartbeatResponse{Append: out}, nil
}

func (s *service) AppendEntries(ctx context.Context, in *pb.AppendEntriesRequest) (*pb.AppendEntriesResponse, error) {
	return s.append(ctx, in)
}

func (s *service) RequestVote(ctx context.Context, in *pb.RequestVoteRequest) (*pb.RequestVoteResponse, error) {
	from, err := s.t.admit(ctx, false)
	if err != nil {
		return nil, err
	}
	r, err := voteRequestFromProto(in)
	if err != nil {
		return nil, invalid(err)
	}
	if err := checkHeader(from, r); err != nil {
		return nil, err
	}
	resp, err := as[*raft.RequestVoteResponse](s.t.handOver(ctx, r, nil))
	if err != nil {
		return nil, err
	}
	return voteResponseToProto(resp), nil
}

func (s *service) RequestPreVote(ctx context.Context, in *pb.RequestPreVoteRequest) (*pb.RequestPreVoteResponse, error) {
	from, err := s.t.admit(ctx, false)
	if err != nil {
		return nil, err
	}
	r, err := preVoteRequestFromProto(in)
	if err != nil {
		return nil, invalid(err)
	}
	if err := checkHeader(from, r); err != nil {
		return nil, err
	}
	if s.t.opts.BeforePreVote != nil {
		s.t.opts.BeforePreVote(ctx, r.LastLogTerm, r.LastLogIndex)
	}
	resp, err := as[*raft.RequestPreVoteResponse](s.t.handOver(ctx, r, nil))
	if err != nil {
		return nil, err
	}
	return preVoteResponseToProto(resp), nil
}

func (s *service) TimeoutNow(ctx context.Context, in *pb.TimeoutNowRequest) (*pb.TimeoutNowResponse, error) {
	arrived := time.Now()
	from, err := s.t.admit(ctx, false)
	if err != nil {
		return nil, err
	}
	r, drop, err := timeoutNowRequestFromProto(in)
	if err != nil {
		return nil, invalid(err)
	}
	if err := checkHeader(from, r); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithDeadline(ctx, arrived.Add(drop))
	defer cancel()
	resp, err := as[*raft.TimeoutNowResponse](s.t.handOver(ctx, r, nil))
	if err != nil {
		return nil, err
	}
	return timeoutNowResponseToProto(resp), nil
}
