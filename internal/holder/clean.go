// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const reasonUnclean = "its instance may still serve under an older epoch: it is demoted first"

// cleaning is about an instance that may be promoted under an epoch that this
// process does not hold: a former process of this node may have ended without
// demoting it, and may not have applied its own grant to the state that is found
// now. As long as that is possible the instance is no candidate, or it would go
// on serving under an epoch that is counted as given away.
type cleaning struct {
	needed bool
	// start: nothing but a former process is the reason, so that an instance that
	// remembers an epoch and says that it is a standby is believed. Without an epoch
	// it may be its adapter that says so, which is as new as this process.
	start bool
	// epoch is the newest that is known; 0: nothing was ever granted.
	epoch uint64
	// call is the number of the Demote call under way, 0 if there is none.
	call  int
	tries int
	at    clock.Instant
}

// soil: the instance may be promoted under epoch, or a lower one.
func (m *machine) soil(epoch uint64) {
	m.clean.needed, m.clean.start = true, false
	m.clean.epoch = max(m.clean.epoch, epoch)
}

// unclean reports whether the instance may be promoted without a lease. epoch is
// one that the asker knows of.
func (m *machine) unclean(epoch uint64) bool {
	m.clean.epoch = max(m.clean.epoch, epoch)
	return m.clean.needed && m.clean.epoch > 0
}

// tickCleaning demotes the instance while nothing is held.
func (m *machine) tickCleaning(now clock.Instant) {
	c := &m.clean
	if !c.needed || c.call != 0 {
		return
	}
	if m.gone(now) || (c.start && m.status.Epoch > 0 && m.status.Role == pb.Role_ROLE_STANDBY) {
		c.needed = false
		return
	}
	if c.epoch == 0 || now < c.at {
		return
	}
	m.calls++
	c.call = m.calls
	m.do(actDemote{
		epoch: c.epoch, call: c.call, mode: pb.DemoteMode_DEMOTE_MODE_ABORT,
		deadline: m.profile.Lease, timeout: m.profile.Lease,
	})
}

// cleaned goes on after such a Demote.
func (m *machine) cleaned(now clock.Instant, e evDemoted) {
	c := &m.clean
	c.call = 0
	newest, refused := newestOf(e.err)
	switch {
	case e.err == nil:
		c.needed, c.tries = false, 0
		m.logf("the instance is a standby: nothing was held here")
		return
	case refused && newest > c.epoch:
		c.epoch = newest
	default:
		if c.tries == 0 && m.status.State != pb.InstanceState_INSTANCE_STATE_DOWN {
			m.warnf("the instance cannot be made a standby, it is no candidate until it can: %v", e.err)
		}
		c.at = now.Add(retryAfter(c.tries, firstRetry, lastRetry))
		c.tries++
	}
}
