// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func refusal(id uint64, err error) *pb.PipelineResult {
	st := status.Convert(hastate.ToStatus(err))
	r := &pb.PipelineResult{Id: id, Code: uint32(st.Code()), Message: st.Message()}
	for _, d := range st.Proto().GetDetails() {
		raw, _ := proto.Marshal(d)
		r.Details = append(r.Details, raw)
	}
	return r
}

// An operation goes through some attempts, is then given up, and its caller must
// learn whether it may have been applied.
func TestWriter_KnowsWhatMayHaveBeenApplied(t *testing.T) {
	var (
		noLeader = hastate.ErrNoLeader
		unknown  = &hastate.OutcomeUnknownError{Reason: "leadership lost"}
		full     = &hastate.LimitError{Limit: "propose_queue_commands", Maximum: 1, Actual: 2}
		lost     = errors.New("no answer") // stands for a broken stream
	)
	for _, tc := range []struct {
		attempts []error
		maybe    bool
	}{
		{nil, false},
		{[]error{noLeader}, false},
		{[]error{noLeader, noLeader}, false},
		{[]error{full, noLeader}, false},
		{[]error{lost}, true},
		{[]error{unknown}, true},
		{[]error{noLeader, lost}, true},
		{[]error{lost, noLeader}, true},
		{[]error{unknown, full}, true},
	} {
		t.Run(fmt.Sprint(tc.attempts), func(t *testing.T) {
			w := newWriter(&Client{})
			w.gen = &generation{client: 1, window: 8, next: 1, acked: 1, over: make(map[uint64]struct{})}
			it := &item{id: 1, ops: []*pb.SessionOp{{}}, size: 1, done: make(chan outcome, 1)}
			if err := errors.Join(w.slots.Acquire(t.Context(), 1), w.bytes.Acquire(t.Context(), it.size)); err != nil {
				t.Fatal(err)
			}
			w.queue = append(w.queue, it)
			for i, answer := range tc.attempts {
				// After a full queue it comes back by itself.
				wait.Until(t, 10*time.Second, func() error {
					w.mu.Lock()
					defer w.mu.Unlock()
					if len(w.queue) != 1 {
						return fmt.Errorf("%d operations wait", len(w.queue))
					}
					return nil
				})
				msg, open := w.take()
				if open || len(msg.GetItems()) != 1 {
					t.Fatalf("attempt %d sent %v", i, msg)
				}
				if req := msg.GetItems()[0].GetRequest(); req.GetClient() != 1 || req.GetSeq() != 1 {
					t.Errorf("attempt %d has number %v", i, req)
				}
				if !errors.Is(answer, lost) {
					_, _ = w.answers([]*pb.PipelineResult{refusal(1, answer)})
				}
				w.requeueForTest()
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			w.abandon(ctx, it)
			err := (<-it.done).err
			if got := errors.Is(err, hastate.ErrOutcomeUnknown); got != tc.maybe || !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want unknown: %v", err, tc.maybe)
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.gen.acked != w.gen.next {
				t.Errorf("acknowledged below %d, next is %d", w.gen.acked, w.gen.next)
			}
			if len(w.queue)+len(w.sent) > 0 {
				t.Error("a given-up operation is still there")
			}
		})
	}
}

// requeueForTest is what a broken stream and an ended wait do.
func (w *writer) requeueForTest() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.requeue()
}
