// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"time"
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
	return n.logs.Stalled() < n.cfg.Profile.Heartbeat
}

// watchdog returns a *StalledError when a log write, or the state machine, makes
// no progress for Profile.Stall.
func (n *Node) watchdog(ctx context.Context) error {
	if n.cfg.Faults.WatchdogOff {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(n.cfg.Profile.Stall / 10)
	defer tick.Stop()
	var (
		applied   uint64
		appliedAt = n.cfg.Clock.Now()
		stalled   bool
	)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		d := n.logs.Stalled()
		if d > n.cfg.Profile.Stall && stalled {
			return &StalledError{What: "a write to the log", For: d}
		}
		// Seen once it may be this process that stood still (SIGSTOP, suspend):
		// the write then ends at once.
		stalled = d > n.cfg.Profile.Stall
		if d := n.batcher.TransferStuck(); d > max(n.cfg.Profile.Stall, 2*n.cfg.Profile.Heartbeat) {
			// raft#696: it would refuse every write for as long as it leads.
			return &StalledError{What: "a leadership transfer that raft does not end", For: d}
		}
		now := n.cfg.Clock.Now()
		index, _ := n.machine.Applied()
		if index != applied || n.raft.Stats()["fsm_pending"] == "0" {
			applied, appliedAt = index, now
			continue
		}
		if d := now.Sub(appliedAt); d > n.applyStall() {
			return &StalledError{What: "the state machine", For: d}
		}
	}
}

// applyStall is longer than the log's: a snapshot install, during which nothing
// is applied, may take seconds.
func (n *Node) applyStall() time.Duration {
	return max(10*n.cfg.Profile.Stall, 30*time.Second)
}
