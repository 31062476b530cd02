// SPDX-License-Identifier: Apache-2.0

package propose

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Leadership is the part of *raft.Raft that tells who leads.
type Leadership interface {
	State() raft.RaftState
	LeaderWithID() (raft.ServerAddress, raft.ServerID)
}

// Peers finds the connection to a node; transport.Transport does.
type Peers interface {
	Conn(id raft.ServerID) (*grpc.ClientConn, error)
}

// Defaults of the forwarding side.
const (
	// DefaultOutstanding bounds the commands sent to the leader and not answered.
	DefaultOutstanding = 16 << 10

	defaultDial  = time.Second
	defaultGrace = 500 * time.Millisecond
	retryMin     = 5 * time.Millisecond
	retryMax     = 100 * time.Millisecond
)

// NodeConfig is what New needs.
type NodeConfig struct {
	ID    raft.ServerID
	Raft  Leadership
	Peers Peers
	// Local takes the commands while this node leads, and those that others
	// forward to it. Node.Run runs it.
	Local *Batcher
	// Address tells the gRPC address of a node, for NotLeaderError; nil: the id.
	Address func(raft.ServerID) string
	// Timeout of a proposal without a deadline; 0: DefaultTimeout.
	Timeout time.Duration
	// QueueCommands and QueueBytes bound what waits to be sent, Outstanding what
	// was sent and is not answered; 0: the defaults.
	QueueCommands, QueueBytes, Outstanding int
	// Dial bounds the opening of a stream, Grace the time for which the stream to
	// a former leader may still answer; 0: 1 s and 500 ms.
	Dial, Grace time.Duration
	Logger      *slog.Logger
}

func (c *NodeConfig) complete() error {
	if c.ID == "" || c.Raft == nil || c.Peers == nil || c.Local == nil {
		return errors.New("propose: NodeConfig needs ID, Raft, Peers and Local")
	}
	if c.Timeout < 0 || c.QueueCommands < 0 || c.QueueBytes < 0 || c.Outstanding < 0 || c.Dial < 0 || c.Grace < 0 {
		return errors.New("propose: timeouts and bounds must not be negative")
	}
	if c.Address == nil {
		c.Address = func(id raft.ServerID) string { return string(id) }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	setDefault(&c.Timeout, DefaultTimeout)
	setDefault(&c.QueueCommands, DefaultQueueCommands)
	setDefault(&c.QueueBytes, DefaultQueueBytes)
	setDefault(&c.Outstanding, DefaultOutstanding)
	setDefault(&c.Dial, defaultDial)
	setDefault(&c.Grace, defaultGrace)
	return nil
}

// Node proposes from any node.
type Node struct {
	cfg     NodeConfig
	forward *forwarder
}

// New does no I/O; commands wait until Run is called.
func New(cfg NodeConfig) (*Node, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg}
	n.forward = newForwarder(&n.cfg)
	return n, nil
}

// Run runs the local Batcher and the forwarding until ctx ends. Raft must be
// shut down after it has returned.
func (n *Node) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.cfg.Local.Run(ctx) })
	g.Go(func() error { return n.forward.run(ctx) })
	return g.Wait()
}

// Propose puts a command into the log, wherever the leader is, and waits for its
// result. While ctx lasts it tries again when the command certainly was not
// applied for want of a leader, and, if the command carries a RequestId, also
// when the outcome is unknown: the state machine applies it once. Without a
// RequestId an unknown outcome is returned at once.
//
// When any attempt had an unknown outcome, so has the whole, unless a later one
// brought a result.
func (n *Node) Propose(ctx context.Context, cmd *pb.Command) (*pb.Result, error) {
	ctx, cancel := withDeadline(ctx, n.cfg.Timeout)
	defer cancel()
	var uncertain error
	pause := retryMin
	for {
		res, err := n.ProposeOnce(ctx, cmd)
		switch {
		case err == nil:
			return res, nil
		case IsUnknown(err):
			if cmd.GetRequest() == nil {
				return nil, err
			}
			uncertain = err
		case !IsNotLeader(err):
			return nil, firstOf(uncertain, err)
		}
		if !sleep(ctx, pause/2+rand.N(pause/2)) {
			return nil, firstOf(uncertain, err)
		}
		pause = min(2*pause, retryMax)
	}
}

func firstOf(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// sleep waits for d; false if ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// ProposeOnce is one attempt: for commands that are harmless to repeat, whose
// callers decide themselves whether a repetition still makes sense.
func (n *Node) ProposeOnce(ctx context.Context, cmd *pb.Command) (*pb.Result, error) {
	return proposeTo(ctx, cmd, n.cfg.Timeout, n.push)
}

// ProposeAsync is one attempt without the wait. done is called exactly once, at
// the latest when the configured timeout has passed, possibly before
// ProposeAsync returns, and must not block.
func (n *Node) ProposeAsync(cmd *pb.Command, done func(*pb.Result, error)) {
	proposeAsyncTo(cmd, n.cfg.Timeout, done, n.push)
}

// push gives an item to whoever leads now.
func (n *Node) push(it *item) error {
	switch id, local := n.leader(); {
	case local:
		return n.cfg.Local.push(it)
	case id == "" || id == n.cfg.ID:
		return &hastate.NotLeaderError{}
	default:
		return n.forward.queue.push(it)
	}
}

// leader tells who leads as far as this node knows; local: this node does.
func (n *Node) leader() (id raft.ServerID, local bool) { return leaderOf(&n.cfg) }

func leaderOf(cfg *NodeConfig) (id raft.ServerID, local bool) {
	if cfg.Raft.State() == raft.Leader {
		return cfg.ID, true
	}
	_, id = cfg.Raft.LeaderWithID()
	return id, false
}

// Leader tells who leads as far as this node knows, for NotLeaderError.
func (n *Node) Leader() (id, address string) {
	lid, _ := n.leader()
	if lid == "" {
		return "", ""
	}
	return string(lid), n.cfg.Address(lid)
}
