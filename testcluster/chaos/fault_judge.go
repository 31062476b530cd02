// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
	"github.com/hastate/hastate/testcluster/chaos/model"
)

// exitFailed is the exit code of a node that ends with an error and has said it.
// A crash of the Go runtime ends with 2, a signal with none.
const exitFailed = 1

// said reports whether a node ended in an orderly way, with one of some texts among
// its last words. What it only logged before does not count.
func said(tail string, code int, texts ...string) bool {
	if code != exitFailed {
		return false
	}
	found := false
	for line := range strings.SplitSeq(tail, "\n") {
		if strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") || strings.HasPrefix(line, "goroutine ") {
			return false
		}
		found = found || strings.HasPrefix(line, "hanode: ") &&
			slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(line, text) })
	}
	return found
}

// stalled: the watchdog ended it, because of its disk. A paused or cut-off node has
// no such reason: the watchdog looks twice.
func stalled(tail string, code int) bool {
	return said(tail, code, "a write to the log has hung for", "the state machine has hung for")
}

// crashedAsTold: it is a model server that was told to. Nodes have no such exit code.
func crashedAsTold(_ string, code int) bool { return code == model.CrashCode }

// stoppedAsTold: the same for one that was told to shut down.
func stoppedAsTold(_ string, code int) bool { return code == model.StopCode }

func noSpace(tail string, code int) bool {
	return said(tail, code, "no space left on device", "input/output error")
}

// refusedJoin: the cluster does not let it in. A voter without its data is refused,
// and so is a node in the place of one that is not removed yet.
func refusedJoin(tail string, code int) bool {
	return said(tail, code, "comes back without its data", "remove it first", "remove this node from the cluster", ": join at ", "give each node its own")
}

// refusedData: it refuses the files that it finds, or what it reads from them later.
func refusedData(tail string, code int) bool {
	return said(tail, code, "is damaged", "data folder ", "unexpected EOF") || refusedJoin(tail, code)
}

// errLate: the cluster took all the time that it had, and gave no answer.
var errLate = errors.New("not done in time")

// order asks the cluster for something that it may do once only.
func (s *stage) order(ctx context.Context, timeout time.Duration, fn func(context.Context, grpc.ClientConnInterface) error) error {
	return inTime(ctx, timeout, func() error { return s.call(ctx, client.Once, timeout, fn) })
}

// inTime does what ends after a timeout. If it fails and took all of it, the error
// is an errLate.
func inTime(ctx context.Context, timeout time.Duration, do func() error) error {
	began := time.Now()
	err := do()
	if err != nil && ctx.Err() == nil && time.Since(began) >= timeout {
		return fmt.Errorf("%w (%v): %w", errLate, timeout, err)
	}
	return err
}

// legitimate reports whether every one of the joined errors is one that a whole
// cluster may answer with, too: leadership has moved while it worked, or there was
// nobody to break.
func legitimate(err error) bool {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return !slices.ContainsFunc(joined.Unwrap(), func(err error) bool { return !legitimate(err) })
	}
	if inner := errors.Unwrap(err); inner != nil {
		return legitimate(inner)
	}
	return errors.Is(err, errNobody) || errors.Is(err, hastate.ErrOutcomeUnknown) || errors.Is(err, hastate.ErrNotLeader) ||
		errors.Is(err, hastate.ErrNoLeader) || errors.Is(err, context.Canceled)
}

// judgeOrder: a cluster that was whole, and from which nothing else was taken, must
// do what an operator may ask of it.
func (r *run) judgeOrder(picked []fault, round int, err error) {
	if len(picked) == 1 && picked[0].must && err != nil && !legitimate(err) {
		r.violate("operator", "round %d (%s): a whole cluster does not do what it is asked: %v", round, picked[0].kind, err)
	}
}
