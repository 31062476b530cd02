// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"errors"
	"time"

	"github.com/hastate/hastate/election"
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// event is something that happened. apply changes the machine and appends the
// actions that follow at once; what follows from the time is for tick.
type event interface {
	apply(m *machine, now clock.Instant)
}

// errLapsed: the lease had run out when the loop was about to call Promote.
var errLapsed = errors.New("the lease has run out")

// outcome is how a proposal ended.
type outcome int

const (
	// unknown: it may or may not be in the log. It proves nothing.
	unknown outcome = iota
	// accepted: it is committed and has taken effect.
	accepted
	// refused: it is committed and had no effect.
	refused
)

type (
	// evTimer: the time of wake has come.
	evTimer struct{}
	// evInfo: the instance said what it can.
	evInfo struct{ info Info }
	// evStatus: the instance stands so.
	evStatus struct{ status Status }
	// evRecord: the group's record, from the own log or from Granted. It is
	// committed.
	evRecord struct{ group *pb.Group }
	// evNominate: a leader asks for consent. The event's time is q.
	evNominate struct {
		id  uint64
		req *pb.NominateRequest
	}
	// evFence: a leader asks the holder to give up.
	evFence struct {
		id  uint64
		req *pb.FenceRequest
	}
	// evHandoff: this node stops in good order.
	evHandoff struct {
		id    uint64
		drain time.Duration
	}
	// evStop: this process ends.
	evStop struct{}
	// evRenewed: a renewal of epoch, with q read before it was sent, has ended.
	evRenewed struct {
		epoch, newest uint64
		q             clock.Instant
		outcome       outcome
	}
	// evPromoted: a Promote call has returned.
	evPromoted struct {
		epoch uint64
		model *pb.ModelRef
		err   error
		// touch: it was a repetition for an instance that counts the lease itself.
		touch bool
		// until is the end of the lease that the instance was told.
		until clock.Instant
	}
	// evDemoted: the Demote call number call has returned.
	evDemoted struct {
		epoch uint64
		call  int
		err   error
	}
	// evKilled: the fence of last resort has returned.
	evKilled struct {
		epoch uint64
		err   error
	}
	// evServed: a Serving proposal has ended.
	evServed struct {
		epoch, newest uint64
		outcome       outcome
	}
	// evReleased: a Release proposal has ended.
	evReleased struct {
		epoch   uint64
		outcome outcome
	}
)

// action is what the loop is to do. Its result comes back as an event.
type action any

type (
	// actRole publishes a role; PRIMARY only if lease is valid at that moment.
	actRole struct {
		role  Role
		lease election.Lease
	}
	// actRenew proposes a renewal. q was read when the event was.
	actRenew struct {
		epoch   uint64
		q       clock.Instant
		timeout time.Duration
	}
	// actPromote calls Promote if lease is valid at that moment.
	actPromote struct {
		lease   election.Lease
		margin  time.Duration
		model   *pb.ModelRef
		timeout time.Duration
		touch   bool
	}
	// actCancelPromote ends the Promote call that is under way.
	actCancelPromote struct{}
	// actDemote calls Demote and ends any earlier Demote call.
	actDemote struct {
		epoch    uint64
		call     int
		mode     pb.DemoteMode
		deadline time.Duration
		timeout  time.Duration
	}
	// actKill calls the fence of last resort.
	actKill struct {
		epoch   uint64
		reason  string
		timeout time.Duration
	}
	// actServe proposes Serving if lease is valid at that moment.
	actServe struct {
		lease   election.Lease
		cmd     *pb.Serving
		timeout time.Duration
	}
	// actRelease proposes a Release.
	actRelease struct {
		cmd     *pb.Release
		timeout time.Duration
	}
	// actAnswer answers a request: a *pb.NominateResponse, a *pb.FenceResponse,
	// or nil for a handoff.
	actAnswer struct {
		id       uint64
		response any
	}
	// actLog is for people.
	actLog struct {
		warn bool
		text string
	}
)
