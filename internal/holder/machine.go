// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"fmt"
	"math"
	"time"

	"github.com/hastate/hastate/election"
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Limits of one machine.
const (
	// maxConsents bounds the nominations that are remembered; a grant for a
	// forgotten one is released, not taken up.
	maxConsents = 8
	// maxRenewals bounds the renewals under way.
	maxRenewals = 3
	// maxWaiters bounds the Fence requests, and the handoffs, that wait.
	maxWaiters = 16
	// handoverWait is how long a holder that was asked to fence itself waits for
	// the Handover before it releases.
	handoverWait = 2 * time.Second
	// DefaultPromoteTimeout is for groups whose policy has none.
	DefaultPromoteTimeout = 10 * time.Second
	// goneSettle is for how long after a Promote call a report that the process is
	// gone is not relied on.
	goneSettle = time.Second

	firstRetry, lastRetry     = 20 * time.Millisecond, time.Second
	firstBackoff, lastBackoff = time.Second, 30 * time.Second
)

// never is later than every instant.
const never = clock.Instant(math.MaxInt64)

// phase is where the holder stands with the epoch of its lease.
type phase int

const (
	// phaseIdle: there is no epoch that anything is to be done about.
	phaseIdle phase = iota
	// phasePromoting: the lease is held, Promote is under way.
	phasePromoting
	// phaseServing: the lease is held and the instance promoted.
	phaseServing
	// phaseDraining: the lease is held, the instance finishes its work.
	phaseDraining
	// phaseFencing: the lease is over here, the instance is being silenced.
	phaseFencing
	// phaseFenced: the instance is silent; the epoch waits to be handed over or
	// released in the log.
	phaseFenced
)

func (p phase) String() string {
	return [...]string{"idle", "promoting", "serving", "draining", "fencing", "fenced"}[p]
}

// consent is an answered nomination.
type consent struct {
	number uint64
	// q was read before the answer.
	q      clock.Instant
	forced bool
}

// machine decides. It is driven by one goroutine.
type machine struct {
	node, group string
	profile     election.Profile
	// canKill: there is a fence of last resort.
	canKill bool

	info   Info
	status Status
	known  bool
	// rec is the newest record of the group that was seen; nil before the first.
	rec      *pb.Group
	consents []consent
	stopping bool
	// failures counts failed promotions since one succeeded.
	failures       int
	unwillingUntil clock.Instant

	// lease is the current one; the zero Lease when idle and before the first.
	lease election.Lease
	phase phase
	hold  hold
	fence fence
	clean cleaning
	// over is the newest epoch that this process will not act under (again).
	over uint64
	// silent is the newest epoch that was held here and whose instance was
	// silenced after.
	silent uint64
	// handoffs wait until nothing is held any more.
	handoffs []uint64
	// ended is why the last lease ended, for people.
	ended string
	role  Role
	calls int
	out   []action
}

// hold is what belongs to one lease, from the grant to idle.
type hold struct {
	renew, margin, call time.Duration
	forced              bool
	// took is when the grant was taken up.
	took clock.Instant
	// touched: Promote was called under this epoch, or may have been by a former
	// process.
	touched bool
	// promoting: a Promote call has not returned.
	promoting bool
	// promoteEnd is when the last Promote call returned.
	promoteEnd clock.Instant
	renewals   int
	nextRenew  clock.Instant
	// asked is the model that Promote was called with, promoted what is served.
	asked     *pb.ModelRef
	promoted  *pb.ModelRef
	promoteMS uint64
	// promotedAt is when the first Promote had returned.
	promotedAt clock.Instant
	// Serving record: on its way, in the log, when to propose it again.
	serving, served bool
	serveAt         clock.Instant
	serveTries      int
	// For instances that count the lease themselves.
	touchAt, countsUntil clock.Instant
	// What the instance has reported since it was promoted.
	sawReady, sawEpoch bool
	loadingSince       clock.Instant
}

// fence is how the current lease is brought to its end.
type fence struct {
	reason string
	// since is the first sign of trouble.
	since clock.Instant
	// release: the holder releases as soon as the instance is silent. Otherwise
	// the epoch waits for a Handover first.
	release, promoteFailed bool
	// sick: it is the instance that is in trouble, so it is not given much time.
	sick bool
	// drain is how long running work may take.
	drain time.Duration
	// inLog: the log has moved past the epoch; there is nothing to release.
	inLog bool
	// call is the number of the newest Demote call; demoting: it has not
	// returned; clean: no Promote call was under way when it was sent.
	call            int
	demoting, clean bool
	demoteAt        clock.Instant
	killAt          clock.Instant
	killing         bool
	tries           int
	releaseAt       clock.Instant
	releasing       bool
	waiters         []uint64
}

func newMachine(node, group string, p election.Profile, canKill bool) *machine {
	return &machine{
		node: node, group: group, profile: p, canKill: canKill, hold: freshHold(p, p.Lease), fence: freshFence(),
		clean: cleaning{needed: true, start: true},
	}
}

func freshHold(p election.Profile, ttl time.Duration) hold {
	return hold{
		renew: min(p.Renew, ttl/4), margin: min(p.FenceMargin, ttl/4), call: ttl / 3,
		nextRenew: never, serveAt: never, touchAt: never, countsUntil: never, loadingSince: never,
	}
}

func freshFence() fence {
	return fence{demoteAt: never, killAt: never, releaseAt: never, since: never}
}

// step takes one event and everything that the time now calls for.
func (m *machine) step(now clock.Instant, ev event) []action {
	m.out = nil
	ev.apply(m, now)
	m.tick(now)
	return m.out
}

// held reports whether the lease counts as held: it is renewed, and its end is
// watched.
func (m *machine) held() bool {
	return m.phase == phasePromoting || m.phase == phaseServing || m.phase == phaseDraining
}

// quiet reports whether nothing is left to be done.
func (m *machine) quiet() bool { return m.phase == phaseIdle && len(m.handoffs) == 0 }

// tick does what is due. Each step may bring the machine into the next phase, so
// the order is that of a lease's life.
func (m *machine) tick(now clock.Instant) {
	m.reconsider(now)
	if m.held() && now >= m.lease.FenceAt(m.hold.margin) {
		m.abort(now, "the lease could not be renewed in time", true)
	}
	if m.held() {
		m.tickHeld(now)
	}
	if m.phase == phaseFencing {
		m.tickFencing(now)
	}
	if m.phase == phaseFenced {
		m.tickFenced(now)
	}
	m.reconsider(now)
	if m.phase == phaseIdle {
		m.tickCleaning(now)
	}
}

func (m *machine) tickHeld(now clock.Instant) {
	h := &m.hold
	if now >= h.nextRenew && h.renewals < maxRenewals {
		h.renewals++
		h.nextRenew = now.Add(h.renew)
		m.do(actRenew{epoch: m.lease.Epoch(), q: now, timeout: h.call})
	}
	if m.phase == phaseDraining {
		m.tickDraining(now)
	}
	if m.phase != phaseServing {
		return
	}
	if why := m.stuckLoading(now); why != "" {
		m.fence.sick = true
		m.abort(now, why, true)
		return
	}
	if now >= h.countsUntil {
		m.fence.sick = true
		m.abort(now, "the instance has counted its lease to the end: no repeated Promote reached it", true)
		return
	}
	if now >= h.serveAt && !h.serving {
		h.serving, h.serveAt = true, never
		m.do(actServe{lease: m.lease, timeout: h.call, cmd: &pb.Serving{
			Group: m.group, Holder: m.node, Epoch: m.lease.Epoch(), PromoteMs: h.promoteMS, Model: cutModel(h.promoted),
			ServeMs: clock.Millis(now.Sub(h.promotedAt)),
		}})
	}
	m.tickTouch(now)
}

// wake is when step wants to be called again, at the latest.
func (m *machine) wake() clock.Instant {
	h, f := &m.hold, &m.fence
	at := never
	switch m.phase {
	case phaseIdle:
		if m.clean.needed && m.clean.epoch > 0 && m.clean.call == 0 {
			at = m.clean.at
		}
	case phasePromoting, phaseServing, phaseDraining:
		at = m.lease.FenceAt(h.margin)
		if h.renewals < maxRenewals {
			at = min(at, h.nextRenew)
		}
		if m.phase == phaseDraining && !f.demoting {
			at = min(at, f.demoteAt)
		}
		if m.phase == phaseDraining && f.demoting && !h.promoting {
			at = min(at, h.touchAt)
		}
		if m.phase == phaseServing {
			at = min(at, h.countsUntil, m.loadingEnd())
			if !h.serving {
				at = min(at, h.serveAt)
			}
			if !h.promoting {
				at = min(at, h.touchAt)
			}
		}
	case phaseFencing:
		if !f.demoting {
			at = min(at, f.demoteAt)
		}
		if !f.killing {
			at = min(at, f.killAt)
		}
		if m.status.Gone && !h.promoting {
			at = min(at, h.promoteEnd.Add(goneSettle+1))
		}
	case phaseFenced:
		if !f.releasing {
			at = f.releaseAt
		}
	}
	return at
}

func (m *machine) do(a action) { m.out = append(m.out, a) }

func (m *machine) setRole(k RoleKind) {
	r := Role{Kind: k, Epoch: m.lease.Epoch()}
	if r == m.role {
		return
	}
	m.role = r
	m.do(actRole{role: r, lease: m.lease})
}

// logf is for what people want to know.
func (m *machine) logf(format string, args ...any) {
	m.do(actLog{text: fmt.Sprintf(format, args...)})
}

func (m *machine) warnf(format string, args ...any) {
	m.do(actLog{warn: true, text: fmt.Sprintf(format, args...)})
}

// retryAfter is a back-off that doubles from first to last.
func retryAfter(tries int, first, last time.Duration) time.Duration {
	d := first
	for range tries {
		if d *= 2; d >= last {
			return last
		}
	}
	return d
}
