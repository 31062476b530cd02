// SPDX-License-Identifier: Apache-2.0

package member

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const (
	// DefaultCatchUp is how many log entries a replica may be behind to be made a
	// voter.
	DefaultCatchUp = 1024
	// DefaultTimeout bounds one change whose caller gave no deadline.
	DefaultTimeout = 10 * time.Second

	// defaultInterval is the time between two looks of Reconcile.
	defaultInterval = 250 * time.Millisecond
	// seenFor is how long a node's own word about itself counts.
	seenFor = 5 * time.Second
	// heardFor is how long a node that does not lead counts another as reachable
	// after it has heard from it: they exchange a word twice a second.
	heardFor = 3 * time.Second
)

// Raft is the part of *raft.Raft that is needed.
type Raft interface {
	State() raft.RaftState
	CurrentTerm() uint64
	CommitIndex() uint64
	LeaderWithID() (raft.ServerAddress, raft.ServerID)
	AddNonvoter(id raft.ServerID, address raft.ServerAddress, prevIndex uint64, timeout time.Duration) raft.IndexFuture
	AddVoter(id raft.ServerID, address raft.ServerAddress, prevIndex uint64, timeout time.Duration) raft.IndexFuture
	DemoteVoter(id raft.ServerID, prevIndex uint64, timeout time.Duration) raft.IndexFuture
	RemoveServer(id raft.ServerID, prevIndex uint64, timeout time.Duration) raft.IndexFuture
	LeadershipTransferToServer(id raft.ServerID, address raft.ServerAddress) raft.Future
}

// State is the replicated state of this node; fsm.Machine is.
type State interface {
	ClusterID() string
	// Applied is how far the log has been applied here.
	Applied() (index, term uint64)
	// Configuration is Raft's newest applied one and the index of its entry, which
	// raft itself does not tell.
	Configuration() (raft.Configuration, uint64)
	Members() []*pb.Member
	Groups() []*pb.Group
	Instances(group string) []*pb.Instance
}

// Proposer puts commands into the log; propose.Node does.
type Proposer interface {
	Propose(ctx context.Context, cmd *pb.Command) (*pb.Result, error)
}

// Reach tells when a node last answered; transport.Transport does.
type Reach interface {
	LastAnswered(id raft.ServerID) (clock.Instant, bool)
}

// Seen is what a node last said of itself.
type Seen struct {
	Applied uint64
	Version string
	// Age is how long ago that was.
	Age time.Duration
}

// Config is what New needs. All functions and interfaces are required.
type Config struct {
	ID       raft.ServerID
	Version  string
	Raft     Raft
	State    State
	Proposer Proposer
	Reach    Reach
	// Barrier tells whether an entry of the present leader's own term has been
	// applied here, and which term that was.
	Barrier func() (term uint64, applied bool)
	// Seen tells what a node last said of itself.
	Seen func(id raft.ServerID) (Seen, bool)
	// Greet asks who answers at an address.
	Greet func(ctx context.Context, address string) (*pb.HelloResponse, error)
	// Address tells where a node is reached that has no member record yet, this
	// one included; "" if that is not known.
	Address func(id raft.ServerID) string
	Clock   clock.Clock
	// Heartbeat: a node that has not answered for twice as long counts as not
	// reachable.
	Heartbeat time.Duration
	// CatchUp, 0: DefaultCatchUp.
	CatchUp uint64
	// Interval between two looks of Reconcile; 0: 250 ms.
	Interval time.Duration
	Logger   *slog.Logger
}

func (c *Config) complete() error {
	if c.ID == "" || c.Raft == nil || c.State == nil || c.Proposer == nil || c.Reach == nil || c.Barrier == nil ||
		c.Seen == nil || c.Greet == nil || c.Address == nil || c.Clock == nil {
		return errors.New("member: Config needs ID, Raft, State, Proposer, Reach, Barrier, Seen, Greet, Address and Clock")
	}
	if c.Heartbeat <= 0 || c.Interval < 0 {
		return fmt.Errorf("member: heartbeat %v must be positive and interval %v not negative", c.Heartbeat, c.Interval)
	}
	c.CatchUp = cmp.Or(c.CatchUp, DefaultCatchUp)
	c.Interval = cmp.Or(c.Interval, defaultInterval)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Membership changes and describes the members.
type Membership struct {
	cfg     Config
	started clock.Instant

	// changing has room for one token: whoever holds it may change something.
	changing chan struct{}

	mu sync.Mutex
	// transferTerm is the newest term in which a transfer was begun. Guarded by mu.
	transferTerm uint64
	// lookedTerm is the newest term in which it mattered who answers, lookedAt when
	// that was first asked. Guarded by mu.
	lookedTerm uint64
	lookedAt   time.Time
}

// New does no I/O.
func New(cfg Config) (*Membership, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	return &Membership{cfg: cfg, started: cfg.Clock.Now(), changing: make(chan struct{}, 1)}, nil
}

// Members is what this node knows of the members: those of Raft's configuration,
// with their records. The leader knows who can be reached; any other node tells
// whom it has heard from lately itself.
func (m *Membership) Members() []*pb.Member {
	conf, _ := m.cfg.State.Configuration()
	records := m.records()
	leading := m.cfg.Raft.State() == raft.Leader
	leader := m.cfg.ID
	if !leading {
		_, leader = m.cfg.Raft.LeaderWithID()
	}
	var out []*pb.Member
	for _, s := range conf.Servers {
		rec := records[s.ID]
		one := &pb.Member{
			NodeId: string(s.ID), Address: cmp.Or(rec.GetAddress(), m.cfg.Address(s.ID)), Role: roleOf(s.Suffrage),
			PromoteWhenCaughtUp: rec.GetPromoteWhenCaughtUp(), Version: rec.GetVersion(), Leader: s.ID == leader,
		}
		if s.ID == m.cfg.ID {
			one.Reachable, one.Version = true, m.cfg.Version
			one.AppliedIndex, _ = m.cfg.State.Applied()
			out = append(out, one)
			continue
		}
		seen, ok := m.cfg.Seen(s.ID)
		if ok {
			one.AppliedIndex, one.Version = seen.Applied, cmp.Or(seen.Version, one.GetVersion())
		}
		var silent time.Duration
		if leading {
			one.Reachable, silent = m.reachable(s.ID), m.silent(s.ID)
		} else {
			silent = m.sinceStart()
			if ok {
				silent = seen.Age
			}
			// Raft knows a leader only while it hears from it.
			one.Reachable = s.ID == leader || ok && silent <= heardFor
		}
		one.LastContactMs = uint64(max(0, silent.Milliseconds()))
		out = append(out, one)
	}
	slices.SortFunc(out, func(a, b *pb.Member) int { return cmp.Compare(a.GetNodeId(), b.GetNodeId()) })
	return out
}

// silent is how long ago a node last answered the leader: since this one was
// started if it never did.
func (m *Membership) silent(id raft.ServerID) time.Duration {
	at, ok := m.cfg.Reach.LastAnswered(id)
	if !ok {
		return m.sinceStart()
	}
	return m.cfg.Clock.Now().Sub(at)
}

func (m *Membership) sinceStart() time.Duration { return m.cfg.Clock.Now().Sub(m.started) }

func (m *Membership) records() map[raft.ServerID]*pb.Member {
	out := make(map[raft.ServerID]*pb.Member)
	for _, rec := range m.cfg.State.Members() {
		out[raft.ServerID(rec.GetNodeId())] = rec
	}
	return out
}

func roleOf(s raft.ServerSuffrage) pb.MemberRole {
	if s == raft.Voter {
		return pb.MemberRole_MEMBER_ROLE_VOTER
	}
	return pb.MemberRole_MEMBER_ROLE_REPLICA
}

// reachable reports whether a node has answered lately.
func (m *Membership) reachable(id raft.ServerID) bool {
	if id == m.cfg.ID {
		return true
	}
	at, ok := m.cfg.Reach.LastAnswered(id)
	return ok && m.cfg.Clock.Now().Sub(at) <= 2*m.cfg.Heartbeat
}

// leads reports whether this node leads and knows what was committed before its
// term.
func (m *Membership) leads() bool {
	term, applied := m.cfg.Barrier()
	return applied && m.cfg.Raft.State() == raft.Leader && m.cfg.Raft.CurrentTerm() == term
}

func (m *Membership) notLeader() error {
	_, id := m.cfg.Raft.LeaderWithID()
	if id == "" || id == m.cfg.ID {
		return &hastate.NotLeaderError{}
	}
	return &hastate.NotLeaderError{LeaderID: string(id), LeaderAddress: m.cfg.Address(id)}
}
