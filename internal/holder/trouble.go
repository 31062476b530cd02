// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"fmt"

	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// apply looks whether the instance can still do what it is held for.
func (e evStatus) apply(m *machine, now clock.Instant) {
	const down = pb.InstanceState_INSTANCE_STATE_DOWN
	back := m.known && m.status.State == down && e.status.State != down
	m.status, m.known = e.status, true
	if back {
		m.comeBack(now)
	}
	m.clean.epoch = max(m.clean.epoch, e.status.Epoch)
	switch m.phase {
	case phasePromoting, phaseServing, phaseDraining:
		m.observe(now)
		if why := m.trouble(); why != "" {
			m.fence.sick = true
			m.abort(now, why, true)
		}
	case phaseFencing:
		if m.gone(now) {
			m.silenced(now)
		}
	}
}

// comeBack: what the instance could not be told while it was down it is told at once.
func (m *machine) comeBack(now clock.Instant) {
	m.clean.at, m.clean.tries = min(m.clean.at, now), 0
	if m.phase == phaseFencing && !m.fence.demoting {
		m.fence.demoteAt = min(m.fence.demoteAt, now)
	}
}

// observe notes what the instance has shown since it was promoted.
func (m *machine) observe(now clock.Instant) {
	h, s := &m.hold, m.status
	if m.phase != phaseServing {
		return
	}
	h.sawReady = h.sawReady || s.State == pb.InstanceState_INSTANCE_STATE_READY
	h.sawEpoch = h.sawEpoch || s.Epoch == m.lease.Epoch()
	switch {
	case s.State != pb.InstanceState_INSTANCE_STATE_LOADING:
		h.loadingSince = never
	case h.loadingSince == never:
		h.loadingSince = now
	}
}

// trouble is why the instance cannot go on under the lease, empty if it can.
func (m *machine) trouble() string {
	s, serving := m.status, m.phase == phaseServing
	why := func(text string) string {
		if s.Reason != "" {
			return text + ": " + s.Reason
		}
		return text
	}
	switch {
	case !m.known:
		return ""
	case s.Gone:
		return why("the instance's process is gone")
	case s.State == pb.InstanceState_INSTANCE_STATE_FAILED:
		return why("the instance has failed")
	case s.State == pb.InstanceState_INSTANCE_STATE_DOWN:
		return why("the instance is down")
	case s.Epoch > m.lease.Epoch():
		return fmt.Sprintf("the instance has seen epoch %d", s.Epoch)
	case serving && m.hold.sawReady && s.State == pb.InstanceState_INSTANCE_STATE_LOADING:
		return why("the instance was restarted")
	case serving && m.hold.sawEpoch && s.Epoch != m.lease.Epoch():
		return why("the instance has lost its epoch: it was restarted")
	}
	return ""
}

// loadingEnd is until when a primary may report LOADING if it has not been
// READY since it was promoted: the report may be older than the promotion.
func (m *machine) loadingEnd() clock.Instant {
	if m.hold.loadingSince == never {
		return never
	}
	return m.hold.loadingSince.Add(m.lease.TTL())
}

func (m *machine) stuckLoading(now clock.Instant) string {
	if now < m.loadingEnd() {
		return ""
	}
	return "the instance does not become READY after its promotion"
}
