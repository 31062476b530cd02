// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"bytes"
	"context"
	"errors"
	"io"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// receiveAhead is how many requests of a pipeline are taken from the stream
// before Raft takes them. The sender's depth bounds them too.
const receiveAhead = 16

// AppendPipeline answers the appends of a stream in order. While the Raft node
// is busy, appends gather here, and it is given them as one: it then makes one
// write to its log, with one fsync, out of many.
func (s *service) AppendPipeline(stream grpc.BidiStreamingServer[pb.AppendPipelineRequest, pb.AppendPipelineResponse]) error {
	ctx := stream.Context()
	from, err := s.t.admit(ctx, true)
	if err != nil {
		return err
	}
	in := make(chan arrival, receiveAhead)
	// The goroutine ends with the stream's context, which gRPC ends when this
	// function returns.
	if !s.t.start(func() { receiveAppends(stream, from, in) }) {
		return s.t.stopping()
	}
	c := &coalescer{
		t:  s.t,
		in: in,
		answer: func(r *raft.AppendEntriesResponse) error {
			return stream.Send(&pb.AppendPipelineResponse{Append: appendResponseToProto(r)})
		},
	}
	return c.run(ctx)
}

// arrival is an append, or why there are no more.
type arrival struct {
	request *raft.AppendEntriesRequest
	err     error // io.EOF: the sender is done
}

func receiveAppends(stream grpc.BidiStreamingServer[pb.AppendPipelineRequest, pb.AppendPipelineResponse], from raft.ServerID, in chan<- arrival) {
	for {
		var a arrival
		msg, err := stream.Recv()
		if err != nil {
			a.err = err
		} else {
			a.request, a.err = appendRequest(from, msg.GetAppend())
		}
		select {
		case in <- a:
		case <-stream.Context().Done():
			return
		}
		if a.err != nil {
			return
		}
	}
}

// coalescer hands the appends of one stream to the Raft node.
type coalescer struct {
	t      *Transport
	in     <-chan arrival
	ahead  *arrival // received, but does not fit the batch at hand
	answer func(*raft.AppendEntriesResponse) error
}

// run returns nil when the sender is done and everything is answered.
func (c *coalescer) run(ctx context.Context) error {
	for {
		first, err := c.next(ctx)
		if err != nil {
			return err
		}
		if errors.Is(first.err, io.EOF) {
			return nil
		}
		if first.err != nil {
			return first.err
		}
		b := newBatch(first.request, c.t.opts.CoalesceEntries, c.t.opts.CoalesceBytes)
		if err := c.serve(ctx, b); err != nil {
			return err
		}
	}
}

func (c *coalescer) next(ctx context.Context) (arrival, error) {
	if a := c.ahead; a != nil {
		c.ahead = nil
		return *a, nil
	}
	select {
	case a := <-c.in:
		return a, nil
	case <-ctx.Done():
		return arrival{}, status.FromContextError(ctx.Err()).Err()
	case <-c.t.ctx.Done():
		return arrival{}, c.t.stopping()
	}
}

// serve gets the answers to a batch. Success of the whole is success of each.
// If the whole was not accepted, the requests are handed over one by one, so
// that each gets its own answer: an append may be processed twice.
func (c *coalescer) serve(ctx context.Context, b *batch) error {
	answer, err := c.offer(ctx, b)
	if err != nil {
		return err
	}
	resp, err := as[*raft.AppendEntriesResponse](c.t.await(ctx, answer))
	alone := len(b.requests) == 1
	if alone && err != nil {
		return err
	}
	if alone || (err == nil && resp.Success) {
		for range b.requests {
			if err := c.answer(resp); err != nil {
				return err
			}
		}
		return nil
	}
	for _, r := range b.requests {
		resp, err := as[*raft.AppendEntriesResponse](c.t.handOver(ctx, r, nil))
		if err != nil {
			return err
		}
		if err := c.answer(resp); err != nil {
			return err
		}
	}
	return nil
}

// offer hands the batch to the Raft node. Until it takes it, what arrives is
// added.
func (c *coalescer) offer(ctx context.Context, b *batch) (<-chan raft.RPCResponse, error) {
	answer := make(chan raft.RPCResponse, 1)
	if ctx.Err() != nil { // select would choose at random
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	c.gather(b)
	for {
		var more <-chan arrival
		if c.ahead == nil && !b.full() {
			more = c.in
		}
		select {
		case c.t.consumer <- raft.RPC{Command: b.merged, RespChan: answer}:
			return answer, nil
		case a := <-more:
			c.add(b, a)
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		case <-c.t.ctx.Done():
			return nil, c.t.stopping()
		}
	}
}

// gather adds what has arrived already.
func (c *coalescer) gather(b *batch) {
	for c.ahead == nil && !b.full() {
		select {
		case a := <-c.in:
			c.add(b, a)
		default:
			return
		}
	}
}

func (c *coalescer) add(b *batch, a arrival) {
	if a.err != nil || !b.add(a.request) {
		c.ahead = &a
	}
}

// batch is a run of appends of one leader and term, each of which begins where
// the one before ends.
type batch struct {
	requests             []*raft.AppendEntriesRequest
	merged               *raft.AppendEntriesRequest // requests[0] itself, or a copy with the entries of all
	bytes                int
	maxEntries, maxBytes int
	lastIndex, lastTerm  uint64 // where the next one must begin
}

func newBatch(r *raft.AppendEntriesRequest, maxEntries, maxBytes int) *batch {
	b := &batch{
		requests: []*raft.AppendEntriesRequest{r}, merged: r,
		maxEntries: maxEntries, maxBytes: maxBytes,
		lastIndex: r.PrevLogEntry, lastTerm: r.PrevLogTerm,
	}
	b.advance(r)
	return b
}

func (b *batch) advance(r *raft.AppendEntriesRequest) {
	b.bytes += logBytes(r.Entries...)
	if n := len(r.Entries); n > 0 {
		b.lastIndex, b.lastTerm = r.Entries[n-1].Index, r.Entries[n-1].Term
	}
}

func (b *batch) full() bool {
	return b.maxEntries <= 1 || len(b.merged.Entries) >= b.maxEntries || b.bytes >= b.maxBytes || len(b.requests) >= receiveAhead
}

// add appends a request to the batch if the two together mean the same as one
// after the other: then the previous entry of the second is the last of the
// first, which the follower has once it accepted the first.
func (b *batch) add(r *raft.AppendEntriesRequest) bool {
	first := b.requests[0]
	switch {
	case b.full(), isHeartbeat(r), isHeartbeat(first):
		return false
	case r.Term != first.Term, !sameHeader(r.RPCHeader, first.RPCHeader), !bytes.Equal(r.Leader, first.Leader):
		return false
	case r.PrevLogEntry != b.lastIndex, r.PrevLogTerm != b.lastTerm:
		return false
	case len(b.merged.Entries)+len(r.Entries) > b.maxEntries, b.bytes+logBytes(r.Entries...) > b.maxBytes:
		return false
	}
	if len(b.requests) == 1 {
		// The requests stay as they are: they may be needed one by one.
		merged := *first
		merged.Entries = append(make([]*raft.Log, 0, 2*len(first.Entries)+len(r.Entries)), first.Entries...)
		b.merged = &merged
	}
	b.merged.Entries = append(b.merged.Entries, r.Entries...)
	b.merged.LeaderCommitIndex = max(b.merged.LeaderCommitIndex, r.LeaderCommitIndex)
	b.requests = append(b.requests, r)
	b.advance(r)
	return true
}

func sameHeader(a, b raft.RPCHeader) bool {
	return a.ProtocolVersion == b.ProtocolVersion && bytes.Equal(a.ID, b.ID) && bytes.Equal(a.Addr, b.Addr)
}
