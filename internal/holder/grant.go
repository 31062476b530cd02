// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hastate/hastate/election"
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// apply answers a nomination. now is q: it was read before the answer.
func (e evNominate) apply(m *machine, now clock.Instant) {
	why := m.refusal(now, e.req)
	if why == "" {
		m.consent(now, e.req)
	}
	m.do(actAnswer{id: e.id, response: &pb.NominateResponse{Consent: why == "", Reason: why}})
}

func (m *machine) refusal(now clock.Instant, req *pb.NominateRequest) string {
	state, forced := m.status.State, req.GetForce()
	switch newest := max(m.rec.GetEpoch(), m.lease.Epoch(), m.over); {
	case req.GetNomination() == 0:
		return "the nomination has no number"
	case m.stopping:
		return "the node is stopping"
	case req.GetEpoch() < newest:
		return fmt.Sprintf("epoch %d is known here, the leader sees %d", newest, req.GetEpoch())
	case m.held():
		return fmt.Sprintf("it holds epoch %d", m.lease.Epoch())
	case m.phase == phaseFencing:
		return fmt.Sprintf("its instance still has to be silenced after epoch %d", m.lease.Epoch())
	case m.unclean(req.GetEpoch()):
		return reasonUnclean
	case !m.known:
		return "its instance has not reported yet"
	case state == pb.InstanceState_INSTANCE_STATE_READY:
	case state != pb.InstanceState_INSTANCE_STATE_WARM && state != pb.InstanceState_INSTANCE_STATE_LIVE:
		return fmt.Sprintf("its instance is %s: %s", stateName(state), m.status.Reason)
	case !req.GetPrepare() && !forced:
		return fmt.Sprintf("its instance is %s, not READY", stateName(state))
	}
	if now < m.unwillingUntil && !forced {
		return "it backs off after a failed promotion"
	}
	return ""
}

func (m *machine) consent(q clock.Instant, req *pb.NominateRequest) {
	if slices.ContainsFunc(m.consents, func(c consent) bool { return c.number == req.GetNomination() }) {
		return // the first q stands: it is the earlier one
	}
	if len(m.consents) == maxConsents {
		m.consents = slices.Delete(m.consents, 0, 1)
	}
	m.consents = append(m.consents, consent{number: req.GetNomination(), q: q, forced: req.GetForce()})
}

// apply takes notice of a committed record of the group.
func (e evRecord) apply(m *machine, now clock.Instant) {
	if e.group == nil || (m.rec != nil && older(e.group, m.rec)) {
		return
	}
	m.rec = e.group
	m.clean.epoch = max(m.clean.epoch, e.group.GetEpoch())
	epoch := m.lease.Epoch()
	if m.phase == phaseIdle || e.group.GetEpoch() < epoch {
		return
	}
	vacant := e.group.GetPhase() == pb.GroupPhase_GROUP_PHASE_VACANT
	switch {
	case e.group.GetEpoch() > epoch:
		m.overInLog(now, fmt.Sprintf("epoch %d was granted to %s", e.group.GetEpoch(), e.group.GetHolder()))
	case vacant || e.group.GetHolder() != m.node:
		m.overInLog(now, fmt.Sprintf("epoch %d was released", epoch))
	case e.group.GetRevoked():
		m.revoked(now, revokedReason(e.group))
	case e.group.GetPhase() == pb.GroupPhase_GROUP_PHASE_SERVING:
		m.hold.served, m.hold.serveAt = true, never
	}
}

// older reports whether a was written before b.
func older(a, b *pb.Group) bool {
	if a.GetEpoch() != b.GetEpoch() {
		return a.GetEpoch() < b.GetEpoch()
	}
	if a.GetRevision() != b.GetRevision() {
		return a.GetRevision() < b.GetRevision()
	}
	return a.GetLastRenew() < b.GetLastRenew()
}

// overInLog ends an epoch that the log has moved past.
func (m *machine) overInLog(now clock.Instant, reason string) {
	if m.held() {
		m.abort(now, reason, false)
	}
	m.fence.inLog = true
	if m.phase == phaseFenced {
		m.toIdle()
	}
}

// revoked ends an epoch that the log does not renew any more.
func (m *machine) revoked(now clock.Instant, reason string) {
	if m.held() {
		m.abort(now, reason, true)
		return
	}
	m.fence.release = true
	if m.phase == phaseFenced {
		m.fence.releaseAt = min(m.fence.releaseAt, now)
	}
}

// revokedReason is why the epoch of a record was revoked.
func revokedReason(g *pb.Group) string {
	return cmp.Or(g.GetReleaseReason(), "epoch revoked by an operator")
}

// reconsider takes up the grant in the record if there is one for this node and
// nothing is left of an older one.
func (m *machine) reconsider(now clock.Instant) {
	g := m.rec
	// A Demote that cleans up must not overtake the Promote that would follow.
	if m.phase != phaseIdle || m.clean.call != 0 || g == nil || g.GetHolder() != m.node || g.GetEpoch() <= m.over ||
		g.GetPhase() == pb.GroupPhase_GROUP_PHASE_VACANT {
		return
	}
	ttl := time.Duration(g.GetTtlMs()) * time.Millisecond
	m.hold, m.fence = freshHold(m.profile, ttl), freshFence()
	m.hold.took, m.hold.touched = now, m.clean.needed
	i := slices.IndexFunc(m.consents, func(c consent) bool { return c.number == g.GetNomination() })
	if i < 0 || g.GetNomination() == 0 {
		// Granted to a former process of this node, or forgotten. It is never acted
		// under: silence whatever the instance still does and give it back.
		m.lease = election.NewLease(m.group, g.GetEpoch(), ttl, 0)
		m.hold.touched, m.hold.promoteEnd = true, now
		m.abort(now, "the node was restarted", true)
		return
	}
	c := m.consents[i]
	m.consents = nil
	m.lease = election.NewLease(m.group, g.GetEpoch(), ttl, c.q)
	m.hold.forced = c.forced
	switch {
	case g.GetRevoked():
		m.abort(now, revokedReason(g), true)
	case now >= m.lease.FenceAt(m.hold.margin):
		m.abort(now, "the grant came too late", true)
	case m.stopping:
		m.abort(now, "the node is stopping", true)
	case m.trouble() != "":
		m.abort(now, m.trouble(), true)
	default:
		m.promote(now)
	}
}

func (m *machine) promote(now clock.Instant) {
	h := &m.hold
	m.phase = phasePromoting
	h.touched, h.promoting = true, true
	h.nextRenew, h.asked = now, m.rec.GetDesiredModel()
	timeout := time.Duration(m.rec.GetPolicy().GetPromoteTimeoutMs()) * time.Millisecond
	if timeout == 0 {
		timeout = DefaultPromoteTimeout
	}
	m.setRole(RoleStandby)
	m.logf("epoch %d is granted: promote the instance", m.lease.Epoch())
	m.do(actPromote{lease: m.lease, margin: h.margin, model: h.asked, timeout: timeout})
}

// apply goes on after Promote.
func (e evPromoted) apply(m *machine, now clock.Instant) {
	if m.phase == phaseIdle || e.epoch != m.lease.Epoch() {
		m.latePromote(e)
		return
	}
	m.hold.promoting, m.hold.promoteEnd = false, now
	switch m.phase {
	case phasePromoting:
		m.firstPromoted(now, e)
	case phaseServing:
		m.touched(now, e)
	case phaseDraining:
		if !m.fence.demoting {
			m.fence.demoteAt = now
		}
		// A refusal says that Demote is done, and its answer says so too.
	case phaseFencing:
		m.promoteReturned(now)
	case phaseFenced:
		m.latePromote(e)
	}
}

// latePromote: a Promote returned with success after its epoch had ended and the
// instance had been killed or was gone. The call may have reached a new process.
func (m *machine) latePromote(e evPromoted) {
	if e.err == nil && !m.held() {
		m.soil(e.epoch)
	}
}

func (m *machine) firstPromoted(now clock.Instant, e evPromoted) {
	h := &m.hold
	err := e.err
	if errors.Is(err, errLapsed) {
		m.abort(now, "the lease had run out before the instance could be promoted", true)
		return
	}
	if want := h.asked.GetDigest(); err == nil && want != "" && e.model.GetDigest() != want && !h.forced {
		err = fmt.Errorf("it serves model %q, the group wants %q", e.model.GetDigest(), want)
	}
	if err != nil {
		m.unwillingUntil = now.Add(retryAfter(m.failures, firstBackoff, lastBackoff))
		m.failures++
		m.fence.promoteFailed = true
		m.abort(now, fmt.Sprintf("promotion failed: %v", err), true)
		return
	}
	m.failures, m.unwillingUntil = 0, 0
	m.phase = phaseServing
	m.clean.needed = false // what it served under before, it does not any more
	h.promoted, h.promotedAt, h.promoteMS = e.model, now, clock.Millis(now.Sub(h.took))
	h.serveAt = now
	m.beginTouch(now, max(e.until, now.Add(h.call)))
	if now < m.lease.FenceAt(h.margin) {
		m.setRole(RolePrimary)
		m.logf("epoch %d: the instance is primary after %d ms", m.lease.Epoch(), h.promoteMS)
	}
}

// beginTouch lets Promote be repeated for an instance that counts the lease
// itself. What it counts began with the first call, maybe long ago: it is told
// again at once, and believed to count until then at the most.
func (m *machine) beginTouch(now, until clock.Instant) {
	if m.phase == phaseServing && !m.hold.counted() && m.info.Has(pb.Capability_CAPABILITY_LEASE) {
		m.hold.touchAt, m.hold.countsUntil = now, min(until, m.lease.FenceAt(m.hold.margin))
	}
}

// counted reports whether the instance counts the lease itself.
func (h *hold) counted() bool { return h.countsUntil != never }

// tickTouch repeats Promote when that is due: once for each renewal, and again
// after one that failed.
func (m *machine) tickTouch(now clock.Instant) {
	h := &m.hold
	if now >= h.touchAt && !h.promoting {
		h.promoting, h.touchAt = true, never
		m.do(actPromote{lease: m.lease, margin: h.margin, model: h.asked, timeout: h.call, touch: true})
	}
}

// touched goes on after a repeated Promote.
func (m *machine) touched(now clock.Instant, e evPromoted) {
	switch {
	case e.err == nil:
		m.hold.countsUntil = max(m.hold.countsUntil, e.until)
	case isFenced(e.err):
		m.abort(now, fmt.Sprintf("the instance refuses the epoch: %v", e.err), true)
	default:
		m.hold.touchAt = min(m.hold.touchAt, now.Add(m.hold.renew/2))
	}
}

// apply goes on after a Serving proposal.
func (e evServed) apply(m *machine, now clock.Instant) {
	if m.phase != phaseServing || e.epoch != m.lease.Epoch() {
		return
	}
	h := &m.hold
	h.serving = false
	switch {
	case e.outcome == accepted:
		h.served = true
	case h.served:
	case e.outcome == refused:
		m.abort(now, fmt.Sprintf("epoch %d is refused by the log", e.epoch), e.newest == e.epoch)
	default:
		h.serveAt = now.Add(retryAfter(h.serveTries, firstRetry, h.renew))
		h.serveTries++
	}
}

// apply goes on after a renewal.
func (e evRenewed) apply(m *machine, now clock.Instant) {
	if !m.held() || e.epoch != m.lease.Epoch() {
		return
	}
	h := &m.hold
	h.renewals--
	switch e.outcome {
	case accepted:
		m.lease = m.lease.Renewed(e.epoch, e.q)
		if h.counted() {
			// An instance that counts the lease hears of it now: after a slow renewal it
			// may be about to have counted to the end.
			h.touchAt = min(h.touchAt, now)
		}
	case refused:
		m.abort(now, fmt.Sprintf("epoch %d is not renewed by the log", e.epoch), e.newest == e.epoch)
	case unknown:
		// It extends nothing. The next one may go sooner: there was no leader, or
		// it has changed.
		h.nextRenew = min(h.nextRenew, now.Add(h.renew/4))
	}
}

func (evTimer) apply(*machine, clock.Instant) {}

func (e evInfo) apply(m *machine, now clock.Instant) {
	m.info = e.info
	m.beginTouch(now, never)
}

func stateName(s pb.InstanceState) string {
	const prefix = "INSTANCE_STATE_"
	return s.String()[min(len(prefix), len(s.String())):]
}
