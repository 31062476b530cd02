// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// awaited watches over the wait for the answer to an append. If there is none after
// AppendTimeout it calls fail. After a heartbeat timeout it begins to ask over the same
// connection: one that is dead while the peer answers over another is closed, so that
// gRPC makes it anew. Without that replication could stand still for AppendTimeout after
// a cut in one direction: the peer's kernel gives up the connection on which its answers
// are not confirmed (TCP_USER_TIMEOUT), and says so to nobody. stop must be called.
func (p *peer) awaited(args *raft.AppendEntriesRequest, fail func(error)) (stop func()) {
	ctx, cancel := context.WithCancel(p.ctx)
	first := min(p.t.opts.Heartbeat, p.t.opts.AppendTimeout)
	timer := time.AfterFunc(first, func() {
		p.t.start(func() { p.overdue(ctx, args, p.t.opts.AppendTimeout-first, fail) }) // not after Close, which ends the wait
	})
	return func() {
		timer.Stop()
		cancel()
	}
}

// overdue goes on until ctx ends because the answer has come, for left at most.
func (p *peer) overdue(ctx context.Context, args *raft.AppendEntriesRequest, left time.Duration, fail func(error)) {
	ctx, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	again := time.NewTicker(p.t.opts.Heartbeat)
	defer again.Stop()
	for {
		p.closeLifeless(ctx, args) // the wait ends with it, or at left
		select {
		case <-again.C:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				fail(fmt.Errorf("wait for an answer: %w within %v", errNoProgress, p.t.opts.AppendTimeout))
			}
			return
		}
	}
}

// closeLifeless sends a heartbeat over the append connection. If that has no answer
// although the peer can be reached, it closes the connection.
func (p *peer) closeLifeless(ctx context.Context, args *raft.AppendEntriesRequest) {
	in, err := appendRequestToProto(&raft.AppendEntriesRequest{RPCHeader: args.RPCHeader, Term: args.Term, Leader: args.Leader})
	if err != nil || !p.t.opts.Serving() {
		return
	}
	lead, end := p.t.watch.lead(ctx, args.Term)
	defer end()
	call, cancel := context.WithTimeout(lead, p.t.opts.Heartbeat)
	defer cancel()
	conn := p.dialledNow(appendConn)
	_, err = p.clients[appendConn].Heartbeat(call, &pb.HeartbeatRequest{Append: in})
	// Only what has no answer at all proves something: an error is one, or gRPC's, which
	// then makes the connection anew by itself.
	if err == nil || !errors.Is(call.Err(), context.DeadlineExceeded) || lead.Err() != nil {
		return
	}
	if !p.forget(appendConn, conn) {
		return
	}
	p.t.logger.Info("a connection to the peer is dead: it is made anew", "peer", p.id)
	_ = conn.Close() // it is of no use any more
}
