// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"time"

	"github.com/hashicorp/raft"
)

// follower is what awaitTimeout has to know of Raft.
type follower interface {
	LeaderWithID() (raft.ServerAddress, raft.ServerID)
	LastContact() time.Time
}

// awaitTimeout is called before Raft gets a pre-vote request. Raft refuses it for as
// long as it believes in its leader, and the candidate tries again only after an
// election timeout or two. Mostly that is well: the last of a majority to time out
// wins (see kick). But if this one is behind, and must be refused in its turn, a
// leader is found only then, and leases run out. So a request of a candidate that
// has more than this node waits until this node gives its leader up, too, which is
// soon if the leader is gone.
func (n *Node) awaitTimeout(ctx context.Context, lastTerm, lastIndex uint64) {
	if n.raft == nil || !n.isBehind(lastTerm, lastIndex) {
		return
	}
	awaitTimeout(ctx, n.raft, n.cfg.Profile.Heartbeat)
}

// isBehind says whether this node's log ends before the one that is told, as Raft
// compares logs (Raft paper, section 5.4.1).
func (n *Node) isBehind(lastTerm, lastIndex uint64) bool {
	last, err := n.logs.LastIndex()
	if err != nil {
		return false
	}
	var l raft.Log
	if last > 0 {
		if err := n.logs.GetLog(last, &l); err != nil {
			return false // Raft decides
		}
	}
	// A snapshot may reach further than the log.
	if index, term := n.machine.Applied(); index > last {
		l.Index, l.Term = index, term
	}
	return lastTerm > l.Term || lastTerm == l.Term && lastIndex > l.Index
}

// awaitTimeout waits until f has no leader, or has heard from it, at most half a
// heartbeat timeout: the candidate waits for its answer for a whole one. It does not
// wait for a leader that was heard lately.
func awaitTimeout(ctx context.Context, f follower, heartbeat time.Duration) {
	last := f.LastContact()
	if time.Since(last) < heartbeat/2 {
		return
	}
	limit := time.NewTimer(heartbeat / 2)
	defer limit.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if _, leader := f.LeaderWithID(); leader == "" || !f.LastContact().Equal(last) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-limit.C:
			return
		case <-tick.C:
		}
	}
}
