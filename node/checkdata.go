// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"path/filepath"

	"github.com/hastate/hastate"
)

// adviceLost is what helps a node that has lost a part of its data.
const adviceLost = "put the file back; if it is lost, remove this node from the cluster, move its data folder away and let it join again"

// checkData refuses a data folder of which a part is missing or older than the
// rest. None of it would be noticed later: the node would go on with another state
// than its peers have, or vote twice in a term.
func (n *Node) checkData() error {
	dir, log := n.cfg.DataDir, filepath.Base(n.logs.Path())
	flushed, needs := n.machine.Flushed(), n.snapshots.Needs()
	if flushed < needs {
		return fmt.Errorf("%w: data folder %s: the state file state.db goes to log entry %d, the snapshots rely on %d: it is missing or older than the rest: %s", hastate.ErrPrecondition, dir, flushed, needs, adviceLost)
	}
	kept, err := n.snapshots.List()
	if err != nil {
		return fmt.Errorf("list the snapshots: %w", err)
	}
	// Raft writes a term before anything else, and it writes it to the log file.
	term, err := n.logs.GetUint64([]byte("CurrentTerm"))
	if known := err == nil && term > 0; !known && (flushed > 0 || len(kept) > 0) {
		return fmt.Errorf("%w: data folder %s: the log %s knows no term, but there is a state up to log entry %d: the log is missing, and with it what this node has voted: %s", hastate.ErrPrecondition, dir, log, flushed, adviceLost)
	}
	// It knows the term of every entry before it has the entry, or a snapshot with it.
	if _, reached := n.machine.Applied(); err == nil && term < reached {
		return fmt.Errorf("%w: data folder %s: the log %s is of term %d, the state file state.db has entries of term %d: the log is older than the rest, and with it what this node has voted: %s", hastate.ErrPrecondition, dir, log, term, reached, adviceLost)
	}
	first, err := n.logs.FirstIndex()
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	if first > 1 && len(kept) == 0 {
		return fmt.Errorf("%w: data folder %s: the log begins with entry %d and there is no snapshot of what was before: the folder snapshots is missing: %s", hastate.ErrPrecondition, dir, first, adviceLost)
	}
	// The state is made of entries of the log, so the log goes as far, unless it was
	// received in a snapshot.
	last, err := n.logs.LastIndex()
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	if reach := max(last, n.snapshots.Covers()); reach < flushed {
		return fmt.Errorf("%w: data folder %s: the log %s ends with entry %d, the state file state.db goes to %d: the log is older than the rest or has lost its end, and with it what this node has acknowledged: %s", hastate.ErrPrecondition, dir, log, last, flushed, adviceLost)
	}
	return nil
}
