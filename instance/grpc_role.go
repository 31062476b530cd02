// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"context"
	"fmt"
	"time"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func (g *grpcInstance) Promote(ctx context.Context, p Promotion) (*pb.ModelRef, error) {
	p, err := p.checked()
	if err != nil {
		return nil, err
	}
	client, _, err := g.client()
	if err != nil {
		return nil, err
	}
	ctx, cancel := withDeadline(ctx, DefaultPromoteTimeout)
	defer cancel()
	call, cancelCall := reserve(ctx, g.cfg.Timeout)
	resp, err := client.Promote(call, &pb.PromoteRequest{
		Group: p.Group, Epoch: p.Epoch, LeaseMs: uint32(p.Lease.Milliseconds()), Model: p.Model, ClockUs: p.Clock,
	})
	cancelCall()
	g.heardClock(resp.GetClockUs())
	switch {
	case err == nil:
		return g.verify(ctx, p, resp.GetModel())
	case outcomeUnknown(err):
		return g.afterUnknownPromote(ctx, p, err)
	}
	return nil, fmt.Errorf("promote instance %s: %w", g.cfg.Target, hastate.FromStatus(err))
}

// afterUnknownPromote reads the status once and decides.
func (g *grpcInstance) afterUnknownPromote(ctx context.Context, p Promotion, cause error) (*pb.ModelRef, error) {
	unknown := &hastate.OutcomeUnknownError{Reason: fmt.Sprintf("promote instance %s under epoch %d: %v", g.cfg.Target, p.Epoch, cause)}
	if ctx.Err() != nil {
		return nil, unknown
	}
	if gone, err := g.gone(ctx); gone {
		return nil, fmt.Errorf("promote instance %s: %w: its process is gone: %w", g.cfg.Target, hastate.ErrPrecondition, err)
	}
	st, full, err := g.current(ctx)
	if err != nil || !full || st.Epoch < p.Epoch {
		return nil, unknown
	}
	if st.Epoch > p.Epoch {
		return nil, &hastate.FencedError{Group: p.Group, Epoch: p.Epoch, NewestEpoch: st.Epoch}
	}
	if st.Role != pb.Role_ROLE_PRIMARY || !g.serving(st, p.Epoch) {
		return nil, unknown
	}
	return g.accept(p, nil, st)
}

// verify looks at a server that has said that it is promoted (G7).
func (g *grpcInstance) verify(ctx context.Context, p Promotion, answered *pb.ModelRef) (*pb.ModelRef, error) {
	st, full, err := g.current(ctx)
	if err != nil {
		return nil, &hastate.OutcomeUnknownError{Reason: fmt.Sprintf("instance %s said that it is promoted under epoch %d and then did not answer: %v", g.cfg.Target, p.Epoch, err)}
	}
	if full && st.Epoch > p.Epoch {
		return nil, &hastate.FencedError{Group: p.Group, Epoch: p.Epoch, NewestEpoch: st.Epoch}
	}
	if full && (st.Epoch != p.Epoch || st.Role != pb.Role_ROLE_PRIMARY) {
		return nil, fmt.Errorf("promote instance %s: %w: it said that it is promoted under epoch %d, its status says %v under epoch %d",
			g.cfg.Target, hastate.ErrPrecondition, p.Epoch, st.Role, st.Epoch)
	}
	if !g.serving(st, p.Epoch) {
		return nil, fmt.Errorf("promote instance %s: %w: it said that it is promoted under epoch %d, its status says %v (%s)",
			g.cfg.Target, hastate.ErrPrecondition, p.Epoch, st.State, st.Reason)
	}
	return g.accept(p, answered, st)
}

// serving: READY, or DRAINING if the promotion only repeats one that was
// verified.
func (g *grpcInstance) serving(st Status, epoch uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return st.State == pb.InstanceState_INSTANCE_STATE_READY ||
		(st.State == pb.InstanceState_INSTANCE_STATE_DRAINING && g.verified == epoch)
}

// accept checks the model and remembers that epoch is verified.
func (g *grpcInstance) accept(p Promotion, answered *pb.ModelRef, st Status) (*pb.ModelRef, error) {
	served, err := matchModel(p.Model, answered, st.Models)
	if err != nil {
		return nil, fmt.Errorf("promote instance %s: %w", g.cfg.Target, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.verified = p.Epoch
	return served, nil
}

// matchModel finds the model that is served. If a digest was asked for and the
// server names any model at all, one that it names must have the digest: the
// answer of Promote if it named one, and one of those in memory.
func matchModel(asked, answered *pb.ModelRef, inMemory []*pb.ModelRef) (*pb.ModelRef, error) {
	want := asked.GetDigest()
	wrong := func(m *pb.ModelRef) error {
		return fmt.Errorf("%w: it serves model %q version %q digest %q, the group asks for digest %q: load that model, or change the group's",
			hastate.ErrPrecondition, m.GetName(), m.GetVersion(), m.GetDigest(), want)
	}
	if want != "" && answered != nil && answered.GetDigest() != want {
		return nil, wrong(answered)
	}
	if len(inMemory) == 0 {
		return answered, nil
	}
	for _, m := range inMemory {
		if want != "" && m.GetDigest() == want {
			return m, nil
		}
	}
	if want != "" {
		return nil, wrong(inMemory[0])
	}
	if answered != nil {
		return answered, nil
	}
	return inMemory[0], nil
}

func (g *grpcInstance) Demote(ctx context.Context, d Demotion) error {
	d, err := d.checked()
	if err != nil {
		return err
	}
	client, _, err := g.client()
	if err != nil {
		return err
	}
	// The server ends the work at the deadline; its answer may take as long as a
	// look.
	ctx, cancel := context.WithTimeout(ctx, d.Deadline+2*g.cfg.Timeout)
	defer cancel()
	call, cancelCall := reserve(ctx, g.cfg.Timeout)
	_, err = client.Demote(call, &pb.DemoteRequest{
		Group: d.Group, Epoch: d.Epoch, Mode: d.Mode, DeadlineMs: uint32(d.Deadline.Milliseconds()),
	})
	cancelCall()
	switch {
	case err == nil:
		return nil
	case outcomeUnknown(err):
		return g.afterUnknownDemote(ctx, d, err)
	}
	return fmt.Errorf("demote instance %s: %w", g.cfg.Target, hastate.FromStatus(err))
}

// afterUnknownDemote reads the status once and decides. A process that is gone
// does no work.
func (g *grpcInstance) afterUnknownDemote(ctx context.Context, d Demotion, cause error) error {
	unknown := &hastate.OutcomeUnknownError{Reason: fmt.Sprintf("demote instance %s under epoch %d: %v", g.cfg.Target, d.Epoch, cause)}
	if ctx.Err() != nil {
		return unknown
	}
	if gone, _ := g.gone(ctx); gone {
		return nil
	}
	st, full, err := g.current(ctx)
	if err == nil && full && st.Role == pb.Role_ROLE_STANDBY && st.Epoch >= d.Epoch && st.InFlight == 0 {
		return nil
	}
	return unknown
}

// current takes one fresh look. full is true if the server reported its whole
// status, false if only its health is known.
func (g *grpcInstance) current(ctx context.Context) (st Status, full bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, g.cfg.Timeout)
	defer cancel()
	client, conn, err := g.client()
	if err != nil {
		return Status{}, false, err
	}
	info, err := g.knownInfo(ctx, client)
	if err != nil {
		return Status{}, false, err
	}
	if !info.Has(pb.Capability_CAPABILITY_STATUS) {
		e := g.health(ctx, conn)
		if e.kind == failed {
			return Status{}, false, fmt.Errorf("%w: %s", hastate.ErrPrecondition, e.reason)
		}
		if e.kind == unready {
			e.status = Status{State: pb.InstanceState_INSTANCE_STATE_LIVE, Reason: e.reason}
		}
		return e.status, false, nil
	}
	stream, err := client.WatchStatus(ctx, &pb.WatchStatusRequest{IntervalMs: g.intervalMillis()})
	if err != nil {
		return Status{}, false, fmt.Errorf("read status of instance %s: %w", g.cfg.Target, fromCall(err))
	}
	msg, err := stream.Recv()
	if err != nil {
		return Status{}, false, fmt.Errorf("read status of instance %s: %w", g.cfg.Target, fromCall(err))
	}
	return statusOf(msg), true, nil
}

func (g *grpcInstance) intervalMillis() uint32 {
	return uint32(max(g.cfg.Interval, time.Millisecond).Milliseconds())
}
