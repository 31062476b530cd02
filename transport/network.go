// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Network is a faulty network for tests: the FaultHook of all nodes of one
// cluster. Its zero value is not usable; see NewNetwork. All methods may be
// called at any time.
//
// A cut link loses nothing by itself: like TCP it holds messages until it is
// healed or the caller's deadline has passed. Refuse makes a link fail at once
// instead, as a host does that is up while its process is down.
type Network struct {
	mu      sync.Mutex
	changed chan struct{}          // guarded by mu; closed and replaced at each change
	links   map[link]condition     // guarded by mu; absent: in order
	isolate map[raft.ServerID]bool // guarded by mu; cut from and to everyone
	holds   map[*hold]struct{}     // guarded by mu
	calls   map[countKey]uint64    // guarded by mu; messages that got through Before
}

// link is a direction.
type link struct{ from, to raft.ServerID }

type condition struct {
	cut, refuse bool
	delay       time.Duration
}

type countKey struct {
	link
	kind string
}

// hold keeps the responses to some calls back.
type hold struct {
	caller, callee raft.ServerID
	match          func(kind string) bool
	release        chan struct{} // closed by Release
	held           int           // guarded by Network.mu
}

// NewNetwork returns a network in which every link is in order.
func NewNetwork() *Network {
	return &Network{
		changed: make(chan struct{}),
		links:   make(map[link]condition),
		isolate: make(map[raft.ServerID]bool),
		holds:   make(map[*hold]struct{}),
		calls:   make(map[countKey]uint64),
	}
}

// change applies f and lets waiting messages look again.
func (n *Network) change(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
	close(n.changed)
	n.changed = make(chan struct{})
}

func (n *Network) set(from, to raft.ServerID, f func(*condition)) {
	n.change(func() {
		c := n.links[link{from, to}]
		f(&c)
		n.links[link{from, to}] = c
	})
}

// Cut holds messages from one node to another: requests of from, and responses
// to requests of to. The other direction stays in order.
func (n *Network) Cut(from, to raft.ServerID) {
	n.set(from, to, func(c *condition) { c.cut = true })
}

// CutBoth cuts both directions.
func (n *Network) CutBoth(a, b raft.ServerID) {
	n.Cut(a, b)
	n.Cut(b, a)
}

// Refuse makes messages from one node to another fail at once.
func (n *Network) Refuse(from, to raft.ServerID) {
	n.set(from, to, func(c *condition) { c.refuse = true })
}

// Delay holds each message from one node to another for d. Messages of one
// stream are delayed one after the other.
func (n *Network) Delay(from, to raft.ServerID, d time.Duration) {
	n.set(from, to, func(c *condition) { c.delay = d })
}

// Isolate cuts a node from all others, in both directions.
func (n *Network) Isolate(id raft.ServerID) {
	n.change(func() { n.isolate[id] = true })
}

// Rejoin ends Isolate.
func (n *Network) Rejoin(id raft.ServerID) {
	n.change(func() { delete(n.isolate, id) })
}

// HealLink puts both directions between two nodes in order.
func (n *Network) HealLink(a, b raft.ServerID) {
	n.change(func() {
		delete(n.links, link{a, b})
		delete(n.links, link{b, a})
	})
}

// Heal puts every link in order and ends every isolation. Held responses stay
// held.
func (n *Network) Heal() {
	n.change(func() {
		clear(n.links)
		clear(n.isolate)
	})
}

// Held is a set of responses that are kept back.
type Held struct {
	network *Network
	hold    *hold
	once    sync.Once
}

// HoldResponses keeps the responses that callee gives to caller's calls of some
// kinds (none: all) back until Release. The callee has processed these calls. A
// response that was held is delivered on Release even if the link is cut by
// then: it was in the network already.
func (n *Network) HoldResponses(caller, callee raft.ServerID, kinds ...string) *Held {
	h := &hold{
		caller: caller, callee: callee,
		match: func(kind string) bool {
			for _, k := range kinds {
				if k == kind {
					return true
				}
			}
			return len(kinds) == 0
		},
		release: make(chan struct{}),
	}
	n.change(func() { n.holds[h] = struct{}{} })
	return &Held{network: n, hold: h}
}

// Count tells how many responses are, or were, kept back.
func (h *Held) Count() int {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	return h.hold.held
}

// Release delivers them and holds no more.
func (h *Held) Release() {
	h.once.Do(func() {
		h.network.change(func() { delete(h.network.holds, h.hold) })
		close(h.hold.release)
	})
}

// Sent counts the messages of a kind that left from for to.
func (n *Network) Sent(from, to raft.ServerID, kind string) uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.calls[countKey{link{from, to}, kind}]
}

func (n *Network) look(from, to raft.ServerID) (c condition, changed <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c = n.links[link{from, to}]
	c.cut = c.cut || (from != to && (n.isolate[from] || n.isolate[to]))
	return c, n.changed
}

// pass returns when a message may go from one node to the other.
func (n *Network) pass(ctx context.Context, from, to raft.ServerID) error {
	if c, _ := n.look(from, to); c.delay > 0 {
		timer := time.NewTimer(c.delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
	for {
		c, changed := n.look(from, to)
		if c.refuse {
			return status.Errorf(codes.Unavailable, "the test network refuses %s to %s", from, to)
		}
		if !c.cut {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

// Before implements FaultHook.
func (n *Network) Before(ctx context.Context, from, to raft.ServerID, kind string) error {
	if err := n.pass(ctx, from, to); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls[countKey{link{from, to}, kind}]++
	return nil
}

// After implements FaultHook.
func (n *Network) After(ctx context.Context, from, to raft.ServerID, kind string, err error) error {
	if err == nil {
		if h := n.takeHold(from, to, kind); h != nil {
			select {
			case <-h.release:
				return nil
			case <-ctx.Done():
				return status.FromContextError(ctx.Err()).Err()
			}
		}
	}
	if passErr := n.pass(ctx, to, from); passErr != nil {
		return passErr
	}
	return err
}

func (n *Network) takeHold(caller, callee raft.ServerID, kind string) *hold {
	n.mu.Lock()
	defer n.mu.Unlock()
	for h := range n.holds {
		if h.caller == caller && h.callee == callee && h.match(kind) {
			h.held++
			return h
		}
	}
	return nil
}

// DialOptions apply the network to a connection that is not of a Transport.
func (n *Network) DialOptions(from, to raft.ServerID) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(FaultUnaryInterceptor(n, from, to)),
		grpc.WithChainStreamInterceptor(FaultStreamInterceptor(n, from, to)),
	}
}
