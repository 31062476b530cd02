// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const (
	maxMessageItems = 1024
	maxMessageBytes = 1 << 20
)

type pipeline = grpc.BidiStreamingClient[pb.PipelineRequest, pb.PipelineResponse]

// serve runs one stream until it breaks, is silent for longer than patience while
// answers are due, or ctx ends. answered: it gave at least one answer.
func (w *writer) serve(ctx context.Context, cc grpc.ClientConnInterface, patience time.Duration) (answered bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	opening := time.AfterFunc(patience, func() { cancel(errSilent) })
	stream, err := pb.NewSessionServiceClient(cc).Pipeline(ctx)
	opening.Stop()
	if err != nil {
		return false, because(ctx, err)
	}
	// Sender, receiver and the watch over both: the first that ends, ends all.
	errs := make(chan error, 3)
	go func() { errs <- w.send(ctx, stream) }()
	go func() { errs <- w.receive(ctx, stream, &answered) }()
	go func() { errs <- w.watchSilence(ctx, patience) }()
	for range 3 {
		broke := <-errs
		if err == nil {
			err = broke
		}
		cancel(broke)
	}
	return answered, err
}

// because prefers the reason for which a context was ended to its consequence.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return hastate.FromStatus(err)
}

// watchSilence returns errSilent when answers are due for longer than patience.
func (w *writer) watchSilence(ctx context.Context, patience time.Duration) error {
	tick := time.NewTicker(patience / 4)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		w.mu.Lock()
		silent := len(w.sent) > 0 && time.Since(w.quiet) > patience
		w.mu.Unlock()
		if silent {
			return errSilent
		}
	}
}

// send sends what is in the queue, until ctx ends.
func (w *writer) send(ctx context.Context, stream pipeline) error {
	for {
		msg, open := w.take()
		switch {
		case open:
			if err := w.open(ctx); err != nil {
				return because(ctx, err)
			}
		case msg == nil:
			select {
			case <-w.wake:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		default:
			err := stream.Send(msg)
			if errors.Is(err, io.EOF) {
				// The receiver gets the reason.
				<-ctx.Done()
				return context.Cause(ctx)
			}
			if err != nil {
				return because(ctx, err)
			}
		}
	}
}

// open gets a number for a new generation.
func (w *writer) open(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, DefaultTimeout)
	defer cancel()
	var resp *pb.OpenClientResponse
	err := w.c.call(ctx, Repeatable, func(ctx context.Context, cc grpc.ClientConnInterface) (err error) {
		resp, err = pb.NewSessionServiceClient(cc).OpenClient(ctx, &pb.OpenClientRequest{Name: w.c.opts.Name})
		if err != nil { // those who wait may end before this does, and want to know why
			w.mu.Lock()
			w.last = hastate.FromStatus(err)
			w.mu.Unlock()
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("open a writer: %w", err)
	}
	window := min(uint64(resp.GetWindow()), hastate.MaxClientWindow)
	if window == 0 {
		return fmt.Errorf("open a writer: %w: the node allows no unanswered request", hastate.ErrInvalid)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gen = &generation{client: resp.GetClient(), window: window, next: 1, acked: 1, over: make(map[uint64]struct{})}
	return nil
}

// take moves operations from the queue into a message, as many as the window and
// the size of a message allow. nil: nothing can be sent now. open: a writer's
// number is needed first.
func (w *writer) take() (msg *pb.PipelineRequest, open bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	bytes, n := int64(0), 0
	for _, it := range w.queue {
		if n == maxMessageItems || (n > 0 && bytes+it.size > maxMessageBytes) {
			break
		}
		if it.gen == nil {
			if w.gen == nil {
				open = n == 0
				break
			}
			if w.gen.next >= w.gen.acked+w.gen.window {
				break
			}
			it.gen, it.seq = w.gen, w.gen.next
			w.gen.next++
		}
		if len(w.sent) == 0 {
			w.quiet = time.Now()
		}
		it.maybeBefore, it.maybe = it.maybe, true
		w.sent[it.id] = it
		bytes += it.size
		n++
		if msg == nil {
			msg = &pb.PipelineRequest{}
		}
		msg.Items = append(msg.Items, &pb.PipelineItem{
			Id: it.id, Ops: it.ops,
			Request: &pb.RequestId{Client: it.gen.client, Seq: it.seq, AckedBelow: it.gen.acked},
		})
	}
	clear(w.queue[:n])
	w.queue = w.queue[n:]
	return msg, open
}

// receive takes in answers until the stream breaks, or an answer says that this
// node cannot do it now.
func (w *writer) receive(ctx context.Context, stream pipeline, answered *bool) error {
	for {
		resp, err := stream.Recv()
		if err != nil {
			return because(ctx, err)
		}
		settled, broke := w.answers(resp.GetResults())
		*answered = *answered || settled
		if broke != nil {
			return broke
		}
	}
}

// answers takes in results. settled: one of them was final. broke: one of them has
// to be asked for at another node.
func (w *writer) answers(results []*pb.PipelineResult) (settled bool, broke error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.quiet = time.Now()
	for _, r := range results {
		it := w.sent[r.GetId()]
		if it == nil {
			continue // given up
		}
		if err := w.answer(it, r); err != nil {
			broke = err
		} else {
			settled = true
		}
	}
	if settled {
		w.last = nil
		w.poke() // the window may have moved
	}
	return settled, broke
}

// answer takes in the result of one operation. An error means that it has to be
// sent again elsewhere. w.mu is held.
func (w *writer) answer(it *item, r *pb.PipelineResult) error {
	err := resultError(r)
	switch {
	case err == nil && len(r.GetResults()) != len(it.ops):
		w.finish(it, outcome{err: &hastate.OutcomeUnknownError{
			Reason: fmt.Sprintf("the node answered %d operations with %d results", len(it.ops), len(r.GetResults())),
		}})
	case err == nil:
		w.finish(it, outcome{results: r.GetResults()})
	case errors.Is(err, hastate.ErrClientExpired):
		w.expired(it, err)
	case errors.Is(err, hastate.ErrNotLeader), errors.Is(err, hastate.ErrNoLeader):
		// This attempt was certainly not applied.
		it.maybe = it.maybeBefore
		w.again(it)
		return err
	case queueFull(err), it.maybeBefore && errors.Is(err, hastate.ErrLimit):
		// Refused before anybody looked whether it was applied by an earlier attempt.
		it.maybe = it.maybeBefore
		w.later(it)
	case passing(err):
		w.again(it)
		return err
	case vague(err) || it.maybeBefore && forbidden(err):
		w.finish(it, outcome{err: &hastate.OutcomeUnknownError{Reason: err.Error()}})
	default:
		w.finish(it, outcome{err: err})
	}
	return nil
}

// vague tells errors that do not say whether the operation was applied.
func vague(err error) bool {
	switch status.Code(err) {
	case codes.Internal, codes.DataLoss, codes.Aborted:
		return true
	case codes.Unknown:
		// The typed errors of hastate have no code at all.
		var coded interface{ GRPCStatus() *status.Status }
		return errors.As(err, &coded)
	}
	return false
}

// forbidden tells errors that are found before the cluster looks whether the
// operation was applied before.
func forbidden(err error) bool {
	code := status.Code(err)
	return code == codes.PermissionDenied || code == codes.Unauthenticated
}

// expired handles an operation whose writer is no longer known: it is sent under
// a new number if no earlier attempt can have been applied. w.mu is held.
func (w *writer) expired(it *item, err error) {
	if w.gen == it.gen {
		w.gen = nil
	}
	it.reopens++
	if it.maybeBefore {
		w.finish(it, outcome{err: &hastate.OutcomeUnknownError{Reason: "the cluster has forgotten this writer: " + err.Error()}})
		return
	}
	if it.reopens > maxReopens {
		it.maybe = false
		w.finish(it, outcome{err: err})
		return
	}
	it.gen.answered(it.seq)
	it.gen, it.seq, it.maybe = nil, 0, false
	w.again(it)
	w.poke()
}

// later puts an operation back into the queue after a wait. w.mu is held.
func (w *writer) later(it *item) {
	delete(w.sent, it.id)
	time.AfterFunc(it.back.delay(), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !it.over && !w.closed {
			w.again(it)
			w.poke()
		}
	})
}

// again puts an operation back into the queue, in its place. w.mu is held.
func (w *writer) again(it *item) {
	delete(w.sent, it.id)
	i := 0
	for i < len(w.queue) && w.queue[i].id < it.id {
		i++
	}
	w.queue = append(w.queue, nil)
	copy(w.queue[i+1:], w.queue[i:])
	w.queue[i] = it
}

// resultError is the error of a result, nil for success.
func resultError(r *pb.PipelineResult) error {
	if r.GetCode() == uint32(codes.OK) {
		return nil
	}
	st := status.New(codes.Code(r.GetCode()), r.GetMessage()).Proto()
	for _, raw := range r.GetDetails() {
		detail := &anypb.Any{}
		if err := proto.Unmarshal(raw, detail); err == nil {
			st.Details = append(st.Details, detail)
		}
	}
	return hastate.FromStatus(status.ErrorProto(st))
}
