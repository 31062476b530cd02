// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"

	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/node"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

// leases writes down when a node counted its leases as valid.
//
// An epoch lasts from the instant at which its committed grant was taken up to the
// end of its newest committed renewal, or to the instant at which the instance was
// known to be silent, if that was earlier. With clocks as good as promised such
// times of one group never overlap: the next grant commits only after the wait for
// the lease, or after a release that follows the silence. That the holder ended its
// lease alone proves nothing, so it ends no interval.
type leases struct {
	node  string
	shown clock.Scaled
	log   *slog.Logger

	mu   sync.Mutex // guards all below
	file *record.File[record.Lease]
	// newest is the last line of each group's newest epoch here, those of former
	// processes included.
	newest map[string]record.Lease
	// failed is the first line that could not be written.
	failed error
	closed bool
}

// openLeases goes on with the file of the node's former process, if there was one.
// shown is the clock that the node is given.
func openLeases(path, nodeID string, shown clock.Scaled, log *slog.Logger) (*leases, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := record.Mend(path); err != nil {
		return nil, err
	}
	before, err := record.Read[record.Lease](path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("what a former process left: %w: move the file away", err)
	}
	l := &leases{node: nodeID, shown: shown, log: log, newest: map[string]record.Lease{}}
	for _, r := range before {
		if r.Node == nodeID && r.Epoch >= l.newest[r.Group].Epoch {
			l.newest[r.Group] = r
		}
	}
	if l.file, err = record.NewFile[record.Lease](path); err != nil {
		return nil, err
	}
	return l, nil
}

// told is node.Faults.OnLease.
func (l *leases) told(c node.LeaseChange) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return // the node has hung and its process is about to end
	}
	last := l.newest[c.Group]
	now := record.Lease{
		Node: l.node, Group: c.Group, Epoch: c.Epoch, From: l.shown.Machine(c.From), Until: l.shown.Machine(c.Until), Ended: c.Ended,
	}
	if c.Ended {
		if last.Epoch != c.Epoch || last.Ended || now.Until >= last.Until {
			return // never valid here, or the lease had run out before
		}
		now.From = last.From // maybe of a former process
	}
	l.newest[c.Group] = now
	if err := l.file.Write(now); err != nil && l.failed == nil {
		l.failed = err
		l.log.Error("chaos: a lease could not be written down: the one-primary check is blind", "err", err)
	}
}

// close returns the first error of writing too.
func (l *leases) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	return errors.Join(l.failed, l.file.Close())
}
