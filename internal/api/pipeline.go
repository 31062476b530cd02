// SPDX-License-Identifier: Apache-2.0

package api

import (
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const (
	// maxPipelineItems bounds one PipelineRequest.
	maxPipelineItems = 1024
	// maxPipelineOpen and maxPipelineBytes bound what is under way on one
	// stream. Beyond them the stream is not read.
	maxPipelineOpen  = 4096
	maxPipelineBytes = 16 << 20
	// maxReplyBytes bounds one PipelineResponse.
	maxReplyBytes = 1 << 20
)

// pipeline is one Pipeline stream.
type pipeline struct {
	s      *Services
	stream pb.SessionService_PipelineServer
	// wake has room for one token: there is something to send, or the end.
	wake chan struct{}

	// mu guards the fields below; room is signalled when open or bytes fall, or
	// when the stream ends.
	mu   sync.Mutex
	room *sync.Cond
	// open and bytes count the items whose result the sender has not taken.
	open, bytes int
	out         []pipelineResult
	// closed: the client sends no more. aborted: nor does it listen.
	closed, aborted bool
}

// pipelineResult is a result and what its item counted.
type pipelineResult struct {
	res  *pb.PipelineResult
	size int
}

func (x *sessionServer) Pipeline(stream pb.SessionService_PipelineServer) error {
	p := &pipeline{s: x.s, stream: stream, wake: make(chan struct{}, 1)}
	p.room = sync.NewCond(&p.mu)
	var sender sync.WaitGroup
	sender.Go(p.send)
	err := p.receive()
	p.close(err != nil)
	sender.Wait()
	return err
}

// receive proposes what comes in; nil when the client has closed its half.
func (p *pipeline) receive() error {
	for {
		msg, err := p.stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if n := len(msg.GetItems()); n > maxPipelineItems {
			return &hastate.LimitError{Limit: "items of a message", Maximum: maxPipelineItems, Actual: uint64(n)}
		}
		for _, item := range msg.GetItems() {
			size := proto.Size(item)
			if !p.admit(size) {
				return nil
			}
			p.propose(item, size)
		}
	}
}

// propose starts one item; its result comes whenever it is there.
func (p *pipeline) propose(item *pb.PipelineItem, size int) {
	id := item.GetId()
	group, epoch, err := checkOps(item.GetOps())
	if err = first(err, checkRequestID(item.GetRequest())); err != nil {
		p.answer(id, size, nil, err)
		return
	}
	n := len(item.GetOps())
	p.s.cfg.Proposer.ProposeAsync(sessionCommand(item.GetRequest(), item.GetOps()), func(res *pb.Result, err error) {
		if err = first(err, hastate.FromResult(res, group, epoch)); err != nil {
			p.answer(id, size, nil, err)
			return
		}
		results, err := sessionResults(res, n)
		p.answer(id, size, results, err)
	})
}

// admit waits for room; false if the stream has ended meanwhile.
func (p *pipeline) admit(size int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.aborted && p.open > 0 && (p.open >= maxPipelineOpen || p.bytes+size > maxPipelineBytes) {
		p.room.Wait()
	}
	p.open++
	p.bytes += size
	return !p.aborted
}

func (p *pipeline) answer(id uint64, size int, results []*pb.SessionOpResult, err error) {
	r := &pb.PipelineResult{Id: id, Results: results}
	if err != nil {
		describe(r, err)
	}
	p.mu.Lock()
	if !p.aborted {
		p.out = append(p.out, pipelineResult{r, size})
	}
	p.mu.Unlock()
	p.nudge()
}

// describe puts an error into a result: what a gRPC status would carry.
func describe(r *pb.PipelineResult, err error) {
	st := status.Convert(hastate.ToStatus(err))
	r.Code, r.Message = uint32(st.Code()), st.Message()
	for _, detail := range st.Proto().GetDetails() {
		if b, err := proto.Marshal(detail); err == nil {
			r.Details = append(r.Details, b)
		}
	}
}

func (p *pipeline) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *pipeline) close(aborted bool) {
	p.mu.Lock()
	p.closed = true
	p.aborted = p.aborted || aborted
	p.room.Broadcast()
	p.mu.Unlock()
	p.nudge()
}

// send sends what is there, batched, until everything that was received is
// answered or nobody listens.
func (p *pipeline) send() {
	for {
		select {
		case <-p.wake:
		case <-p.stream.Context().Done():
			p.close(true)
			return
		}
		batch, end := p.take()
		for len(batch) > 0 {
			n := repliesThatFit(batch)
			if p.stream.Send(&pb.PipelineResponse{Results: batch[:n]}) != nil {
				p.close(true)
				return
			}
			batch = batch[n:]
		}
		if end {
			return
		}
	}
}

func (p *pipeline) take() (batch []*pb.PipelineResult, end bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.out {
		batch = append(batch, r.res)
		p.bytes -= r.size
	}
	p.open -= len(p.out)
	p.out = p.out[:0]
	p.room.Broadcast()
	return batch, p.aborted || (p.closed && p.open == 0)
}

// repliesThatFit is how many of batch, at least one, make one message.
func repliesThatFit(batch []*pb.PipelineResult) int {
	size := 0
	for i, r := range batch {
		size += proto.Size(r) + 8
		if i > 0 && size > maxReplyBytes {
			return i
		}
	}
	return len(batch)
}
