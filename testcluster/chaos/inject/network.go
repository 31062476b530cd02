// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// streamLoss is how long a stream goes on without a message that was lost in it.
const streamLoss = time.Second

// network disturbs the calls of one node; it is a transport.FaultHook.
type network struct {
	self string

	mu    sync.Mutex // guards all below
	links map[string]Link
	// changed is closed and replaced with links.
	changed chan struct{}
}

func newNetwork(self string) *network {
	return &network{self: self, changed: make(chan struct{})}
}

// set replaces all links. The map must not be changed after.
func (n *network) set(links map[string]Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links = links
	close(n.changed)
	n.changed = make(chan struct{})
}

func (n *network) link(to raft.ServerID) (l Link, changed <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.links[string(to)], n.changed
}

// Before implements transport.FaultHook.
func (n *network) Before(ctx context.Context, _, to raft.ServerID, _ string) error {
	if err := n.pass(ctx, to); err != nil {
		return err
	}
	l, _ := n.link(to)
	if rand.Float64() < l.Reset { //nolint:gosec // any number will do
		return status.Errorf(codes.Unavailable, "chaos: the connection from %s to %s was reset", n.self, to)
	}
	if rand.Float64() < l.Loss { //nolint:gosec // any number will do
		return n.lose(ctx, to)
	}
	delay := time.Duration(l.DelayMS) * time.Millisecond
	if l.JitterMS > 0 {
		delay += rand.N(time.Duration(l.JitterMS) * time.Millisecond) //nolint:gosec // any number will do
	}
	if delay <= 0 {
		return nil
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return ended(ctx)
	}
	return n.pass(ctx, to)
}

// pass waits until the link is not cut.
func (n *network) pass(ctx context.Context, to raft.ServerID) error {
	for {
		l, changed := n.link(to)
		if !l.Cut {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ended(ctx)
		}
	}
}

// lose waits until the caller gives up, or a stream without a deadline has broken.
func (n *network) lose(ctx context.Context, to raft.ServerID) error {
	var broken <-chan time.Time
	if _, ok := ctx.Deadline(); !ok {
		timer := time.NewTimer(streamLoss)
		defer timer.Stop()
		broken = timer.C
	}
	select {
	case <-ctx.Done():
		return ended(ctx)
	case <-broken:
		return status.Errorf(codes.Unavailable, "chaos: a message from %s to %s was lost and its stream broke", n.self, to)
	}
}

func ended(ctx context.Context) error { return status.FromContextError(ctx.Err()).Err() }

// After implements transport.FaultHook: answers pass.
func (n *network) After(_ context.Context, _, _ raft.ServerID, _ string, err error) error {
	return err
}
