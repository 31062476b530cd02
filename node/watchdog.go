// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// StalledError ends a node whose disk or state machine hangs. The process must
// exit: the stuck call cannot be taken back, and raft would go on as leader
// (hashicorp/raft#503, #666).
type StalledError struct {
	// What hangs and for how long.
	What string
	For  time.Duration
}

func (e *StalledError) Error() string {
	return fmt.Sprintf("%s has hung for %v: the process must end so that another node can lead; look at the disk", e.What, e.For.Round(time.Millisecond))
}

// serving says whether this node may still send heartbeats and ask for votes. It
// is false as soon as a log write has hung for a heartbeat timeout: the others
// elect a new leader while this one is stuck (G9).
func (n *Node) serving() bool {
	if n.cfg.Faults.WatchdogOff {
		return true
	}
	return n.logs.Stalled() < n.cfg.Profile.Heartbeat && n.applier.stalled(n.cfg.Clock.Now()) < n.cfg.Profile.Stall
}

// staleLeases is how old the state may be, in leases, for watches to stay: longer than
// an election and a catch-up after a restart.
const staleLeases = 3

// inTouch says whether this node hears of what is committed: it leads, or has
// heard its leader within a lease, and no write to its log has hung for as long.
// Elections and slow disks are faster than that, so that watches do not wander
// during each. To hear a leader is not enough: entries may not get here, or a leader
// be none any more without knowing. So the state must also have been shown to be new.
func (n *Node) inTouch() bool {
	if !n.cfg.Faults.WatchdogOff && n.logs.Stalled() >= n.cfg.Profile.Lease {
		return false
	}
	asOf, known := n.reads.FreshAsOf()
	if !known { // one that has just started is given as long
		asOf = n.opened
	}
	if n.cfg.Clock.Now().Sub(asOf) >= staleLeases*n.cfg.Profile.Lease {
		return false
	}
	return n.raft.State() == raft.Leader || time.Since(n.raft.LastContact()) < n.cfg.Profile.Lease
}

// reasonStalled is why this node's instances are no candidates.
const reasonStalled = "a write to the log of its node hangs"

// watchdog returns a *StalledError when a log write, or the state machine, makes
// no progress for Profile.Stall.
func (n *Node) watchdog(ctx context.Context) error {
	if n.cfg.Faults.WatchdogOff {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(n.cfg.Profile.Heartbeat / 3)
	defer tick.Stop()
	var log, apply, transfer repeated
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		n.reportSlow()
		if d := n.logs.Stalled(); log.seen(d > n.cfg.Profile.Stall) {
			return &StalledError{What: "a write to the log", For: d}
		}
		if d := n.applier.stalled(n.cfg.Clock.Now()); apply.seen(d > n.applyStall()) {
			return &StalledError{What: "the state machine", For: d}
		}
		// raft#696: it would refuse every write for as long as it leads.
		if d := n.batcher.TransferStuck(); transfer.seen(d > max(n.cfg.Profile.Stall, 2*n.cfg.Profile.Heartbeat)) {
			return &StalledError{What: "a leadership transfer that raft does not end", For: d}
		}
	}
}

// repeated is something that counts when two looks in a row have seen it. Seen
// once it may be this process that stood still (SIGSTOP, suspend): what was running
// then ends at once.
type repeated struct{ before bool }

func (r *repeated) seen(now bool) bool {
	twice := now && r.before
	r.before = now
	return twice
}

// reportSlow says once per slow write why this node stops leading, and counts it.
func (n *Node) reportSlow() {
	d := n.logs.Stalled()
	if d < n.cfg.Profile.Heartbeat {
		n.slow.now = false
		return
	}
	if !n.slow.now {
		n.slow.now = true
		n.slow.count.Add(1)
		n.log.Warn("a write to the log is slow: this node sends no heartbeats until it is done, so that another may lead", "for", d.Round(time.Millisecond))
	}
}

// applyStall is longer than the log's: entries may wait for the flush of a large
// state. The restore of a snapshot is not counted.
func (n *Node) applyStall() time.Duration { return 2 * n.cfg.Profile.Stall }

// fence gives up what this node holds before its process ends with something that
// hangs: the model server beside it would serve on. It is bounded; what cannot be
// demoted by then is left to the lease.
func (n *Node) fence(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*n.cfg.Profile.FenceMargin+time.Second)
	defer cancel()
	n.handOff(ctx, 0)
}
