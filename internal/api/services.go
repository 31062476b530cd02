// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/election"
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const (
	// DefaultDeadline is that of a call without one. Watches, pipelines and
	// forwarding streams have none.
	DefaultDeadline = 10 * time.Second
	// moveDeadline is that of a switchover or failover without one.
	moveDeadline = time.Minute
	// archiveDeadline is that of a snapshot stream without one.
	archiveDeadline = time.Hour
	// MaxScheduleAhead bounds how far ahead a switchover may be scheduled.
	MaxScheduleAhead = 24 * time.Hour
	// DefaultClientIdle is after how long without a write a writer's number is
	// forgotten.
	DefaultClientIdle = 10 * time.Minute

	retryMin = 10 * time.Millisecond
	retryMax = 200 * time.Millisecond
)

// Config is what New needs. All interfaces are required.
type Config struct {
	NodeID  string
	Version string
	// Profile gives the name for Status and the interval of watch heartbeats.
	Profile election.Profile

	State      State
	Proposer   Proposer
	Reader     Reader
	Raft       Raft
	Log        Log
	Peers      Peers
	Groups     Groups
	Membership Membership
	Snapshots  Snapshots
	Greeter    Greeter
	Holders    Holders
	Clock      clock.Clock

	// Address tells the gRPC address of a node; nil: the id.
	Address func(raft.ServerID) string
	// InTouch says whether this node hears of what the others commit; nil: always.
	// Watches end when it does not: their clients go on at another node.
	InTouch func() bool
	// Problems adds to those of Status; nil: none.
	Problems func() []string
	// ClientIdle is told to writers; 0: DefaultClientIdle. The leader forgets
	// them accordingly.
	ClientIdle time.Duration
	Logger     *slog.Logger
}

func (c *Config) complete() error {
	for name, missing := range map[string]bool{
		"NodeID": c.NodeID == "", "State": c.State == nil, "Proposer": c.Proposer == nil, "Reader": c.Reader == nil,
		"Raft": c.Raft == nil, "Log": c.Log == nil, "Peers": c.Peers == nil, "Groups": c.Groups == nil,
		"Membership": c.Membership == nil, "Snapshots": c.Snapshots == nil, "Greeter": c.Greeter == nil,
		"Holders": c.Holders == nil, "Clock": c.Clock == nil,
	} {
		if missing {
			return fmt.Errorf("api: Config.%s is required", name)
		}
	}
	if c.Profile.Renew <= 0 {
		return errors.New("api: Config.Profile has no renew interval")
	}
	if c.ClientIdle < 0 {
		return fmt.Errorf("api: ClientIdle %v must not be negative", c.ClientIdle)
	}
	if c.ClientIdle == 0 {
		c.ClientIdle = DefaultClientIdle
	}
	if c.Address == nil {
		c.Address = func(id raft.ServerID) string { return string(id) }
	}
	if c.Problems == nil {
		c.Problems = func() []string { return nil }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Services are the gRPC services of one node.
type Services struct {
	cfg     Config
	health  *health.Server
	started time.Time
	// hashing has room for the one Status that computes a state hash.
	hashing chan struct{}
}

// New does no I/O.
func New(cfg Config) (*Services, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	return &Services{cfg: cfg, health: health.NewServer(), started: time.Now(), hashing: make(chan struct{}, 1)}, nil
}

// Register adds the services to a server that was made with the interceptors.
func (s *Services) Register(r grpc.ServiceRegistrar) {
	pb.RegisterGroupServiceServer(r, &groupServer{s: s})
	pb.RegisterSessionServiceServer(r, &sessionServer{s: s})
	pb.RegisterModelServiceServer(r, &modelServer{s: s})
	pb.RegisterClusterServiceServer(r, &clusterServer{s: s})
	pb.RegisterPeerServiceServer(r, &peerServer{s: s})
	healthpb.RegisterHealthServer(r, &healthServer{Server: s.health, s: s})
}

// Peer is the service between nodes, for questions that a node asks itself.
func (s *Services) Peer() pb.PeerServiceServer { return &peerServer{s: s} }

// inTouch is ErrNoLeader when this node does not hear of what is committed: a
// watch that stood still without a word would be believed.
func (s *Services) inTouch() error {
	if s.cfg.InTouch == nil || s.cfg.InTouch() {
		return nil
	}
	return &hastate.NotLeaderError{}
}

// read makes the local state fit for an answer at the level that was asked for. It
// comes before the state is read: local is the freshness of what is read then, nil
// if the level is not LOCAL.
func (s *Services) read(ctx context.Context, level pb.ReadLevel) (local *freshness, err error) {
	isLocal, err := wantsLocal(level)
	switch {
	case err != nil:
		return nil, err
	case isLocal:
		f := s.freshness()
		return &f, nil
	}
	return nil, s.cfg.Reader.Read(ctx)
}

// propose applies a command and turns a refusal into an error.
func (s *Services) propose(ctx context.Context, cmd *pb.Command, group string, epoch uint64) (*pb.Result, error) {
	res, err := s.cfg.Proposer.Propose(ctx, cmd)
	if err != nil {
		return nil, err
	}
	return res, hastate.FromResult(res, group, epoch)
}

// proposeAndWait is propose for callers that then read the local state. That the
// write was done is certain before the wait: if it fails, so is only the reply.
func (s *Services) proposeAndWait(ctx context.Context, cmd *pb.Command, group string) (*pb.Result, error) {
	res, err := s.propose(ctx, cmd, group, 0)
	if err != nil {
		return nil, err
	}
	if err := s.cfg.State.WaitApplied(ctx, res.GetIndex()); err != nil {
		return nil, &hastate.OutcomeUnknownError{Reason: "it was done, but this node has not seen it in time"}
	}
	return res, nil
}

// leader tells who leads as far as this node knows.
func (s *Services) leader() (id raft.ServerID, local bool) {
	if s.cfg.Raft.State() == raft.Leader {
		return raft.ServerID(s.cfg.NodeID), true
	}
	_, id = s.cfg.Raft.LeaderWithID()
	return id, false
}

func (s *Services) notLeader() error {
	id, _ := s.leader()
	if id == "" {
		return &hastate.NotLeaderError{}
	}
	return &hastate.NotLeaderError{LeaderID: string(id), LeaderAddress: s.cfg.Address(id)}
}

// atLeader answers a call on the leader: by here if this node leads, otherwise
// by there over the connection to the leader. A refusal for want of a leader is
// tried again until ctx ends: nothing was done then.
func atLeader[R any](ctx context.Context, s *Services, here func(context.Context) (R, error), there func(context.Context, *grpc.ClientConn) (R, error)) (R, error) {
	var zero R
	pause := retryMin
	for {
		res, err := onceAtLeader(ctx, s, here, there)
		if err == nil || !isNotLeader(err) || wasForwarded(ctx) {
			return res, err
		}
		timer := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-ctx.Done():
			timer.Stop()
			return zero, err
		case <-timer.C:
		}
		pause = min(2*pause, retryMax)
	}
}

func onceAtLeader[R any](ctx context.Context, s *Services, here func(context.Context) (R, error), there func(context.Context, *grpc.ClientConn) (R, error)) (R, error) {
	var zero R
	id, local := s.leader()
	switch {
	case local:
		return here(ctx)
	case id == "" || string(id) == s.cfg.NodeID || wasForwarded(ctx):
		return zero, s.notLeader()
	}
	conn, err := s.cfg.Peers.Conn(id)
	if err != nil {
		return zero, fmt.Errorf("reach the leader %s: %w: %w", id, err, s.notLeader())
	}
	res, err := there(markForwarded(ctx), conn)
	return res, fromLeader(id, err)
}

func isNotLeader(err error) bool {
	return errors.Is(err, hastate.ErrNotLeader) || errors.Is(err, hastate.ErrNoLeader)
}
