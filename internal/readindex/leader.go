// SPDX-License-Identifier: Apache-2.0

package readindex

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/clock"
)

const (
	defaultRound = 2 * time.Second
	// recheck is how often a round looks again although nothing was announced:
	// for the loss of leadership and for evidence that comes without notice.
	recheck = time.Millisecond
	// kickerGrace bounds the wait for a kick that hangs in a stalled Raft.
	kickerGrace = time.Second
)

// Raft is the part of *raft.Raft that a Leader needs.
type Raft interface {
	State() raft.RaftState
	CurrentTerm() uint64
	CommitIndex() uint64
	VerifyLeader() raft.Future
	GetConfiguration() raft.ConfigurationFuture
}

// Evidence is what the transport knows about answers to appends.
type Evidence interface {
	// QuorumSentAt is the newest t such that a majority of voters has answered,
	// in term, an append that was sent at t or later. The node itself counts as
	// now if it is one of the voters.
	QuorumSentAt(term uint64, voters []raft.ServerID) (clock.Instant, bool)
}

// Announcer is Evidence that says when it has changed; without it a round looks
// every millisecond.
type Announcer interface {
	// Answered returns a channel that is closed at the next answer.
	Answered() <-chan struct{}
}

// Log is the part of raft.LogStore that a Leader needs.
type Log interface {
	GetLog(index uint64, log *raft.Log) error
}

// LeaderConfig is what NewLeader needs.
type LeaderConfig struct {
	Raft     Raft
	Evidence Evidence
	// Log is this node's log.
	Log Log
	// Barrier tells whether an entry of the present leader's own term has been
	// applied to the state of this node, and which term that was.
	Barrier func() (term uint64, applied bool)
	Clock   clock.Clock
	// Hint tells who leads, for NotLeaderError; nil: not known.
	Hint func() (id, address string)
	// Round bounds one round; 0: 2 s.
	Round time.Duration
}

// Leader finds indexes on the node that leads.
type Leader struct {
	cfg    LeaderConfig
	rounds *rounds
	// kicks has room for one kick that nobody has begun. Never closed.
	kicks chan struct{}
}

// NewLeader does no I/O; requests wait until Run is called.
func NewLeader(cfg LeaderConfig) (*Leader, error) {
	if cfg.Raft == nil || cfg.Evidence == nil || cfg.Log == nil || cfg.Barrier == nil || cfg.Clock == nil {
		return nil, errors.New("readindex: LeaderConfig needs Raft, Evidence, Log, Barrier and Clock")
	}
	if cfg.Round < 0 {
		return nil, fmt.Errorf("readindex: round %v must not be negative", cfg.Round)
	}
	if cfg.Round == 0 {
		cfg.Round = defaultRound
	}
	if cfg.Hint == nil {
		cfg.Hint = func() (string, string) { return "", "" }
	}
	return &Leader{cfg: cfg, rounds: newRounds(), kicks: make(chan struct{}, 1)}, nil
}

// Run serves requests until ctx ends.
func (l *Leader) Run(ctx context.Context) error {
	var kicker sync.WaitGroup
	kicker.Go(func() { l.kick(ctx) })
	l.rounds.run(ctx, l.find)
	gone := make(chan struct{})
	go func() {
		kicker.Wait()
		close(gone)
	}()
	// A kick can hang while Raft's main loop does; it ends at the latest when
	// Raft is shut down, for which the caller waits for this Run first.
	timer := time.NewTimer(kickerGrace)
	defer timer.Stop()
	select {
	case <-gone:
	case <-timer.C:
	}
	return nil
}

// Index returns an index that a linearizable read which begins now has to wait
// for. NotLeaderError if this node does not lead, or could not confirm in time
// that it does.
func (l *Leader) Index(ctx context.Context) (uint64, error) {
	if l.cfg.Raft.State() != raft.Leader {
		return 0, l.notLeader()
	}
	return l.rounds.wait(ctx)
}

// Confirmed is the newest instant at which this node surely was the only leader:
// every write that was acknowledged before then is in the state of this node (by
// the claim of the package comment; this leader applies what it acknowledges, and
// has applied what older terms have). It stands still while no majority answers.
// False if this node does not lead, or has not applied an entry of its own term
// yet. It asks nobody and does not wait.
func (l *Leader) Confirmed() (clock.Instant, bool) {
	term, applied := l.cfg.Barrier()
	if !applied {
		return 0, false
	}
	at, ok := l.cfg.Evidence.QuorumSentAt(term, l.voters())
	// As in find: only after the evidence, of which this node's own vote is part.
	if !ok || !l.leads(term) {
		return 0, false
	}
	return at, true
}

func (l *Leader) notLeader() error {
	id, address := l.cfg.Hint()
	return &hastate.NotLeaderError{LeaderID: id, LeaderAddress: address}
}

// find is one round; the package comment says why each step is where it is.
func (l *Leader) find(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Round)
	defer cancel()
	term, err := l.awaitBarrier(ctx)
	if err != nil {
		return 0, err
	}
	t0 := l.cfg.Clock.Now()
	index := l.cfg.Raft.CommitIndex()
	l.requestKick()
	if err := l.awaitEvidence(ctx, term, t0); err != nil {
		return 0, err
	}
	// Only now, after the evidence: this node's own vote is part of it.
	if !l.leads(term) {
		return 0, l.notLeader()
	}
	return l.lastCommand(index)
}

// lastCommand is the newest command at or below index. Raft keeps its own
// entries (after an election, say) from the state machine, which would never be
// seen to reach one of them while nothing is written.
func (l *Leader) lastCommand(index uint64) (uint64, error) {
	for i := index; i > 0; i-- {
		var entry raft.Log
		err := l.cfg.Log.GetLog(i, &entry)
		switch {
		case errors.Is(err, raft.ErrLogNotFound):
			return i, nil // it is in a snapshot, and so in the state
		case err != nil:
			return 0, fmt.Errorf("read log entry %d: %w", i, err)
		case entry.Type == raft.LogCommand:
			return i, nil
		}
	}
	return 0, nil
}

func (l *Leader) leads(term uint64) bool {
	return l.cfg.Raft.State() == raft.Leader && l.cfg.Raft.CurrentTerm() == term
}

// awaitBarrier waits until an entry of this leader's own term has been applied.
func (l *Leader) awaitBarrier(ctx context.Context) (uint64, error) {
	tick := time.NewTicker(recheck)
	defer tick.Stop()
	for {
		if l.cfg.Raft.State() != raft.Leader {
			return 0, l.notLeader()
		}
		if term, applied := l.cfg.Barrier(); applied && l.leads(term) {
			return term, nil
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("the new leader has not committed an entry yet: %w", l.notLeader())
		case <-tick.C:
		}
	}
}

// awaitEvidence waits until a majority has answered appends sent at t0 or later.
func (l *Leader) awaitEvidence(ctx context.Context, term uint64, t0 clock.Instant) error {
	tick := time.NewTicker(recheck)
	defer tick.Stop()
	for {
		// The channel before the look: an answer between the two is not missed.
		var answered <-chan struct{}
		if a, ok := l.cfg.Evidence.(Announcer); ok {
			answered = a.Answered()
		}
		if at, ok := l.cfg.Evidence.QuorumSentAt(term, l.voters()); ok && at >= t0 {
			return nil
		}
		if !l.leads(term) {
			return l.notLeader()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no majority has confirmed this leader: %w", l.notLeader())
		case <-answered:
		case <-tick.C:
		}
	}
}

// voters are those of the newest configuration, committed or not.
func (l *Leader) voters() []raft.ServerID {
	future := l.cfg.Raft.GetConfiguration()
	if future.Error() != nil {
		return nil
	}
	var ids []raft.ServerID
	for _, s := range future.Configuration().Servers {
		if s.Suffrage == raft.Voter {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

func (l *Leader) requestKick() {
	select {
	case l.kicks <- struct{}{}:
	default:
	}
}

// kick makes heartbeats go out, one kick at a time: VerifyLeader may block while
// Raft's main loop does. Its future is not waited for.
func (l *Leader) kick(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.kicks:
			l.cfg.Raft.VerifyLeader()
		}
	}
}
