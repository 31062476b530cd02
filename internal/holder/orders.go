// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"context"
	"fmt"
	"time"
)

func (l *loop) promote(a actPromote) {
	timeout, end := a.timeout, a.lease.FenceAt(a.margin)
	if a.touch {
		// Late news of a lease that has ended since must not reach the instance.
		timeout = min(timeout, max(end.Sub(l.cfg.Clock.Now()), 0))
	}
	l.cancelPromote = l.call(timeout, func(ctx context.Context) event {
		ev := evPromoted{epoch: a.lease.Epoch(), touch: a.touch}
		// Before our own clock is read: so the server's lease, counted from this reading,
		// ends before ours does, however long the order is under way and whether or not
		// this process is there when it arrives.
		reading, age, err := l.readClock(ctx, a)
		now := l.cfg.Clock.Now()
		ev.until = end.Add(-age)
		left := end.Sub(now)
		switch {
		case !a.lease.ValidAt(now) || left < time.Millisecond:
			ev.err = errLapsed
			return ev
		case err != nil:
			ev.err = err
			return ev
		case left <= age: // by that reading the lease is over
			ev.err = fmt.Errorf("its clock could not be read in time: the newest reading is %v old, %v are left of the lease", age.Round(time.Millisecond), left.Round(time.Millisecond))
			return ev
		}
		ev.model, ev.err = l.cfg.Instance.Promote(ctx, Promotion{Group: l.cfg.Group, Epoch: ev.epoch, Lease: left, Clock: reading, Model: a.model})
		return ev
	})
}

// readClock reads the server's clock. To wait for a newer reading costs as much of the
// lease as the age of an older one does; half of what is left is for the order.
func (l *loop) readClock(ctx context.Context, a actPromote) (reading uint64, age time.Duration, err error) {
	left := a.lease.FenceAt(a.margin).Sub(l.cfg.Clock.Now())
	ctx, cancel := context.WithTimeout(ctx, max(left, 0)/2)
	defer cancel()
	return l.cfg.Instance.Clock(ctx, readingAge(a))
}

// readingAge is how old a reading of the server's clock may be: what is lost of the
// lease. The answer to each renewal brings a new one; for a promotion the server is
// asked.
func readingAge(a actPromote) time.Duration {
	if a.touch {
		return a.lease.TTL() / 4
	}
	return a.lease.TTL() / 32
}

func (l *loop) demote(a actDemote) {
	l.cancelDemote()
	l.cancelDemote = l.call(a.timeout, func(ctx context.Context) event {
		err := l.cfg.Instance.Demote(ctx, Demotion{Group: l.cfg.Group, Epoch: a.epoch, Mode: a.mode, Deadline: a.deadline})
		return evDemoted{epoch: a.epoch, call: a.call, err: err}
	})
}
