// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"errors"
	"fmt"
	"time"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// abort ends the lease here and now and begins to silence the instance. The gate
// is told first. release: the epoch is then released in the log.
func (m *machine) abort(now clock.Instant, reason string, release bool) {
	h, f := &m.hold, &m.fence
	drained := m.phase == phaseDraining && reason == f.reason
	m.lease = m.lease.Ended()
	m.over = max(m.over, m.lease.Epoch())
	m.setRole(RoleStandby)
	m.phase = phaseFencing
	f.since = min(f.since, now)
	f.release = f.release || release
	if f.reason == "" || f.demoting {
		f.reason = reason
	}
	m.ended = f.reason
	if drained {
		m.logf("epoch %d ends: %s", m.lease.Epoch(), f.reason)
	} else {
		m.warnf("epoch %d ends: %s", m.lease.Epoch(), f.reason)
	}
	if !h.touched || m.gone(now) {
		m.silenced(now)
		return
	}
	f.demoting = false // an earlier one, which drains, is not waited for
	f.demoteAt = now
	if h.promoting {
		// A Promote and a Demote that overtake each other could leave the instance
		// promoted: wait a moment for the cancelled call to return.
		m.do(actCancelPromote{})
		f.demoteAt = now.Add(h.margin / 4)
	}
	if !m.canKill {
		return
	}
	f.killAt = now.Add(h.margin / 2)
	if !f.sick {
		// The others wait for the end of the lease anyway: until then a slow
		// instance may obey.
		f.killAt = max(f.killAt, m.lease.FenceAt(h.margin/2))
	}
}

// drain lets the instance finish its work under the lease, which goes on being
// renewed, and then ends it.
func (m *machine) drain(now clock.Instant, limit time.Duration, reason string) {
	if m.phase != phaseServing || limit <= 0 {
		m.abort(now, reason, m.fence.release)
		return
	}
	f := &m.fence
	m.phase = phaseDraining
	f.since, f.reason, f.drain = min(f.since, now), reason, limit
	m.setRole(RoleDraining)
	m.logf("epoch %d: the instance drains, at most %v: %s", m.lease.Epoch(), limit, reason)
	if m.hold.promoting {
		m.do(actCancelPromote{}) // Demote follows when it has returned
		f.demoteAt = now.Add(m.hold.margin)
		return
	}
	f.demoteAt = now
}

func (m *machine) tickDraining(now clock.Instant) {
	f := &m.fence
	if now >= f.demoteAt && !f.demoting {
		m.demote(pb.DemoteMode_DEMOTE_MODE_DRAIN, f.drain, f.drain+m.hold.margin)
	}
	if f.demoting && now >= m.hold.touchAt && !m.hold.promoting {
		// An instance that counts the lease itself would cut off its work at the end
		// of what it has counted. A Demote that such a repetition may have overtaken
		// proves nothing: another one follows it.
		f.clean = false
		m.tickTouch(now)
	}
}

func (m *machine) demote(mode pb.DemoteMode, deadline, timeout time.Duration) {
	m.calls++
	m.fence.call, m.fence.demoting, m.fence.demoteAt = m.calls, true, never
	m.fence.clean = !m.hold.promoting
	m.do(actDemote{epoch: m.lease.Epoch(), call: m.calls, mode: mode, deadline: deadline, timeout: timeout})
}

// gone reports whether the process that may have been promoted is certainly gone.
// A report that is about as old as the end of a Promote call proves nothing: the
// call may have reached a process that came after.
func (m *machine) gone(now clock.Instant) bool {
	return m.status.Gone && !m.hold.promoting && now > m.hold.promoteEnd.Add(goneSettle)
}

func (m *machine) tickFencing(now clock.Instant) {
	f := &m.fence
	if m.gone(now) {
		m.silenced(now)
		return
	}
	if now >= f.demoteAt && !f.demoting {
		limit := m.hold.margin
		if f.tries > 0 {
			// It is late already. An instance that takes longer than the margin would
			// never be silenced, and never be a candidate again.
			limit = max(limit, m.profile.Lease)
		}
		m.demote(pb.DemoteMode_DEMOTE_MODE_ABORT, limit, limit)
	}
	if now >= f.killAt && !f.killing {
		f.killing, f.killAt = true, never
		m.warnf("epoch %d: the instance does not obey Demote: kill it", m.lease.Epoch())
		m.do(actKill{epoch: m.lease.Epoch(), reason: f.reason, timeout: max(m.hold.margin, time.Second)})
	}
}

// promoteReturned goes on when the last Promote call under the epoch is out of
// the way. That the process was seen to be gone is not enough then: the call may
// have reached the one that came after it.
func (m *machine) promoteReturned(now clock.Instant) {
	// A Demote that was sent before Promote returned proves nothing.
	if f := &m.fence; !f.demoting || !f.clean {
		f.demoting, f.demoteAt = false, now
	}
}

// apply goes on after Demote.
func (e evDemoted) apply(m *machine, now clock.Instant) {
	if e.call == m.clean.call {
		m.cleaned(now, e)
		return
	}
	f := &m.fence
	if e.epoch != m.lease.Epoch() || e.call != f.call || !f.demoting {
		return
	}
	f.demoting = false
	if newer, ok := newestOf(e.err); ok {
		// It is silent under this epoch, but who promoted it under a newer one?
		e.err = nil
		defer m.soil(newer)
	}
	switch m.phase {
	case phaseDraining:
		if e.err != nil {
			m.abort(now, f.reason, f.release)
			m.warnf("epoch %d: the instance could not drain: %v", e.epoch, e.err)
			return
		}
		if !f.clean {
			m.abort(now, f.reason, f.release) // Promote may have overtaken Demote
			return
		}
		m.lease = m.lease.Ended()
		m.over = max(m.over, e.epoch)
		m.setRole(RoleStandby)
		m.ended = f.reason
		m.silenced(now)
	case phaseFencing:
		switch {
		case e.err != nil:
			f.demoteAt = now.Add(retryAfter(f.tries, firstRetry, lastRetry))
			f.tries++
			if f.tries == 1 {
				m.warnf("epoch %d: Demote failed: %v", e.epoch, e.err)
			}
			if m.canKill && f.sick {
				f.killAt = min(f.killAt, now)
			}
		case f.clean:
			m.silenced(now)
		case !m.hold.promoting:
			f.demoteAt = now
		}
	}
}

// apply goes on after the fence of last resort.
func (e evKilled) apply(m *machine, now clock.Instant) {
	f := &m.fence
	if e.epoch != m.lease.Epoch() || m.phase != phaseFencing {
		return
	}
	f.killing = false
	if e.err == nil {
		m.silenced(now)
		return
	}
	m.warnf("epoch %d: the instance could not be killed: %v", e.epoch, e.err)
	f.tries++
	f.killAt = now.Add(retryAfter(f.tries, firstRetry, lastRetry))
}

// silenced: the lease is over and the instance does nothing under its epoch.
func (m *machine) silenced(now clock.Instant) {
	f := &m.fence
	m.phase = phaseFenced
	m.clean.needed = false
	m.silent = max(m.silent, m.lease.Epoch())
	f.demoteAt, f.killAt = never, never
	for _, id := range f.waiters {
		m.do(actAnswer{id: id, response: &pb.FenceResponse{Fenced: true}})
	}
	f.waiters = nil
	m.logf("epoch %d is fenced", m.lease.Epoch())
	switch {
	case f.inLog:
		m.toIdle()
	case f.release:
		f.releaseAt = now
	default:
		f.releaseAt = now.Add(handoverWait)
	}
}

func (m *machine) tickFenced(now clock.Instant) {
	f := &m.fence
	if now < f.releaseAt || f.releasing {
		return
	}
	f.releasing = true
	reason := f.reason
	if !f.release {
		reason += ", and no handover followed"
	}
	m.do(actRelease{timeout: m.hold.call, cmd: &pb.Release{
		Group: m.group, Holder: m.node, Epoch: m.lease.Epoch(), Reason: cut(reason), PromoteFailed: f.promoteFailed,
		DetectMs: clock.Millis(now.Sub(f.since)),
	}})
}

// apply goes on after a Release proposal.
func (e evReleased) apply(m *machine, now clock.Instant) {
	if m.phase != phaseFenced || e.epoch != m.lease.Epoch() {
		return
	}
	f := &m.fence
	f.releasing = false
	if e.outcome != unknown {
		m.toIdle()
		return
	}
	f.tries++
	f.releaseAt = now.Add(retryAfter(f.tries, firstRetry, lastRetry))
}

// toIdle: the log knows that the epoch is over.
func (m *machine) toIdle() {
	m.phase = phaseIdle
	m.lease = m.lease.Ended()
	for _, id := range m.handoffs {
		m.do(actAnswer{id: id})
	}
	m.handoffs = nil
}

// apply answers a Fence, at once or when the instance is silent.
func (e evFence) apply(m *machine, now clock.Instant) {
	epoch, f := e.req.GetEpoch(), &m.fence
	no := func(format string, args ...any) {
		m.do(actAnswer{id: e.id, response: &pb.FenceResponse{Reason: fmt.Sprintf(format, args...)}})
	}
	switch {
	case epoch != 0 && epoch == m.silent:
		m.do(actAnswer{id: e.id, response: &pb.FenceResponse{Fenced: true}})
	case epoch == 0 || epoch != m.lease.Epoch() || m.phase == phaseIdle:
		no("epoch %d is not held here, the newest that was is %d", epoch, m.lease.Epoch())
	case len(f.waiters) >= maxWaiters:
		no("%d requests to fence epoch %d wait already", len(f.waiters), epoch)
	default:
		f.waiters = append(f.waiters, e.id)
		reason := e.req.GetReason()
		if reason == "" {
			reason = "fenced by request of the leader"
		}
		limit := time.Duration(e.req.GetDrainMs()) * time.Millisecond
		switch {
		case m.phase == phaseDraining && limit == 0:
			m.abort(now, reason, f.release)
		case m.phase == phaseDraining || m.phase == phaseFencing:
		default:
			m.drain(now, limit, reason)
		}
	}
}

// apply gives up the lease in good order, and for good.
func (e evHandoff) apply(m *machine, now clock.Instant) {
	m.stopping = true
	if m.phase == phaseIdle || len(m.handoffs) >= maxWaiters {
		m.do(actAnswer{id: e.id})
		return
	}
	m.handoffs = append(m.handoffs, e.id)
	m.fence.release = true
	switch m.phase {
	case phasePromoting, phaseServing:
		m.drain(now, e.drain, reasonStopping)
	case phaseFenced:
		m.fence.releaseAt = min(m.fence.releaseAt, now)
	}
}

const reasonStopping = "node stopping"

// apply gives up the lease at once, and for good.
func (evStop) apply(m *machine, now clock.Instant) {
	m.stopping = true
	m.fence.release = true
	switch {
	case m.held():
		m.abort(now, reasonStopping, true)
	case m.phase == phaseFenced:
		m.fence.releaseAt = min(m.fence.releaseAt, now)
	}
}

func isFenced(err error) bool { return errors.Is(err, hastate.ErrFenced) }

// newestOf is the newest epoch that a server that refuses an older one knows.
func newestOf(err error) (uint64, bool) {
	var fenced *hastate.FencedError
	if !errors.As(err, &fenced) {
		return 0, isFenced(err)
	}
	return fenced.NewestEpoch, true
}
