// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
)

// checkFolder refuses a data folder of which a file is missing: raft.db and
// state.db are made when they are not there, so the loss of one would go unseen.
// Without its log a node has forgotten its votes; without its state it would
// serve an empty one, because raft applies nothing again that a snapshot is said
// to hold.
func (n *Node) checkFolder() error {
	hasLog, err := raft.HasExistingState(n.logs, n.logs, raft.NewDiscardSnapshotStore())
	if err != nil {
		return fmt.Errorf("look for earlier state: %w", err)
	}
	first, err := n.logs.FirstIndex()
	if err != nil {
		return fmt.Errorf("look for earlier state: %w", err)
	}
	snapshots, err := n.snapshots.List()
	if err != nil {
		return fmt.Errorf("look for earlier state: %w", err)
	}
	applied := n.machine.Flushed()
	const advice = "put the file back; or, while a majority of the other nodes is up, move the whole folder away, remove the node from the cluster and let it join again"
	switch {
	case !hasLog && (applied > 0 || len(snapshots) > 0):
		return fmt.Errorf("%w: data folder %s has a state but no log: raft.db is missing: %s", hastate.ErrPrecondition, n.cfg.DataDir, advice)
	case applied == 0 && (first > 1 || len(snapshots) > 0):
		return fmt.Errorf("%w: data folder %s has a log but no state to go with it: state.db is missing: %s", hastate.ErrPrecondition, n.cfg.DataDir, advice)
	}
	return nil
}
