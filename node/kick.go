// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// kickStep spaces the early candidacies of the voters, so that they do not
// split the vote: the last of a majority to time out wins.
const kickStep = 15 * time.Millisecond

// kick makes a follower stand for election as soon as it has not heard from the
// leader for one heartbeat timeout. raft alone looks only when a timer of one to
// two timeouts fires, so it needs up to three. Lowering HeartbeatTimeout through
// ReloadConfig fires that timer at once; the value stays legal all the time.
func (n *Node) kick(ctx context.Context) error {
	heartbeat := n.cfg.Profile.Heartbeat
	timer := time.NewTimer(heartbeat)
	defer timer.Stop()
	var kicked time.Time // the last contact that was acted on
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		last := n.raft.LastContact()
		if n.raft.State() != raft.Follower || last.IsZero() || last.Equal(kicked) {
			timer.Reset(heartbeat / 4)
			continue
		}
		due := time.Until(last.Add(heartbeat + time.Millisecond + n.kickStagger()))
		if due > 0 {
			timer.Reset(due)
			continue
		}
		kicked = last
		n.fireElectionTimer(heartbeat)
		timer.Reset(heartbeat / 4)
	}
}

// fireElectionTimer lowers the timeout by a nanosecond and so fires the timer.
func (n *Node) fireElectionTimer(heartbeat time.Duration) {
	rc := n.raft.ReloadableConfig()
	rc.HeartbeatTimeout, rc.ElectionTimeout = heartbeat+time.Nanosecond, heartbeat+time.Nanosecond
	if err := n.raft.ReloadConfig(rc); err != nil {
		n.log.Error("raise heartbeat timeout", "err", err)
		return
	}
	rc.HeartbeatTimeout, rc.ElectionTimeout = heartbeat, heartbeat
	if err := n.raft.ReloadConfig(rc); err != nil {
		n.log.Error("lower heartbeat timeout", "err", err)
	}
}

// kickStagger is kickStep times this node's place among the voters by id.
func (n *Node) kickStagger() time.Duration {
	configuration, _ := n.machine.Configuration()
	var ids []string
	for _, s := range configuration.Servers {
		if s.Suffrage == raft.Voter {
			ids = append(ids, string(s.ID))
		}
	}
	slices.Sort(ids)
	return kickStep * time.Duration(max(slices.Index(ids, n.cfg.NodeID), 0))
}
