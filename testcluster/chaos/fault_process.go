// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math"
	"syscall"
	"time"

	"github.com/hastate/hastate/testcluster/chaos/rig"
)

func processFaults() []fault {
	const family = "process"
	return []fault{
		{kind: "kill-node", family: family, weight: 4, what: "SIGKILL of a node; its model server has to stop by itself", inject: killing(true, false)},
		{kind: "kill-model", family: family, aimed: true, weight: 8, what: "SIGKILL of the model servers beside a node", inject: killing(false, true)},
		{kind: "kill-host", family: family, weight: 6, what: "SIGKILL of a node and its model servers, as if the host were lost", inject: killing(true, true)},
		{kind: "kill-all", family: family, weight: 1, what: "SIGKILL of everything at once", inject: killAll},
		{kind: "restart-node", family: family, weight: 3, what: "SIGKILL of a node that is started again at once, within its lease", inject: restartNode},
		{kind: "crash-loop", family: family, weight: 1, what: "a node is killed again and again just after it has started", inject: crashLoop},
		{kind: "pause-node", family: family, weight: 3, what: "SIGSTOP of a node, for less and for more than a lease", inject: pausing(true, false)},
		{kind: "pause-model", family: family, weight: 3, what: "SIGSTOP of the model servers beside a node", inject: pausing(false, true)},
		{kind: "late-promote", family: family, weight: 1, alone: true, what: "a primary's model server is stopped with a renewal in its socket, its node is killed, and it goes on when another is the primary", inject: latePromote},
		{kind: "pause-host", family: family, weight: 3, what: "SIGSTOP of a node and its model servers", inject: pausing(true, true)},
	}
}

// killing kills a target for a while; nodes so that the lease runs out.
func killing(node, model bool) func(context.Context, *stage, *draw) (broken, error) {
	return func(ctx context.Context, s *stage, d *draw) (broken, error) {
		h, who := d.target(ctx, s)
		b := broken{what: "SIGKILL at " + who, lost: s.held(ctx, h), spared: s.elsewhere(ctx, h), hold: d.above()}
		if !node {
			b.hold = time.Duration(float64(d.lease) * (0.2 + 0.3*d.Float64()))
		}
		return b, s.kill(node, model, h)
	}
}

func killAll(_ context.Context, s *stage, d *draw) (broken, error) {
	return broken{what: "SIGKILL of everything", hold: time.Duration(d.IntN(300)) * time.Millisecond}, s.kill(true, true, s.members...)
}

func restartNode(ctx context.Context, s *stage, d *draw) (broken, error) {
	h, who := d.target(ctx, s)
	b := broken{what: "restart of " + who, spared: s.elsewhere(ctx, h), hold: d.lease}
	if err := s.kill(true, d.IntN(3) == 0, h); err != nil {
		return b, err
	}
	return b, s.startHost(h)
}

func crashLoop(ctx context.Context, s *stage, d *draw) (broken, error) {
	h, who := d.target(ctx, s)
	b := broken{what: "crash loop of " + who, spared: s.elsewhere(ctx, h), hold: 0}
	b.then = func(ctx context.Context) error {
		for range 4 {
			if err := s.kill(true, false, h); err != nil {
				return err
			}
			if err := s.startNode(h); err != nil {
				return err
			}
			if err := sleep(ctx, time.Duration(50+d.IntN(600))*time.Millisecond); err != nil {
				return err
			}
		}
		return s.kill(true, false, h)
	}
	return b, nil
}

// pausing stops processes. Longer than the lease, the primary is lost.
func pausing(node, model bool) func(context.Context, *stage, *draw) (broken, error) {
	return func(ctx context.Context, s *stage, d *draw) (broken, error) {
		h, who := d.target(ctx, s)
		b := broken{what: "SIGSTOP at " + who, spared: s.elsewhere(ctx, h), hold: d.around()}
		if float64(b.hold) > 2*float64(d.lease) {
			b.lost = s.held(ctx, h)
		}
		b.what = fmt.Sprintf("%s for %v", b.what, b.hold.Round(time.Millisecond))
		b.then = func(context.Context) error { return s.signal(syscall.SIGCONT, node, model, h) }
		return b, s.signal(syscall.SIGSTOP, node, model, h)
	}
}

// clockFaults: the wall clock is for people only, so that nothing may depend on
// it; the rate of the monotonic clock may be off by one in a hundred.
func clockFaults() []fault {
	const family = "clock"
	return []fault{
		{kind: "wall-clock", family: family, weight: 2, harmless: true, what: "the wall clock of a node jumps by hours, back or forth", inject: func(ctx context.Context, s *stage, d *draw) (broken, error) {
			h, who := d.target(ctx, s)
			by := time.Duration(d.IntN(48*3600)-24*3600) * time.Second
			return broken{what: fmt.Sprintf("the wall clock of %s jumps by %v", who, by), hold: d.lease}, h.SetWallOffset(ctx, by)
		}},
		{kind: "clock-rate", family: family, weight: 2, alone: true, what: "every process is started anew with a clock that is up to 1 % fast or slow", inject: clockRate(0.01)},
		{kind: "clock-rate-5", family: family, alone: true, what: "clocks that are 5 % off, which breaks the assumption: the checks must notice", inject: clockRate(0.05)},
	}
}

// clockRate gives each host a rate at the bound, one way or the other, and loses
// the primary's node: its model server counts the lease on a clock of its own
// rate.
func clockRate(off float64) func(context.Context, *stage, *draw) (broken, error) {
	return func(ctx context.Context, s *stage, d *draw) (broken, error) {
		slow := s.primary(ctx, d.group(s))
		b := broken{what: fmt.Sprintf("clocks that are %g %% off", off*100), hold: 0}
		for _, h := range s.members {
			rate := 1 + off
			if h == slow || off < 0.02 && d.IntN(2) == 0 {
				rate = 1 - off
			}
			h.SetClockRate(rate)
			if err := s.restart(h); err != nil {
				return b, err
			}
		}
		b.then = func(ctx context.Context) error {
			if err := s.waitWhole(ctx); err != nil {
				return err
			}
			// The slow one is the primary again where that can be had.
			for _, g := range s.groups {
				_ = s.switchover(ctx, g, nodeID(slow), memberTimeout) // an attempt
			}
			if slow == nil {
				return nil
			}
			if err := s.kill(true, false, slow); err != nil {
				return err
			}
			return sleep(ctx, time.Duration(math.Round(2.5*float64(d.lease))))
		}
		return b, nil
	}
}

func nodeID(h *rig.Host) string {
	if h == nil {
		return ""
	}
	return h.NodeID()
}

// restart ends a host's processes and starts them again.
func (s *stage) restart(h *rig.Host) error {
	if err := s.kill(true, true, h); err != nil {
		return err
	}
	return s.startHost(h)
}
