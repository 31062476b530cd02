// SPDX-License-Identifier: Apache-2.0

package holder

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

// Config is what a Holder needs. All fields are required but those that say
// otherwise.
type Config struct {
	NodeID string
	// Group is "default" if empty.
	Group    string
	Instance Instance
	// Address is where the instance's clients reach it.
	Address string
	// Tags may be nil.
	Tags    *pb.InstanceTags
	Profile election.Profile
	// Clock is clock.Boot if nil.
	Clock    clock.Clock
	State    State
	Proposer Proposer
	// Logger may be nil.
	Logger *slog.Logger
	// Kill is the fence of last resort, nil if there is none. nil as its result
	// says that the process is certainly gone.
	Kill func(ctx context.Context, reason string) error
	// OnRole is told each role before anything else is done under it. It must not
	// block. May be nil.
	OnRole func(Role)
	// OnLease is told each change of a lease: its beginning and renewals before
	// anything is done under them, its end when the role was taken back and the
	// instance is silent, before anybody else hears of that. It must not block. May
	// be nil.
	OnLease func(LeaseChange)
}

// Holder keeps the lease of one group beside one instance. Its methods may be
// called by many goroutines; Run must be called once.
type Holder struct {
	cfg Config
	log *slog.Logger
	// events brings what happened to the loop. Nobody closes it.
	events chan event
	// exit is closed by Run when it reads no more events.
	exit    chan struct{}
	started atomic.Bool
	ids     atomic.Uint64
	// loading admits one Load at a time.
	loading chan struct{}

	// mu guards snap and news.
	mu   sync.Mutex
	snap Snapshot
	// news is closed, and replaced, when snap changes.
	news chan struct{}
}

// New checks the configuration; it does no I/O.
func New(cfg Config) (*Holder, error) {
	if cfg.Group == "" {
		cfg.Group = hastate.DefaultGroup
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.Boot{}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.OnRole == nil {
		cfg.OnRole = func(Role) {}
	}
	if cfg.OnLease == nil {
		cfg.OnLease = func(LeaseChange) {}
	}
	switch {
	case cfg.NodeID == "" || len(cfg.NodeID) > hastate.MaxNameBytes:
		return nil, fmt.Errorf("%w: node id %q must have 1 to %d bytes", hastate.ErrInvalid, cfg.NodeID, hastate.MaxNameBytes)
	case len(cfg.Group) > hastate.MaxNameBytes:
		return nil, fmt.Errorf("%w: group %q must have at most %d bytes", hastate.ErrInvalid, cfg.Group, hastate.MaxNameBytes)
	case len(cfg.Address) > hastate.MaxURIBytes:
		return nil, fmt.Errorf("%w: address of the instance must have at most %d bytes", hastate.ErrInvalid, hastate.MaxURIBytes)
	case cfg.Instance == nil || cfg.State == nil || cfg.Proposer == nil:
		return nil, fmt.Errorf("%w: a holder needs an instance, the state and a proposer", hastate.ErrInvalid)
	}
	if err := cfg.Profile.Validate(); err != nil {
		return nil, fmt.Errorf("%w: profile %q: %w", hastate.ErrInvalid, cfg.Profile.Name, err)
	}
	h := &Holder{
		cfg:     cfg,
		log:     cfg.Logger.With("group", cfg.Group),
		events:  make(chan event, 64),
		exit:    make(chan struct{}),
		loading: make(chan struct{}, 1),
		news:    make(chan struct{}),
	}
	h.snap = Snapshot{Group: cfg.Group, NodeID: cfg.NodeID, Phase: phaseIdle.String()}
	return h, nil
}

// Status is how the holder stands.
func (h *Holder) Status() Snapshot {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.snap
}

// Primary reports whether the instance may be given requests as the primary at
// this moment, and under which epoch. It is to be asked for each request: it
// reads the clock.
func (h *Holder) Primary() (epoch uint64, ok bool) {
	s := h.Status()
	// The clock is read last: what was read before can only have become less true.
	return s.Role.Epoch, s.Role.Kind == RolePrimary && h.cfg.Clock.Now() < s.ValidUntil
}

// publish replaces the snapshot.
func (h *Holder) publish(s Snapshot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.snap = s
	close(h.news)
	h.news = make(chan struct{})
}

// watchSnapshot returns the snapshot and a channel that is closed when there is
// another.
func (h *Holder) watchSnapshot() (Snapshot, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.snap, h.news
}

// Canvass says how the instance stands as a candidate.
func (h *Holder) Canvass(context.Context) *pb.CanvassResponse {
	s := h.Status()
	applied, _ := h.cfg.State.Applied()
	reason := s.Status.Reason
	if !s.Known {
		reason = "it has not reported yet"
	}
	return &pb.CanvassResponse{
		Present:      true,
		State:        s.Status.State,
		Reason:       cut(reason),
		ModelDigest:  s.Status.Model.GetDigest(),
		AppliedIndex: applied,
		Load:         s.Status.InFlight + s.Status.Queued,
		Tags:         h.cfg.Tags,
		Unwilling:    s.Stopping || h.cfg.Clock.Now() < s.UnwillingUntil,
	}
}

// Nominate asks for consent to a grant. With prepare it first brings the
// instance to READY if it can; that may take until ctx ends.
func (h *Holder) Nominate(ctx context.Context, req *pb.NominateRequest) *pb.NominateResponse {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, DefaultPromoteTimeout)
		defer cancel()
	}
	if err := h.prepare(ctx, req); err != nil {
		return &pb.NominateResponse{Reason: cut(fmt.Sprintf("prepare the instance: %v", err))}
	}
	for {
		id := h.ids.Add(1)
		got, err := h.ask(ctx, id, evNominate{id: id, req: req})
		if err != nil {
			return &pb.NominateResponse{Reason: err.Error()}
		}
		r := got.(*pb.NominateResponse)
		if r.GetReason() != reasonUnclean || !h.awaitClean(ctx) {
			return r
		}
	}
}

// awaitClean waits until the instance is no longer unclean: then a nomination that
// was refused for that is worth another question. That the group was ever granted
// may be news to this node, and the Demote that follows takes no time.
func (h *Holder) awaitClean(ctx context.Context) bool {
	for {
		s, news := h.watchSnapshot()
		if !s.Unclean {
			return true
		}
		select {
		case <-news:
		case <-ctx.Done():
			return false
		case <-h.exit:
			return false
		}
	}
}

// Granted takes notice of a committed grant.
func (h *Holder) Granted(ctx context.Context, group *pb.Group) {
	if group.GetName() != h.cfg.Group {
		return
	}
	h.tell(ctx, evRecord{group: group})
}

// Fence gives up the lease of an epoch, if it is held here; it answers when the
// instance is silent.
func (h *Holder) Fence(ctx context.Context, req *pb.FenceRequest) *pb.FenceResponse {
	id := h.ids.Add(1)
	got, err := h.ask(ctx, id, evFence{id: id, req: req})
	if err != nil {
		return &pb.FenceResponse{Reason: err.Error()}
	}
	return got.(*pb.FenceResponse)
}

// Handoff gives up the lease in good order, and for good: running work may
// finish for as long as drain says, then the group is released so that another
// node takes over. From now on this node takes no lease.
func (h *Holder) Handoff(ctx context.Context, drain time.Duration) error {
	id := h.ids.Add(1)
	if _, err := h.ask(ctx, id, evHandoff{id: id, drain: drain}); err != nil {
		return fmt.Errorf("hand off group %q: %w", h.cfg.Group, err)
	}
	return nil
}

// question is an event whose answer somebody waits for.
type question struct {
	event
	id uint64
	// answer has room for one value.
	answer chan any
}

func (h *Holder) ask(ctx context.Context, id uint64, ev event) (any, error) {
	q := question{event: ev, id: id, answer: make(chan any, 1)}
	if !h.tell(ctx, q) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%w: the holder was stopped", hastate.ErrClosed)
	}
	select {
	case got := <-q.answer:
		return got, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-h.exit:
		select {
		case got := <-q.answer:
			return got, nil
		default:
			return nil, fmt.Errorf("%w: the holder was stopped", hastate.ErrClosed)
		}
	}
}

// tell brings an event to the loop and reports whether it did.
func (h *Holder) tell(ctx context.Context, ev event) bool {
	select {
	case <-h.exit:
		return false
	default:
	}
	select {
	case h.events <- ev:
		return true
	case <-ctx.Done():
		return false
	case <-h.exit:
		return false
	}
}

// prepare brings the instance to READY with the model that the group wants, if
// that was asked for and the instance can be told to.
func (h *Holder) prepare(ctx context.Context, req *pb.NominateRequest) error {
	s := h.Status()
	held := s.Phase != phaseIdle.String() && s.Phase != phaseFenced.String()
	if !req.GetPrepare() || held || s.Stopping || !h.preparable(s) {
		return nil // the machine answers
	}
	select {
	case h.loading <- struct{}{}:
		defer func() { <-h.loading }()
	case <-ctx.Done():
		return ctx.Err()
	}
	g, _ := h.cfg.State.Group(h.cfg.Group)
	err := h.cfg.Instance.Load(ctx, g.GetDesiredModel())
	if errors.Is(err, hastate.ErrPrecondition) {
		return nil // it cannot be told to; Promote has to do it
	}
	if err != nil {
		return err
	}
	for {
		s, news := h.watchSnapshot()
		if !h.preparable(s) {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return fmt.Errorf("it was loaded but is %s: %w", stateName(s.Status.State), ctx.Err())
		case <-h.exit:
			return hastate.ErrClosed
		}
	}
}

// preparable reports whether the instance could be made a better candidate.
func (h *Holder) preparable(s Snapshot) bool {
	switch s.Status.State {
	case pb.InstanceState_INSTANCE_STATE_WARM, pb.InstanceState_INSTANCE_STATE_LIVE:
		return true
	case pb.InstanceState_INSTANCE_STATE_LOADING:
		return s.Known
	case pb.InstanceState_INSTANCE_STATE_READY:
		g, _ := h.cfg.State.Group(h.cfg.Group)
		want := g.GetDesiredModel().GetDigest()
		return want != "" && s.Status.Model.GetDigest() != want
	}
	return false
}
