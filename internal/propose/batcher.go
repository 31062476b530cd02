// SPDX-License-Identifier: Apache-2.0

package propose

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Defaults and limits.
const (
	// DefaultTimeout is the deadline of a proposal whose caller gave none.
	DefaultTimeout = 10 * time.Second
	// DefaultQueueCommands and DefaultQueueBytes bound what waits for its entry.
	DefaultQueueCommands = 64 << 10
	DefaultQueueBytes    = 64 << 20
	// MaxInFlight is how many log entries may be in flight. More than two help
	// only above a thousand writers; what arrives meanwhile is gathered into the
	// next entry, so no linger timer is needed.
	MaxInFlight = 2

	defaultEnqueue = time.Second
	defaultDrain   = 5 * time.Second
	sweepEvery     = 25 * time.Millisecond

	// transferGap: refusals that are further apart are of two handovers. A proposal
	// is tried again several times a second, and leases are renewed about as often.
	transferGap = 3 * time.Second
)

// Applier is the part of *raft.Raft that a Batcher needs.
type Applier interface {
	Apply(cmd []byte, timeout time.Duration) raft.ApplyFuture
}

// BatcherConfig is what NewBatcher needs.
type BatcherConfig struct {
	Raft Applier
	// Check refuses a command that the state machine does not know, for example
	// one that a newer node has forwarded: in the log it would halt every node.
	// nil: none is refused.
	Check func(*pb.Command) error
	// Leader tells who leads, for NotLeaderError; nil or "": not known.
	Leader func() (id, address string)
	// Wall stamps entries; nil: time.Now. For people, never for decisions.
	Wall func() time.Time
	// Timeout of a proposal without a deadline; 0: DefaultTimeout.
	Timeout time.Duration
	// Enqueue bounds the wait for Raft's main loop to take an entry; 0: 1 s.
	Enqueue time.Duration
	// Drain bounds the wait for entries in flight when Run ends; 0: 5 s.
	Drain time.Duration
	// QueueCommands and QueueBytes bound the queue; 0: the defaults.
	QueueCommands, QueueBytes int
	Logger                    *slog.Logger
}

func (c *BatcherConfig) complete() error {
	if c.Raft == nil {
		return errors.New("propose: BatcherConfig.Raft is required")
	}
	if c.Timeout < 0 || c.Enqueue < 0 || c.Drain < 0 || c.QueueCommands < 0 || c.QueueBytes < 0 {
		return errors.New("propose: timeouts and queue bounds must not be negative")
	}
	if c.Leader == nil {
		c.Leader = func() (string, string) { return "", "" }
	}
	if c.Wall == nil {
		c.Wall = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	setDefault(&c.Timeout, DefaultTimeout)
	setDefault(&c.Enqueue, defaultEnqueue)
	setDefault(&c.Drain, defaultDrain)
	setDefault(&c.QueueCommands, DefaultQueueCommands)
	setDefault(&c.QueueBytes, DefaultQueueBytes)
	return nil
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Batcher gathers commands into log entries. It may run on every node: where
// Raft does not lead, commands end with NotLeaderError at once.
type Batcher struct {
	cfg   BatcherConfig
	queue *queue

	// mu guards the fields below.
	mu sync.Mutex
	// flights are the entries that Raft has and has not answered.
	flights map[*flight]struct{}
	// refusedFirst and refusedLast are the ends of the newest run of entries that
	// Raft refused because leadership is being handed over; zero if the newest
	// entry was not refused.
	refusedFirst, refusedLast time.Time
}

// flight is one entry under way.
type flight struct{ items []*item }

// NewBatcher does no I/O; commands wait until Run is called.
func NewBatcher(cfg BatcherConfig) (*Batcher, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	return &Batcher{
		cfg:     cfg,
		queue:   newQueue("propose_queue", cfg.QueueCommands, cfg.QueueBytes),
		flights: make(map[*flight]struct{}),
	}, nil
}

// Propose puts a command into the log and waits for its result, at most until
// ctx ends. It does not retry and does not forward.
func (b *Batcher) Propose(ctx context.Context, cmd *pb.Command) (*pb.Result, error) {
	return proposeTo(ctx, cmd, b.cfg.Timeout, b.push)
}

// ProposeAsync is Propose without the wait: done is called exactly once, at the
// latest when the configured timeout has passed.
func (b *Batcher) ProposeAsync(cmd *pb.Command, done func(*pb.Result, error)) {
	proposeAsyncTo(cmd, b.cfg.Timeout, done, b.push)
}

// push queues an item that the state machine knows how to apply.
func (b *Batcher) push(it *item) error {
	if b.cfg.Check != nil {
		if err := b.cfg.Check(it.cmd); err != nil {
			return fmt.Errorf("%w: %w", hastate.ErrInvalid, err)
		}
	}
	return b.queue.push(it)
}

func proposeAsyncTo(cmd *pb.Command, timeout time.Duration, done func(*pb.Result, error), push func(*item) error) {
	it, err := newItem(cmd, time.Now().Add(timeout), done)
	if err == nil {
		err = push(it)
	}
	if err != nil {
		done(nil, err)
	}
}

// proposeTo pushes an item and waits for it.
func proposeTo(ctx context.Context, cmd *pb.Command, timeout time.Duration, push func(*item) error) (*pb.Result, error) {
	ctx, cancel := withDeadline(ctx, timeout)
	defer cancel()
	type answer struct {
		res *pb.Result
		err error
	}
	got := make(chan answer, 1)
	deadline, _ := ctx.Deadline()
	it, err := newItem(cmd, deadline, func(res *pb.Result, err error) { got <- answer{res, err} })
	if err != nil {
		return nil, err
	}
	if err := push(it); err != nil {
		return nil, err
	}
	select {
	case a := <-got:
		return a.res, a.err
	case <-ctx.Done():
		it.giveUp(cause(ctx))
		// Whoever ended the item has called done by now or is about to.
		a := <-got
		return a.res, a.err
	}
}

// withDeadline makes sure that ctx has a deadline.
func withDeadline(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, timeout)
}

// Run feeds Raft until ctx ends. It then ends what is queued, and waits a
// bounded time for the entries in flight: Raft must be shut down after Run has
// returned, because it leaves futures unanswered when it stops.
func (b *Batcher) Run(ctx context.Context) error {
	var inFlight, sweeper sync.WaitGroup
	sweeper.Go(func() { b.sweep(ctx) })
	defer sweeper.Wait()

	slots := make(chan struct{}, MaxInFlight)
	for {
		select {
		case <-ctx.Done():
			b.stop(&inFlight)
			return nil
		case slots <- struct{}{}:
		}
		items := b.gather(ctx)
		if len(items) == 0 {
			<-slots
			continue
		}
		fl := &flight{items: items}
		b.track(fl, true)
		future := b.cfg.Raft.Apply(encodeEntry(b.cfg.Wall().UnixMilli(), items), b.cfg.Enqueue)
		inFlight.Go(func() {
			err := settle(future, fl.items, b.notLeader)
			b.track(fl, false)
			b.noteTransfer(errors.Is(err, raft.ErrLeadershipTransferInProgress), time.Now())
			<-slots
		})
	}
}

// gather waits for work; nil when ctx ends or when all that was queued has been
// given up.
func (b *Batcher) gather(ctx context.Context) []*item {
	select {
	case <-ctx.Done():
		return nil
	case <-b.queue.ready:
		return b.queue.pop(hastate.MaxEntryCommands, hastate.MaxEntryBytes-entryOverhead)
	}
}

func (b *Batcher) notLeader() error {
	id, address := b.cfg.Leader()
	return &hastate.NotLeaderError{LeaderID: id, LeaderAddress: address}
}

func (b *Batcher) track(fl *flight, add bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if add {
		b.flights[fl] = struct{}{}
	} else {
		delete(b.flights, fl)
	}
}

func (b *Batcher) noteTransfer(refused bool, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case !refused:
		b.refusedFirst, b.refusedLast = time.Time{}, time.Time{}
	case b.refusedFirst.IsZero(), now.Sub(b.refusedLast) > transferGap:
		b.refusedFirst, b.refusedLast = now, now
	default:
		b.refusedLast = now
	}
}

// TransferStuck is for how long Raft has refused every entry because leadership
// is being handed over; 0 if it does not. A handover is over after an election
// timeout, one way or the other; raft's mark of it may stay (hashicorp/raft#696),
// and then a leader takes nothing any more: only a restart of the node helps.
//
// It is the time between two refusals, not since the first: after a handover that
// has come about, this node proposes nothing more, and the last thing that it was
// told stays a refusal however well it is.
func (b *Batcher) TransferStuck() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.refusedLast.Sub(b.refusedFirst)
}

// sweep enforces deadlines while Raft does not answer.
func (b *Batcher) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			b.queue.expire(now)
			b.giveUpFlights(func(it *item) bool { return now.After(it.deadline) })
		}
	}
}

func (b *Batcher) giveUpFlights(late func(*item) bool) {
	b.mu.Lock()
	var items []*item
	for fl := range b.flights {
		items = append(items, fl.items...)
	}
	b.mu.Unlock()
	for _, it := range items {
		if late(it) {
			it.giveUp(context.DeadlineExceeded)
		}
	}
}

// stop ends what is queued and waits, bounded, for what is in flight.
func (b *Batcher) stop(inFlight *sync.WaitGroup) {
	b.queue.close()
	settled := make(chan struct{})
	go func() {
		inFlight.Wait()
		close(settled)
	}()
	timer := time.NewTimer(b.cfg.Drain)
	defer timer.Stop()
	select {
	case <-settled:
	case <-timer.C:
		b.cfg.Logger.Warn("raft has not answered entries in flight; their outcome is unknown", "waited", b.cfg.Drain)
		b.giveUpFlights(func(*item) bool { return true })
	}
}
