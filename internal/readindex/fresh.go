// SPDX-License-Identifier: Apache-2.0

package readindex

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate/internal/clock"
)

// catchUpLimit bounds how long one refresh waits for the state to get to the index
// that it was given. It is long, since a node that is always further behind than
// this never learns how old its state is, and the wait costs nothing.
const catchUpLimit = time.Minute

// fresh is the newest instant for which it was shown that the state of this node
// has every write that was acknowledged, anywhere, before it. A state loses nothing
// that it has, so what was shown stays true and the instant only moves forward. 0:
// nothing was.
type fresh struct{ at atomic.Int64 }

// advance notes what was shown of the state. Older than what is known: no change.
func (f *fresh) advance(to clock.Instant) {
	for at := f.at.Load(); int64(to) > at; at = f.at.Load() {
		if f.at.CompareAndSwap(at, int64(to)) {
			return
		}
	}
}

func (f *fresh) asOf() (clock.Instant, bool) {
	at := f.at.Load()
	return clock.Instant(at), at != 0
}

// FreshAsOf is an instant such that the state of this node, from this call on, has
// every write that was acknowledged anywhere before it. It never moves back, and
// stands still while nothing is shown: who reads the state takes it before, and the
// time since then only after. False if nothing was shown since the start, however
// long ago that is. It asks nobody and does not wait.
func (n *Node) FreshAsOf() (clock.Instant, bool) {
	// Noted too: once this node leads no more, Confirmed knows nothing of it.
	if at, ok := n.cfg.Leader.Confirmed(); ok {
		n.fresh.advance(at)
	}
	return n.fresh.asOf()
}

// KeepFresh moves FreshAsOf forward once per interval until ctx ends, one round
// after the other: at a leader by what a majority has answered anyway, elsewhere by
// a question to the leader. Reads that are linearizable do so too.
func (n *Node) KeepFresh(ctx context.Context, every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		n.refresh(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// refresh is one round. One that fails shows nothing; the next may.
func (n *Node) refresh(ctx context.Context) {
	if n.cfg.Raft.State() == raft.Leader {
		n.FreshAsOf()
		return
	}
	asOf := n.now()
	index, err := n.askLeader(ctx)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, catchUpLimit)
	defer cancel()
	_ = n.reach(ctx, index, asOf)
}

// askLeader asks as a read does, and is bounded as one without a deadline is. It
// never makes a round of this node's own: if it leads by now, that is refused.
func (n *Node) askLeader(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Timeout)
	defer cancel()
	return n.remote.wait(ctx)
}

// reach waits until the state has got to an index that was asked for at asOf or
// later, and notes that: every write acknowledged before asOf is at or below the
// index, and so in the state now. Not before: a node that is catching up may know
// the index for long before it has what is below it.
func (n *Node) reach(ctx context.Context, index uint64, asOf clock.Instant) error {
	if err := n.cfg.State.WaitApplied(ctx, index); err != nil {
		return err
	}
	n.fresh.advance(asOf)
	return nil
}

// now reads the Leader's clock: instants of two clocks cannot be compared.
func (n *Node) now() clock.Instant { return n.cfg.Leader.cfg.Clock.Now() }
