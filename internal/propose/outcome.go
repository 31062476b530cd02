// SPDX-License-Identifier: Apache-2.0

package propose

import (
	"context"
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// errQueueClosed is why items end when their queue is closed.
var errQueueClosed = errors.New("the node is stopping")

// notBegun says that nothing was done although this node may have known a
// leader: the command waited for longer than its caller did. No leader is named,
// because none took it.
func notBegun(cause error) error {
	return fmt.Errorf("the command was not begun: %w: %w", cause, &hastate.NotLeaderError{})
}

func unknown(format string, args ...any) error {
	return &hastate.OutcomeUnknownError{Reason: fmt.Sprintf(format, args...)}
}

// certainlyNotApplied reports whether an error of a Raft future proves that its
// entry was never appended. All others leave it open: the entry may be in the
// log of a majority although this node lost its leadership, failed to write, or
// shut down between commit and apply (raft answers that with ErrRaftShutdown
// too, so this one proves nothing).
func certainlyNotApplied(err error) bool {
	return errors.Is(err, raft.ErrNotLeader) ||
		errors.Is(err, raft.ErrLeadershipTransferInProgress) ||
		errors.Is(err, raft.ErrEnqueueTimeout)
}

// settle distributes what a future brought to the items of its entry, and
// returns the future's error.
func settle(f raft.ApplyFuture, items []*item, notLeader func() error) error {
	if err := f.Error(); err != nil {
		out := unknown("%v", err)
		if certainlyNotApplied(err) {
			out = notLeader()
		}
		finishAll(items, out)
		return err
	}
	// Only here, after a nil error, may the response be looked at.
	results, ok := f.Response().([]*pb.Result)
	if !ok || len(results) != len(items) {
		// The state machine skipped the entry, because it had applied it before
		// (from a snapshot, say): the results are gone.
		finishAll(items, unknown("the entry was applied without a result"))
		return nil
	}
	for i, it := range items {
		if results[i] == nil {
			it.finish(nil, unknown("the command was applied without a result"))
			continue
		}
		it.finish(results[i], nil)
	}
	return nil
}

func finishAll(items []*item, err error) {
	for _, it := range items {
		it.finish(nil, err)
	}
}

// IsUnknown reports whether err says that the command may have been applied.
func IsUnknown(err error) bool { return errors.Is(err, hastate.ErrOutcomeUnknown) }

// IsNotLeader reports whether err says that the command was not applied for
// want of a leader.
func IsNotLeader(err error) bool {
	return errors.Is(err, hastate.ErrNotLeader) || errors.Is(err, hastate.ErrNoLeader)
}

// cause is why a context ended.
func cause(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return context.DeadlineExceeded
}
