// SPDX-License-Identifier: Apache-2.0

package readindex

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// DefaultTimeout is the deadline of a read whose caller gave none.
const DefaultTimeout = 10 * time.Second

const (
	retryMin = 5 * time.Millisecond
	retryMax = 100 * time.Millisecond
	// lookAgain is how often a question under way is held against who leads now.
	lookAgain = 25 * time.Millisecond
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

// Applied is the state machine of this node.
type Applied interface {
	WaitApplied(ctx context.Context, index uint64) error
}

// NodeConfig is what New needs.
type NodeConfig struct {
	Raft   Leadership
	Peers  Peers
	Leader *Leader
	State  Applied
	// Address tells the gRPC address of a node, for NotLeaderError; nil: the id.
	Address func(raft.ServerID) string
	// Timeout of a read without a deadline; 0: DefaultTimeout.
	Timeout time.Duration
	// Ask bounds one question to the leader; 0: 2 s.
	Ask time.Duration
}

// Node makes reads linearizable on any node.
type Node struct {
	cfg NodeConfig
	// remote are the questions to a leader elsewhere.
	remote *rounds
	fresh  fresh
}

// New does no I/O; reads wait until Run is called.
func New(cfg NodeConfig) (*Node, error) {
	if cfg.Raft == nil || cfg.Peers == nil || cfg.Leader == nil || cfg.State == nil {
		return nil, errors.New("readindex: NodeConfig needs Raft, Peers, Leader and State")
	}
	if cfg.Timeout < 0 || cfg.Ask < 0 {
		return nil, errors.New("readindex: timeouts must not be negative")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Ask == 0 {
		cfg.Ask = defaultRound
	}
	if cfg.Address == nil {
		cfg.Address = func(id raft.ServerID) string { return string(id) }
	}
	return &Node{cfg: cfg, remote: newRounds()}, nil
}

// Run serves reads until ctx ends; it runs the Leader too.
func (n *Node) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { n.remote.run(ctx, n.ask) })
	err := n.cfg.Leader.Run(ctx)
	wg.Wait()
	return err
}

// Read returns when the local state reflects every write that was acknowledged
// before the call. It tries again while there is no leader, until ctx ends: a
// read can be repeated without harm.
func (n *Node) Read(ctx context.Context) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, n.cfg.Timeout)
		defer cancel()
	}
	pause := retryMin
	for {
		asOf := n.now() // before it is asked: the answer covers what came before
		index, err := n.index(ctx)
		if err == nil {
			return n.reach(ctx, index, asOf)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("linearizable read: %w: %w", context.Cause(ctx), n.notLeader())
		}
		timer := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("linearizable read: %w", err)
		case <-timer.C:
		}
		pause = min(2*pause, retryMax)
	}
}

// ServeReadIndex is the server side of PeerService.ReadIndex. It answers only
// while this node leads and never asks on.
func (n *Node) ServeReadIndex(ctx context.Context) (*pb.ReadIndexResponse, error) {
	index, err := n.cfg.Leader.Index(ctx)
	if err != nil {
		return nil, err
	}
	return &pb.ReadIndexResponse{Index: index}, nil
}

func (n *Node) index(ctx context.Context) (uint64, error) {
	if n.cfg.Raft.State() == raft.Leader {
		return n.cfg.Leader.Index(ctx)
	}
	return n.remote.wait(ctx)
}

// ask asks the leader once, for all reads that share the round.
func (n *Node) ask(ctx context.Context) (uint64, error) {
	if n.cfg.Raft.State() == raft.Leader {
		return 0, n.notLeader() // it is this node by now: the reads try again
	}
	_, id := n.cfg.Raft.LeaderWithID()
	if id == "" {
		return 0, &hastate.NotLeaderError{}
	}
	conn, err := n.cfg.Peers.Conn(id)
	if err != nil {
		return 0, fmt.Errorf("ask %s for a read index: %w", id, err)
	}
	var looking sync.WaitGroup
	defer looking.Wait()
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Ask)
	defer cancel()
	looking.Go(func() { n.giveUp(ctx, cancel, id) })
	res, err := pb.NewPeerServiceClient(conn).ReadIndex(ctx, &pb.ReadIndexRequest{})
	if err != nil {
		return 0, fmt.Errorf("ask %s for a read index: %w", id, hastate.FromStatus(err))
	}
	return res.GetIndex(), nil
}

// giveUp cancels a question to a node once it does not lead any more: if its host
// hangs or is gone, all reads here would wait for the answer until Ask is over.
func (n *Node) giveUp(ctx context.Context, cancel context.CancelFunc, asked raft.ServerID) {
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if _, id := n.cfg.Raft.LeaderWithID(); id != asked {
				cancel()
				return
			}
		}
	}
}

func (n *Node) notLeader() error {
	_, id := n.cfg.Raft.LeaderWithID()
	if id == "" {
		return &hastate.NotLeaderError{}
	}
	return &hastate.NotLeaderError{LeaderID: string(id), LeaderAddress: n.cfg.Address(id)}
}
