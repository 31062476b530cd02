// SPDX-License-Identifier: Apache-2.0

package coordinate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/election"
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Limits and defaults.
const (
	// maxCalls bounds the short calls to peers that are under way at once, over
	// all groups.
	maxCalls = 64
	// maxSleep bounds one sleep of the loop: Go's timers stand still while the
	// machine is suspended.
	maxSleep = time.Second

	firstRetry, lastRetry = 50 * time.Millisecond, time.Second

	// DefaultPromoteTimeout and DefaultDrain are for groups whose policy has none.
	DefaultPromoteTimeout = 10 * time.Second
	DefaultDrain          = 10 * time.Second
)

// State is the replicated state as this node has applied it. fsm.Machine has it.
type State interface {
	Group(name string) (*pb.Group, bool)
	Groups() []*pb.Group
	Instances(group string) []*pb.Instance
	History(group string, limit int) []*pb.Transition
	Applied() (index, term uint64)
	// Changed is closed at the next change of a group or instance, renewals
	// included. It is to be got before looking.
	Changed() <-chan struct{}
}

// Proposer brings a command to the log.
type Proposer interface {
	Propose(ctx context.Context, cmd *pb.Command) (*pb.Result, error)
}

// Peers asks nodes, this one included. Every ctx has a deadline.
type Peers interface {
	Canvass(ctx context.Context, nodeID string, req *pb.CanvassRequest) (*pb.CanvassResponse, error)
	Nominate(ctx context.Context, nodeID string, req *pb.NominateRequest) (*pb.NominateResponse, error)
	Granted(ctx context.Context, nodeID string, req *pb.GrantedRequest) (*pb.GrantedResponse, error)
	Fence(ctx context.Context, nodeID string, req *pb.FenceRequest) (*pb.FenceResponse, error)
}

// Config is what a Coordinator needs; all is required but Clock and Logger.
type Config struct {
	NodeID string
	// Term is the one in which this node leads.
	Term uint64
	// Nominations counts the nominations of this node, over all its coordinators,
	// for as long as the node lives: see number.
	Nominations *atomic.Uint32
	State       State
	// StoredAt is not earlier than when this node first stored the log entry.
	StoredAt func(index uint64) clock.Instant
	Proposer Proposer
	Peers    Peers
	Profile  election.Profile
	Clock    clock.Clock
	Logger   *slog.Logger
}

// Coordinator is the leader's side of the leases. Its methods may be called by
// many goroutines; Run must be called once.
type Coordinator struct {
	cfg  Config
	log  *slog.Logger
	born clock.Instant
	// calls has room for maxCalls.
	calls chan struct{}
	// poke wakes the loop; it has room for one.
	poke chan struct{}
	// wg counts attempts and orders. It is only added to under mu while ctx is set.
	wg sync.WaitGroup

	// mu guards ctx, started and groups with all that is in them.
	mu sync.Mutex
	// ctx is Run's, nil while it does not run.
	ctx     context.Context
	started bool
	groups  map[string]*standing
}

// standing is what the loop remembers of a group.
type standing struct {
	// busy is closed when the attempt that is under way ends; nil if there is none.
	busy chan struct{}
	// cancel ends that attempt.
	cancel context.CancelFunc
	// order is under way; nil if there is none.
	order *order
	// tries counts attempts in a row that found nobody, nextTry ends their
	// back-off, which an instance that changes (newest) ends early.
	tries   int
	nextTry clock.Instant
	newest  uint64
	// unserved counts grants in a row that did not end in SERVING.
	unserved int
	alarmed  bool
	// vacant is the epoch that was first seen released at since.
	vacant uint64
	since  clock.Instant
}

// New checks the configuration; it does no I/O.
func New(cfg Config) (*Coordinator, error) {
	if cfg.Clock == nil {
		cfg.Clock = clock.Boot{}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.NodeID == "" || cfg.Term == 0 || cfg.Nominations == nil || cfg.State == nil || cfg.StoredAt == nil || cfg.Proposer == nil || cfg.Peers == nil {
		return nil, fmt.Errorf("%w: a coordinator needs a node id, a term, a count of nominations, the state, stored-at times, a proposer and peers", hastate.ErrInvalid)
	}
	if err := cfg.Profile.Validate(); err != nil {
		return nil, fmt.Errorf("%w: profile %q: %w", hastate.ErrInvalid, cfg.Profile.Name, err)
	}
	return &Coordinator{
		cfg: cfg, log: cfg.Logger.With("term", cfg.Term),
		calls: make(chan struct{}, maxCalls), poke: make(chan struct{}, 1),
		groups: map[string]*standing{},
	}, nil
}

// Run keeps every group in the best hands until ctx ends, which the caller lets
// happen when this node leads no more. The caller has seen an entry of this term
// applied. It waits for all attempts and orders and returns ctx's error.
func (c *Coordinator) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.mu.Lock()
	if c.started {
		c.mu.Unlock()
		return errors.New("the coordinator runs, or ran, already")
	}
	c.started, c.ctx, c.born = true, ctx, c.cfg.Clock.Now()
	c.mu.Unlock()

	timer := time.NewTimer(maxSleep)
	defer timer.Stop()
	for ctx.Err() == nil {
		changed := c.cfg.State.Changed()
		timer.Reset(c.scan())
		select {
		case <-ctx.Done():
		case <-changed:
		case <-c.poke:
		case <-timer.C:
		}
	}
	c.mu.Lock()
	c.ctx = nil
	c.mu.Unlock()
	c.wg.Wait()
	return ctx.Err()
}

// scan looks at every group and says when it wants to look again.
func (c *Coordinator) scan() time.Duration {
	next := maxSleep
	for _, g := range c.cfg.State.Groups() {
		next = min(next, c.consider(g))
	}
	return max(next, 0)
}

// consider starts what a group needs, unless something is under way for it, and
// returns how long that stands.
func (c *Coordinator) consider(g *pb.Group) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.standing(g.GetName())
	if s.busy != nil || s.order != nil || c.ctx == nil {
		return maxSleep
	}
	c.remember(s, g)
	d, left := c.decide(g, s.nextTry, election.WantNone)
	early := left - c.lead()
	switch {
	case d.Do == election.ProposeCalm:
		c.attempt(s, func(ctx context.Context) { c.calm(ctx, g) })
	case d.Do == election.Elect, left > 0 && early <= 0:
		since := s.vacantSince(g)
		c.attempt(s, func(ctx context.Context) { c.elected(s, g, c.lookFor(ctx, g, since)) })
	case left > 0:
		return min(early, d.Wait)
	}
	return d.Wait
}

// remember notes what g tells about past attempts. The caller holds mu.
func (c *Coordinator) remember(s *standing, g *pb.Group) {
	switch g.GetPhase() {
	case pb.GroupPhase_GROUP_PHASE_SERVING:
		if s.alarmed {
			c.log.Info("the group has a primary again", "group", g.GetName(), "primary", g.GetHolder())
		}
		s.tries, s.unserved, s.nextTry, s.alarmed = 0, 0, 0, false
	case pb.GroupPhase_GROUP_PHASE_VACANT:
		if s.vacant != g.GetEpoch() || s.since == 0 {
			s.vacant, s.since = g.GetEpoch(), c.cfg.Clock.Now()
		}
	}
	if s.nextTry != 0 && s.tries > 0 && c.newestInstance(g.GetName()) != s.newest {
		s.nextTry = 0
	}
}

// vacantSince is since when the group, as it is now, has had no holder; 0 if it has one.
// An attempt may begin before a lease ends: what the time of an earlier vacancy was is
// none of its business. The caller holds mu.
func (s *standing) vacantSince(g *pb.Group) clock.Instant {
	if g.GetPhase() != pb.GroupPhase_GROUP_PHASE_VACANT || s.vacant != g.GetEpoch() {
		return 0
	}
	return s.since
}

// attempt runs fn aside. The caller holds mu and has seen that nothing is under
// way for the group.
func (c *Coordinator) attempt(s *standing, fn func(context.Context)) {
	ctx, cancel := context.WithCancel(c.ctx)
	busy := make(chan struct{})
	s.busy, s.cancel = busy, cancel
	c.wg.Go(func() {
		defer cancel()
		fn(ctx)
		c.mu.Lock()
		s.busy, s.cancel = nil, nil
		c.mu.Unlock()
		close(busy)
		c.wake()
	})
}

// elected notes how an attempt ended.
func (c *Coordinator) elected(s *standing, g *pb.Group, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.cfg.Clock.Now()
	s.newest = c.newestInstance(g.GetName())
	switch {
	case err == nil:
		s.tries = 0
		// A candidate that was granted and gave up before it served was not there
		// to choose for a while: more grants than instances are a sign that this
		// leads nowhere fast.
		if s.unserved++; s.unserved > len(c.cfg.State.Instances(g.GetName())) {
			s.nextTry = now.Add(retryAfter(s.unserved))
		}
	case errors.Is(err, errMoved), errors.Is(err, context.Canceled):
		s.nextTry = 0
		if errors.Is(err, errMoved) {
			c.log.Debug("somebody was faster", "group", g.GetName(), "why", err)
		}
	default:
		if !s.alarmed {
			c.log.Warn("the group has no primary and no candidate takes it", "group", g.GetName(), "why", err)
		}
		s.alarmed = true
		s.nextTry = now.Add(retryAfter(s.tries))
		s.tries++
	}
}

func (c *Coordinator) standing(group string) *standing {
	s := c.groups[group]
	if s == nil {
		s = &standing{}
		c.groups[group] = s
	}
	return s
}

// decide asks election.Decide, and how much is left of the lease that keeps the
// group from being granted. What they depend on is read in the order that they
// demand.
func (c *Coordinator) decide(g *pb.Group, nextTry clock.Instant, want election.Want) (d election.Decision, left time.Duration) {
	v := election.GroupView{
		Group: g,
		Leader: election.LeaderView{
			BarrierApplied: true, Phase: g.GetPhase(), TTL: time.Duration(g.GetTtlMs()) * time.Millisecond,
			RenewStoredAt: c.storedAt(g.GetLastRenew()),
		},
		Slack: c.cfg.Profile.GrantSlack, NextTry: nextTry, Want: want,
		CalmSince: max(c.born, c.storedAt(g.GetEpoch())),
	}
	v.Now = c.cfg.Clock.Now()
	left, _ = election.LeaseWait(v.Leader, v.Now, v.Slack)
	return election.Decide(v), left
}

// storedAt is for entries that exist; 0 stands for none.
func (c *Coordinator) storedAt(index uint64) clock.Instant {
	if index == 0 {
		return 0
	}
	return c.cfg.StoredAt(index)
}

// lead is how long before the end of a lease the candidates are asked, and how
// long they may take to answer.
func (c *Coordinator) lead() time.Duration {
	return min(c.cfg.Profile.Heartbeat/2, 150*time.Millisecond)
}

// newestInstance changes when an instance of the group does.
func (c *Coordinator) newestInstance(group string) uint64 {
	var newest uint64
	for _, i := range c.cfg.State.Instances(group) {
		newest = max(newest, i.GetRevision())
	}
	return newest
}

func (c *Coordinator) calm(ctx context.Context, g *pb.Group) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Profile.Lease)
	defer cancel()
	cmd := &pb.Command{Op: &pb.Command_Calm{Calm: &pb.Calm{Group: g.GetName(), IfEpoch: g.GetEpoch()}}}
	res, err := c.cfg.Proposer.Propose(ctx, cmd)
	if err == nil {
		err = hastate.FromResult(res, g.GetName(), g.GetEpoch())
	}
	if err != nil {
		c.log.Debug("the count of failovers was not reset", "group", g.GetName(), "why", err)
		// Not at once again, whatever the reason.
		pause(ctx, firstRetry)
	}
}

func (c *Coordinator) wake() {
	select {
	case c.poke <- struct{}{}:
	default:
	}
}

// retryAfter is a back-off that doubles from firstRetry to lastRetry.
func retryAfter(tries int) time.Duration {
	d := firstRetry
	for range tries {
		if d *= 2; d >= lastRetry {
			return lastRetry
		}
	}
	return d
}

// pause waits and reports whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
