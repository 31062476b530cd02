// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate/election"
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const (
	// maxSleep bounds one sleep of the loop: Go's timers stand still while the
	// machine is suspended, the clock of leases does not.
	maxSleep = time.Second
	// reportTimeout is for one report of the instance's record.
	reportTimeout = 2 * time.Second
	// killGrace is how long a stopping holder waits for its last steps beyond the
	// margin.
	killGrace = time.Second
)

// loop drives the machine. Only Run's goroutine touches it, but for wg.
type loop struct {
	*Holder
	m      *machine
	report reporter
	// role is the one that was published.
	role Role
	// told and silent are what OnLease was told last: a lease that is held, and the
	// newest epoch after which the instance was silenced.
	told    LeaseChange
	silent  uint64
	answers map[uint64]chan any
	// ctx ends all calls; it ends after Run's own.
	ctx           context.Context
	cancelPromote context.CancelFunc
	cancelDemote  context.CancelFunc
	wg            sync.WaitGroup
}

// evReported is the end of a report of the instance's record.
type evReported struct{ ok bool }

func (evReported) apply(*machine, clock.Instant) {}

// Run keeps the lease until ctx ends. Then it fences the instance if it is
// primary, releases the group if that is possible in short time, waits for all
// its goroutines and returns ctx's error.
func (h *Holder) Run(ctx context.Context) error {
	if !h.started.CompareAndSwap(false, true) {
		return errors.New("the holder runs, or ran, already")
	}
	calls, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l := &loop{
		Holder: h, ctx: calls,
		m:             newMachine(h.cfg.NodeID, h.cfg.Group, h.cfg.Profile, h.cfg.Kill != nil),
		answers:       map[uint64]chan any{},
		cancelPromote: func() {}, cancelDemote: func() {},
	}
	l.wg.Go(func() { l.watch(calls) })
	l.wg.Go(func() { l.inform(calls) })
	l.run(ctx)
	close(h.exit)
	cancel()
	l.wg.Wait()
	return ctx.Err()
}

func (l *loop) run(ctx context.Context) {
	timer := time.NewTimer(maxSleep)
	defer timer.Stop()
	ending, deadline := ctx.Done(), (<-chan time.Time)(nil)
	for deadline == nil || !l.m.quiet() {
		changed := l.cfg.State.Changed()
		l.look()
		timer.Reset(l.sleep())
		select {
		case <-ending:
			last := time.NewTimer(2*l.cfg.Profile.FenceMargin + l.cfg.Profile.Lease/3 + killGrace)
			defer last.Stop()
			ending, deadline = nil, last.C
			l.step(evStop{})
		case <-deadline:
			l.log.Warn("stopped before the lease was given back: it runs out", "epoch", l.m.lease.Epoch())
			l.publishRole(Role{Epoch: l.role.Epoch}, l.m.lease)
			return
		case ev := <-l.events:
			l.step(ev)
		case <-changed:
		case <-timer.C:
			l.step(evTimer{})
		}
	}
}

// look takes notice of what the log says.
func (l *loop) look() {
	g, ok := l.cfg.State.Group(l.cfg.Group)
	if r := l.m.rec; ok && (r == nil || r.GetRevision() != g.GetRevision() || r.GetEpoch() != g.GetEpoch()) {
		l.step(evRecord{group: g})
	}
	now := l.cfg.Clock.Now()
	l.report.check(now, func() *pb.Instance {
		for _, i := range l.cfg.State.Instances(l.cfg.Group) {
			if i.GetNodeId() == l.cfg.NodeID {
				return i
			}
		}
		return nil
	})
	if i := l.report.due(now); i != nil {
		l.call(reportTimeout, func(ctx context.Context) event {
			res, err := l.cfg.Proposer.Propose(ctx, &pb.Command{Op: &pb.Command_ReportInstance{ReportInstance: &pb.ReportInstance{Instance: i}}})
			return evReported{ok: err == nil && res.GetCode() == pb.ResultCode_RESULT_CODE_OK}
		})
	}
}

func (l *loop) sleep() time.Duration {
	at := min(l.m.wake(), l.report.at())
	now := l.cfg.Clock.Now()
	if at >= now.Add(maxSleep) {
		return maxSleep
	}
	return max(at.Sub(now), 0)
}

// step gives the machine an event and does what it says. The clock is read
// before: for a nomination and for renewals that is q.
func (l *loop) step(ev event) {
	now := l.cfg.Clock.Now()
	if q, ok := ev.(question); ok {
		l.answers[q.id] = q.answer
		ev = q.event
	}
	if e, ok := ev.(evReported); ok {
		l.report.done(now, e.ok)
	}
	actions := l.m.step(now, ev)
	switch ev.(type) {
	case evStatus, evInfo:
		l.report.want = l.record()
	}
	if l.told.Epoch == l.m.lease.Epoch() {
		l.tellHeld() // what is published below counts on the renewal
	}
	// The gate is told first, whatever comes after.
	for _, a := range actions {
		if r, ok := a.(actRole); ok {
			l.publishRole(r.role, r.lease)
		}
	}
	l.tellEnded(now)
	l.tellHeld()
	l.publishSnapshot()
	for _, a := range actions {
		l.act(a)
	}
}

func (l *loop) publishSnapshot() {
	m := l.m
	s := Snapshot{
		Group: l.cfg.Group, NodeID: l.cfg.NodeID, Phase: m.phase.String(), Role: l.role, Epoch: m.lease.Epoch(),
		Known: m.known, Status: m.status, Stopping: m.stopping, UnwillingUntil: m.unwillingUntil, Reason: m.ended,
		Unclean: m.clean.needed && m.clean.epoch > 0,
	}
	if m.held() {
		s.ValidUntil = m.lease.ValidUntil()
	}
	l.publish(s)
}

// record is the instance's record as of now.
func (l *loop) record() *pb.Instance {
	if !l.m.known {
		return nil
	}
	s, info := l.m.status, l.m.info
	engine := info.Engine
	if info.EngineVersion != "" {
		engine += " " + info.EngineVersion
	}
	if s.State == pb.InstanceState_INSTANCE_STATE_UNSPECIFIED {
		s.State = pb.InstanceState_INSTANCE_STATE_DOWN
	}
	r := &pb.Instance{
		Group: l.cfg.Group, NodeId: l.cfg.NodeID, Address: l.cfg.Address, State: s.State, Reason: cut(s.Reason),
		Model: cutModel(s.Model), Tags: l.cfg.Tags, Engine: cut(engine),
	}
	return proto.Clone(r).(*pb.Instance)
}

// act does one action. What takes time is done aside and comes back as an event.
func (l *loop) act(a action) {
	switch a := a.(type) {
	case actRole: // published by step
	case actAnswer:
		if c, ok := l.answers[a.id]; ok {
			delete(l.answers, a.id)
			c <- a.response
		}
	case actLog:
		if a.warn {
			l.log.Warn(a.text)
		} else {
			l.log.Info(a.text)
		}
	case actRenew:
		l.renew(a)
	case actPromote:
		l.promote(a)
	case actCancelPromote:
		l.cancelPromote()
	case actDemote:
		l.demote(a)
	case actKill:
		l.call(a.timeout, func(ctx context.Context) event {
			return evKilled{epoch: a.epoch, err: l.cfg.Kill(ctx, a.reason)}
		})
	case actServe:
		l.serve(a)
	case actRelease:
		l.call(a.timeout, func(ctx context.Context) event {
			res, err := l.cfg.Proposer.Propose(ctx, &pb.Command{Op: &pb.Command_Release{Release: a.cmd}})
			return evReleased{epoch: a.cmd.GetEpoch(), outcome: outcomeOf(res, err)}
		})
	default:
		panic(fmt.Sprintf("holder: no way to do %T", a))
	}
}

// publishRole tells the gate. PRIMARY is only said while the lease is valid.
func (l *loop) publishRole(r Role, lease election.Lease) {
	if r.Kind == RolePrimary && !lease.ValidAt(l.cfg.Clock.Now()) {
		return
	}
	if r == l.role {
		return
	}
	l.role = r
	l.publishSnapshot()
	l.cfg.OnRole(r)
}

// call runs fn aside, with a deadline, and brings its event back.
func (l *loop) call(timeout time.Duration, fn func(context.Context) event) context.CancelFunc {
	ctx, cancel := context.WithTimeout(l.ctx, timeout)
	l.wg.Go(func() {
		defer cancel()
		l.tell(l.ctx, fn(ctx))
	})
	return cancel
}

func outcomeOf(res *pb.Result, err error) outcome {
	if err != nil {
		return unknown
	}
	switch res.GetCode() {
	case pb.ResultCode_RESULT_CODE_OK:
		return accepted
	case pb.ResultCode_RESULT_CODE_FENCED, pb.ResultCode_RESULT_CODE_NOT_FOUND, pb.ResultCode_RESULT_CODE_CONFLICT:
		return refused
	}
	return unknown
}

func (l *loop) renew(a actRenew) {
	cmd := &pb.Command{Op: &pb.Command_Renew{Renew: &pb.RenewBatch{
		Holder: l.cfg.NodeID, Items: []*pb.RenewBatch_Item{{Group: l.cfg.Group, Epoch: a.epoch}},
	}}}
	l.call(a.timeout, func(ctx context.Context) event {
		res, err := l.cfg.Proposer.Propose(ctx, cmd)
		ev := evRenewed{epoch: a.epoch, q: a.q, outcome: outcomeOf(res, err), newest: res.GetEpoch()}
		for _, r := range res.GetRefused() {
			if err == nil && r.GetGroup() == l.cfg.Group {
				ev.outcome, ev.newest = refused, r.GetNewestEpoch()
			}
		}
		return ev
	})
}

func (l *loop) serve(a actServe) {
	l.call(a.timeout, func(ctx context.Context) event {
		ev := evServed{epoch: a.cmd.GetEpoch()}
		if !a.lease.ValidAt(l.cfg.Clock.Now()) {
			return ev
		}
		res, err := l.cfg.Proposer.Propose(ctx, &pb.Command{Op: &pb.Command_Serving{Serving: a.cmd}})
		ev.outcome, ev.newest = outcomeOf(res, err), res.GetEpoch()
		return ev
	})
}

// watch brings the instance's status to the loop until ctx ends.
func (l *loop) watch(ctx context.Context) {
	for tries := 0; ctx.Err() == nil; tries++ {
		err := l.cfg.Instance.Watch(ctx, func(s Status) {
			tries = 0
			l.tell(ctx, evStatus{status: s})
		})
		if ctx.Err() != nil {
			return
		}
		l.log.Warn("the watch of the instance ended", "error", err)
		if tries >= 2 {
			l.tell(ctx, evStatus{status: Status{State: pb.InstanceState_INSTANCE_STATE_DOWN, Reason: cut(fmt.Sprintf("it cannot be watched: %v", err))}})
		}
		if !pause(ctx, retryAfter(tries, firstRetry, lastRetry)) {
			return
		}
	}
}

// inform asks the instance what it can, whenever it has come up.
func (l *loop) inform(ctx context.Context) {
	up, asked := false, false
	for tries := 0; ctx.Err() == nil; {
		s, news := l.watchSnapshot()
		now := s.Known && s.Status.State != pb.InstanceState_INSTANCE_STATE_DOWN
		if now && !up {
			asked, tries = false, 0
		}
		if up = now; up && !asked {
			if asked = l.tellInfo(ctx); !asked {
				if !pause(ctx, retryAfter(tries, firstRetry, lastRetry)) {
					return
				}
				tries++
				continue
			}
		}
		select {
		case <-news:
		case <-ctx.Done():
		}
	}
}

func (l *loop) tellInfo(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	info, err := l.cfg.Instance.Info(ctx)
	if err != nil {
		l.log.Debug("the instance does not say what it is", "error", err)
		return false
	}
	return l.tell(ctx, evInfo{info: info})
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
