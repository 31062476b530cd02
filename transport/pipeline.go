// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

var (
	errRejected = errors.New("the peer rejected an append of the pipeline")
	errEnded    = errors.New("the peer has ended the pipeline")
)

// AppendEntriesPipeline implements raft.Transport.
func (t *Transport) AppendEntriesPipeline(id raft.ServerID, _ raft.ServerAddress) (raft.AppendPipeline, error) {
	if t.opts.PipelineDepth < 2 {
		return nil, raft.ErrPipelineReplicationNotSupported
	}
	p, err := t.peer(id)
	if err != nil {
		return nil, err
	}
	ctx, end := t.watch.lead(p.ctx, t.watch.term())
	ctx, poison := context.WithCancelCause(ctx)
	stream, err := p.clients[appendConn].AppendPipeline(ctx)
	if err != nil {
		err = p.settle(ctx, "open a pipeline", 0, err)
		poison(err)
		end()
		return nil, err
	}
	l := &pipeline{
		p:        p,
		stream:   stream,
		ctx:      ctx,
		poison:   poison,
		end:      end,
		slots:    make(chan struct{}, t.opts.PipelineDepth),
		inflight: make(chan *message, t.opts.PipelineDepth),
		done:     make(chan raft.AppendFuture, t.opts.PipelineDepth),
		finished: make(chan struct{}),
	}
	if !t.start(l.receive) {
		poison(errClosed)
		end()
		return nil, errClosed
	}
	return l, nil
}

// pipeline sends appends without waiting for their answers. It lives until the
// first append that is not answered with success: then its context ends, with
// the reason as cause, and with it whatever waits in it. Raft looks at no
// future's error, and takes any future for a sign of life; so only answered
// futures get to it, and the failure comes from the next AppendEntries.
type pipeline struct {
	p      *peer
	stream grpc.BidiStreamingClient[pb.AppendPipelineRequest, pb.AppendPipelineResponse]
	ctx    context.Context
	poison context.CancelCauseFunc // the first cause counts
	end    func()

	send     sync.Mutex             // held while a message is put in flight, to keep order
	slots    chan struct{}          // a place for each unanswered message
	inflight chan *message          // in the order of sending
	done     chan raft.AppendFuture // what Raft consumes
	finished chan struct{}          // closed when receive has returned
}

// message is a part of an append that waits for its answer.
type message struct {
	future *future
	term   uint64
	sentAt clock.Instant
	last   bool // the answer to it is the answer to the append
}

// AppendEntries implements raft.AppendPipeline. It waits while too many messages
// are unanswered.
func (l *pipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	f := &future{pipeline: l, start: time.Now(), args: args, resp: resp, answered: make(chan struct{})}
	parts := split(args, l.p.t.opts.SplitBytes)
	l.send.Lock()
	defer l.send.Unlock()
	for i, part := range parts {
		if err := l.put(f, part, i == len(parts)-1); err != nil {
			l.poison(err)
			return nil, fmt.Errorf("append to node %s in a pipeline: %w", l.p.id, context.Cause(l.ctx))
		}
	}
	return f, nil
}

func (l *pipeline) put(f *future, part *raft.AppendEntriesRequest, last bool) error {
	if !l.p.t.opts.Serving() {
		return errWithheld
	}
	in, err := appendRequestToProto(part)
	if err != nil {
		return err
	}
	if l.ctx.Err() != nil { // select would choose at random
		return context.Cause(l.ctx)
	}
	select {
	case l.slots <- struct{}{}:
	case <-l.ctx.Done():
		return context.Cause(l.ctx)
	}
	// The slot is a place in inflight too, so this does not block. It goes
	// first: the answer must not come before it.
	l.inflight <- &message{future: f, term: part.Term, sentAt: l.p.t.opts.Clock.Now(), last: last}
	if err := l.stream.Send(&pb.AppendPipelineRequest{Append: in}); errors.Is(err, io.EOF) {
		// receive learns the reason, at once unless it waits for Raft.
		late := time.NewTimer(time.Second)
		defer late.Stop()
		select {
		case <-l.ctx.Done():
		case <-late.C:
		}
		return errEnded
	} else if err != nil {
		return err
	}
	return nil
}

// receive takes the answers. It returns when the pipeline is poisoned.
func (l *pipeline) receive() {
	defer close(l.finished)
	defer l.end()
	for {
		select {
		case m := <-l.inflight:
			if err := l.take(m); err != nil {
				l.poison(err)
				return
			}
		case <-l.ctx.Done():
			return
		}
	}
}

// take waits for the answer to a message. An error ends the pipeline.
func (l *pipeline) take(m *message) error {
	r, err := l.recv(m.future.args)
	if err := l.p.settle(l.ctx, "append in a pipeline", m.sentAt, err); err != nil {
		return err
	}
	l.p.t.evidence.appended(l.p.id, m.term, r.Term, m.sentAt)
	<-l.slots
	accepted := r.Success && r.Term == m.term
	if accepted && !m.last {
		return nil
	}
	*m.future.resp = *r
	close(m.future.answered)
	select {
	case l.done <- m.future:
	case <-l.ctx.Done():
		return context.Cause(l.ctx)
	}
	if !accepted {
		// Nobody consumes futures after this one. Without an error here the
		// sender would wait for a place for ever.
		return errRejected
	}
	return nil
}

func (l *pipeline) recv(args *raft.AppendEntriesRequest) (*raft.AppendEntriesResponse, error) {
	defer l.p.awaited(args, l.poison)()
	out, err := l.stream.Recv()
	if err != nil {
		return nil, err
	}
	r, err := appendResponseFromProto(out.GetAppend())
	if err != nil {
		return nil, err
	}
	return r, l.p.checkSender(r)
}

// Consumer implements raft.AppendPipeline.
func (l *pipeline) Consumer() <-chan raft.AppendFuture { return l.done }

// Close implements raft.AppendPipeline. It ends the calls under way and waits
// for the pipeline's goroutine.
func (l *pipeline) Close() error {
	l.poison(raft.ErrPipelineShutdown)
	<-l.finished
	return nil
}

// future is an append in a pipeline.
type future struct {
	pipeline *pipeline
	start    time.Time
	args     *raft.AppendEntriesRequest
	resp     *raft.AppendEntriesResponse
	answered chan struct{} // closed once resp is filled
}

// Error implements raft.Future: it waits for the answer, or for the end of the
// pipeline.
func (f *future) Error() error {
	select {
	case <-f.answered:
		return nil
	default:
	}
	select {
	case <-f.answered:
		return nil
	case <-f.pipeline.finished:
	}
	select {
	case <-f.answered:
		return nil
	default:
		return fmt.Errorf("append to node %s in a pipeline: %w", f.pipeline.p.id, context.Cause(f.pipeline.ctx))
	}
}

func (f *future) Start() time.Time                      { return f.start }
func (f *future) Request() *raft.AppendEntriesRequest   { return f.args }
func (f *future) Response() *raft.AppendEntriesResponse { return f.resp }
