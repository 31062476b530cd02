// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/hastate/hastate/fsm"
	"github.com/hastate/hastate/instance"
	"github.com/hastate/hastate/internal/api"
	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/internal/coordinate"
	"github.com/hastate/hastate/internal/holder"
	"github.com/hastate/hastate/internal/logstore"
	"github.com/hastate/hastate/internal/member"
	"github.com/hastate/hastate/internal/propose"
	"github.com/hastate/hastate/internal/readindex"
	"github.com/hastate/hastate/snapshot"
	"github.com/hastate/hastate/transport"
)

// Node is one running member of a cluster.
type Node struct {
	cfg     Config
	log     *slog.Logger
	bootID  string
	started time.Time
	// opened is when Open was done, on the clock of the configuration.
	opened    clock.Instant
	advertise string

	lock      *dirLock
	identity  *identity
	logs      *logstore.Store
	machine   *fsm.Machine
	expiry    *fsm.Expiry
	snapshots *snapshot.Store
	transport *transport.Transport
	raft      *raft.Raft
	// applier is the state machine as raft has it.
	applier *applier
	// raftReady is closed when raft is set.
	raftReady chan struct{}
	// hadState: there was a Raft log, or a snapshot, when the node opened.
	hadState  bool
	admission admission

	batcher  *propose.Batcher
	proposer *propose.Node
	reads    *readindex.Node
	members  *member.Membership
	peers    *peers
	holders  map[string]*holder.Holder
	// instances are the model servers beside this node, closed with it.
	instances []instance.Instance
	// notify is what raft says of leadership; see watchLeadership.
	notify   chan bool
	services *api.Services
	metrics  *metrics

	listener, httpListener net.Listener
	grpcServer             *grpc.Server
	httpServer             *http.Server

	leadership leadership

	// mu guards joinProblem and progress.
	mu          sync.Mutex
	joinProblem string
	progress    map[string]progress

	// restoring is held while an archive is stored aside and restored: all use one file.
	restoring sync.Mutex

	// slow is for people: see reportSlow. now belongs to the watchdog.
	slow struct {
		now   bool
		count atomic.Uint64
	}

	// halt carries the first error after which nothing may go on.
	halt   chan error
	closed sync.Once
	// closeErr is the result of the first Close.
	closeErr error
}

// leadership is what raft last said, in a form that can be looked at any time.
type leadership struct {
	leads atomic.Bool
	// barrier is the term whose own-term barrier this leader has applied, 0 if
	// none.
	barrier     atomic.Uint64
	coordinator atomic.Pointer[coordinate.Coordinator]
	// nominations is the one counter of all coordinators.
	nominations atomic.Uint32
	// terms counts the terms led, for people.
	terms atomic.Uint64
	// wake has room for one: it says that something changed. Never closed.
	wake chan struct{}
}

func (l *leadership) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Open takes the data folder, binds the ports and starts Raft. The node serves
// once Run is called; Close gives everything back.
func Open(cfg Config) (*Node, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	var boot [8]byte
	if _, err := rand.Read(boot[:]); err != nil {
		return nil, fmt.Errorf("make a boot id: %w", err)
	}
	n := &Node{
		cfg: cfg, log: cfg.Logger, bootID: hex.EncodeToString(boot[:]), started: time.Now(),
		progress: map[string]progress{}, holders: map[string]*holder.Holder{},
		notify: make(chan bool, 8), raftReady: make(chan struct{}),
		halt: make(chan error, 1), leadership: leadership{wake: make(chan struct{}, 1)},
	}
	for _, step := range []func() error{n.openData, n.bind, n.openRaft, n.openServices} {
		if err := step(); err != nil {
			return nil, errors.Join(err, n.Close())
		}
	}
	n.opened = n.cfg.Clock.Now()
	return n, nil
}

// fail stops the node: something is broken that must not be retried.
func (n *Node) fail(err error) {
	select {
	case n.halt <- err:
	default:
	}
}

// bind takes the ports, so that a port in use is an error of Open.
func (n *Node) bind() error {
	var err error
	if n.listener, err = net.Listen("tcp", n.cfg.Listen); err != nil {
		return fmt.Errorf("bind the gRPC port: %w: choose another listen address, or stop what uses it", err)
	}
	n.advertise = n.cfg.Advertise
	if n.advertise == "" {
		n.advertise = n.listener.Addr().String()
	}
	if n.cfg.HTTPListen == "" {
		return nil
	}
	if n.httpListener, err = net.Listen("tcp", n.cfg.HTTPListen); err != nil {
		return fmt.Errorf("bind the HTTP port: %w: choose another http listen address, or stop what uses it", err)
	}
	return nil
}

// Address is the gRPC address as bound.
func (n *Node) Address() string { return n.listener.Addr().String() }

// HTTPAddress is the HTTP address as bound, empty if there is none.
func (n *Node) HTTPAddress() string {
	if n.httpListener == nil {
		return ""
	}
	return n.httpListener.Addr().String()
}

// NodeID is the configured id.
func (n *Node) NodeID() string { return n.cfg.NodeID }

// Machine is the replicated state, for local reads.
func (n *Node) Machine() *fsm.Machine { return n.machine }

// Raft is the consensus engine, for tests and metrics.
func (n *Node) Raft() *raft.Raft { return n.raft }

// FirstLogIndex is the oldest log entry that is kept, 0 if there is none.
func (n *Node) FirstLogIndex() (uint64, error) { return n.logs.FirstIndex() }

// Holder is the lease holder of a group's instance beside this node.
func (n *Node) Holder(group string) (*holder.Holder, bool) {
	h, ok := n.holders[group]
	return h, ok
}

// Leader is the address and the id of the leader, empty if none is known.
func (n *Node) Leader() (address, id string) {
	_, leader := n.raft.LeaderWithID()
	if leader == "" {
		return "", ""
	}
	if string(leader) == n.cfg.NodeID {
		return n.advertise, n.cfg.NodeID
	}
	address, err := n.resolve(leader)
	if err != nil {
		return "", string(leader)
	}
	return address, string(leader)
}

// Ready says whether this node can serve the API, and why not.
func (n *Node) Ready() (bool, string) {
	if _, leader := n.Leader(); leader == "" {
		if why := n.problemOfJoin(); why != "" {
			return false, why
		}
		return false, "no leader is known: wait for an election, or check that a majority of the nodes is up"
	}
	if !n.serving() {
		return false, "the disk of the log hangs"
	}
	// raft's own index counts entries without a command too.
	applied := n.raft.AppliedIndex()
	if commit := n.raft.CommitIndex(); applied+readyLag < commit {
		return false, fmt.Sprintf("catching up: %d entries behind", commit-applied)
	}
	return true, "ready"
}

// readyLag is how many entries a ready node may be behind its own commit index.
const readyLag = 1000

// Run serves until ctx ends, then leaves in an orderly way: primaryship and
// leadership are handed over first. It returns early with the cause if the node
// breaks; a *StalledError means that the process must exit without Close.
func (n *Node) Run(ctx context.Context) error {
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	g, work := errgroup.WithContext(work)
	fatal := make(chan error, 1)
	start := func(name string, f func(context.Context) error) {
		g.Go(func() error {
			if err := f(work); err != nil && work.Err() == nil {
				err = fmt.Errorf("%s: %w", name, err)
				select {
				case fatal <- err:
				default:
				}
				return err
			}
			return nil
		})
	}
	start("serve gRPC", n.serveGRPC)
	if n.httpListener != nil {
		start("serve HTTP", n.serveHTTP)
	}
	start("notifications", n.watchLeadership)
	start("leadership", n.followLeadership)
	start("propose", n.proposer.Run)
	start("read", n.reads.Run)
	start("freshness", func(ctx context.Context) error { return n.reads.KeepFresh(ctx, n.cfg.Profile.Heartbeat) })
	start("join", n.enter)
	start("kick", n.kick)
	start("watchdog", n.watchdog)
	start("addresses", n.followMembers)
	start("exchange", n.exchange)
	start("health", n.services.Run)
	for group, h := range n.holders {
		start("holder of "+group, h.Run)
	}
	var cause error
	select {
	case <-ctx.Done():
		n.leave(context.WithoutCancel(ctx))
	case cause = <-fatal:
	case cause = <-n.halt:
	}
	var stalled *StalledError
	if errors.As(cause, &stalled) {
		n.fence(context.WithoutCancel(ctx))
		return cause // what hangs cannot be waited for
	}
	cancel(cause)
	n.grpcServer.Stop()
	return errors.Join(cause, ignoreCanceled(g.Wait(), cause))
}

// ignoreCanceled drops what only repeats the cause.
func ignoreCanceled(err, cause error) error {
	if errors.Is(err, context.Canceled) || cause != nil && errors.Is(err, cause) {
		return nil
	}
	return err
}

// leave hands over what this node has: first primaryship, while it can still
// drain and the cluster is whole, then leadership.
func (n *Node) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	n.log.Info("stopping: primaryship and leadership are handed over; the node stays a member")
	defer n.log.Info("handed over")
	n.handOff(ctx, handoffDrain)
	if n.raft.State() != raft.Leader {
		return
	}
	if _, err := n.members.Transfer(ctx, ""); err != nil {
		n.log.Warn("hand over leadership", "err", err)
	}
}

// handOff gives up primaryship of all groups side by side.
func (n *Node) handOff(ctx context.Context, drain time.Duration) {
	var g sync.WaitGroup
	for group, h := range n.holders {
		g.Go(func() {
			if err := h.Handoff(ctx, drain); err != nil {
				n.log.Warn("hand over primaryship", "group", group, "err", err)
			}
		})
	}
	g.Wait()
}

const (
	// leaveTimeout bounds an orderly stop, handoffDrain the wait for running work
	// in it.
	leaveTimeout = 15 * time.Second
	handoffDrain = 10 * time.Second
)

func (n *Node) serveGRPC(context.Context) error {
	if err := n.grpcServer.Serve(n.listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

func (n *Node) serveHTTP(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = n.httpServer.Close() })
	defer stop()
	if err := n.httpServer.Serve(n.httpListener); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// watchLeadership drains raft's notifications: raft blocks while nobody does.
func (n *Node) watchLeadership(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case leads := <-n.notify:
			n.leadership.leads.Store(leads)
			n.leadership.poke()
		}
	}
}

// Leading reports whether this node leads and has applied its barrier.
func (n *Node) Leading() bool {
	return n.raft.State() == raft.Leader && n.leadership.barrier.Load() == n.raft.CurrentTerm()
}

// Abort ends Run at once with a cause, without handing anything over.
func (n *Node) Abort(cause error) { n.fail(cause) }

// setJoinProblem notes why this node is in no cluster, empty when it is.
func (n *Node) setJoinProblem(text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.joinProblem = text
}

func (n *Node) problemOfJoin() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.joinProblem
}

// TransferLeadership hands Raft leadership to another voter. Leader only.
func (n *Node) TransferLeadership(ctx context.Context, to string) error {
	_, err := n.members.Transfer(ctx, to)
	return err
}
