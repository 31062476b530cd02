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

// The first and the longest wait before a message that was lost in a stream is sent
// again: about those of TCP.
const firstResend, lastResend = 200 * time.Millisecond, 3 * time.Second

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
	if _, ok := ctx.Deadline(); ok && lost(l) {
		<-ctx.Done()
		return ended(ctx)
	}
	if err := n.resend(ctx, to); err != nil {
		return err
	}
	delay := time.Duration(l.DelayMS) * time.Millisecond
	if l.JitterMS > 0 {
		delay += rand.N(time.Duration(l.JitterMS) * time.Millisecond) //nolint:gosec // any number will do
	}
	if delay <= 0 {
		return nil
	}
	if err := pause(ctx, delay); err != nil {
		return err
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

func lost(l Link) bool { return rand.Float64() < l.Loss } //nolint:gosec // any number will do

// resend waits until a message of a stream gets through: a stream cannot lose one
// and go on. What has a deadline was not lost.
func (n *network) resend(ctx context.Context, to raft.ServerID) error {
	if _, ok := ctx.Deadline(); ok {
		return nil
	}
	for wait := firstResend; ; wait = min(2*wait, lastResend) {
		l, _ := n.link(to)
		if !lost(l) {
			return nil
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

// pause lets a message wait.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ended(ctx)
	}
}

func ended(ctx context.Context) error { return status.FromContextError(ctx.Err()).Err() }

// After implements transport.FaultHook: answers pass.
func (n *network) After(_ context.Context, _, _ raft.ServerID, _ string, err error) error {
	return err
}
