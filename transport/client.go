// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Requests to peers, one message each. Pipelines and snapshots have files of
// their own.

// noPeer tells whether an error means that the peer was not reached, or did not
// answer in time.
func noPeer(err error) bool {
	code := status.Code(err)
	return code == codes.Unavailable || code == codes.DeadlineExceeded || errors.Is(err, context.DeadlineExceeded)
}

// settle notes the outcome of a call to a peer and gives the error its final
// form. ctx is that of the call.
func (p *peer) settle(ctx context.Context, what string, sentAt clock.Instant, err error) error {
	if err == nil {
		p.t.evidence.heard(p.id, sentAt)
		p.answered()
		return nil
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.DeadlineExceeded) {
		return fmt.Errorf("%s to node %s: %w", what, p.id, cause)
	}
	if noPeer(err) {
		p.failed(err)
	}
	err = hastate.FromStatus(err)
	if errors.Is(err, hastate.ErrPrecondition) {
		p.followAddress() // another node may have the address now
	}
	return fmt.Errorf("%s to node %s: %w", what, p.id, err)
}

// checkSender refuses a response that another node gave. Raft leaves the header
// of some responses empty.
func (p *peer) checkSender(r raft.WithRPCHeader) error {
	if id := r.GetRPCHeader().ID; len(id) > 0 && raft.ServerID(id) != p.id {
		return fmt.Errorf("%w: node %s answered in the place of node %s", hastate.ErrPrecondition, id, p.id)
	}
	return nil
}

// ask makes one call on the control connection, with a deadline, and returns
// the response and when the request was sent.
func ask[R raft.WithRPCHeader](t *Transport, id raft.ServerID, what string, timeout time.Duration, exchange func(context.Context, pb.RaftServiceClient) (R, error)) (R, clock.Instant, error) {
	var none R
	p, err := t.peer(id)
	if err != nil {
		return none, 0, err
	}
	ctx, cancel := context.WithTimeout(p.ctx, timeout)
	defer cancel()
	sentAt := t.opts.Clock.Now()
	r, err := exchange(ctx, p.clients[controlConn])
	if err == nil {
		err = p.checkSender(r)
	}
	if err := p.settle(ctx, what, sentAt, err); err != nil {
		return none, 0, err
	}
	return r, sentAt, nil
}

// Votes wait for a connection as long as their deadline allows: a candidate takes
// an error for a refusal, and a peer that has just come back may decide the
// election. They are asked for over a second connection when the first has no answer.

// RequestVote implements raft.Transport.
func (t *Transport) RequestVote(id raft.ServerID, _ raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if !t.opts.Serving() {
		return errWithheld
	}
	t.hurry(id)
	r, _, err := askTwice(t, id, "request vote", t.opts.Heartbeat, func(ctx context.Context, c pb.RaftServiceClient) (*raft.RequestVoteResponse, error) {
		out, err := c.RequestVote(ctx, voteRequestToProto(args), grpc.WaitForReady(true))
		if err != nil {
			return nil, err
		}
		return voteResponseFromProto(out)
	})
	if err != nil {
		return err
	}
	*resp = *r
	return nil
}

// RequestPreVote implements raft.WithPreVote.
func (t *Transport) RequestPreVote(id raft.ServerID, _ raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if !t.opts.Serving() {
		return errWithheld
	}
	t.hurry(id)
	r, _, err := askTwice(t, id, "request pre-vote", t.opts.Heartbeat, func(ctx context.Context, c pb.RaftServiceClient) (*raft.RequestPreVoteResponse, error) {
		out, err := c.RequestPreVote(ctx, preVoteRequestToProto(args), grpc.WaitForReady(true))
		if err != nil {
			return nil, err
		}
		return preVoteResponseFromProto(out)
	})
	if err != nil {
		return err
	}
	*resp = *r
	return nil
}

// TimeoutNow implements raft.Transport. The request has no term: one that
// arrives late would take the leadership from a leader that has given up the
// transfer. So it is dropped when late, here and there, and never sent twice.
func (t *Transport) TimeoutNow(id raft.ServerID, _ raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	r, _, err := ask(t, id, "timeout-now", t.opts.Election, func(ctx context.Context, c pb.RaftServiceClient) (*raft.TimeoutNowResponse, error) {
		out, err := c.TimeoutNow(ctx, timeoutNowRequestToProto(args, t.opts.Election))
		if err != nil {
			return nil, err
		}
		return timeoutNowResponseFromProto(out)
	})
	if err != nil {
		return err
	}
	*resp = *r
	return nil
}
