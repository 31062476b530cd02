// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hastate/hastate/testcluster/chaos/rig"
)

const modelFamily = "model"

func modelFaults() []fault {
	const family = modelFamily
	return []fault{
		{kind: "model-hang", family: family, aimed: true, weight: 4, what: "the primary's model server hangs, its /health still says 200", inject: primaryModel(`{"hang":true}`, "hangs", true)},
		{kind: "model-saturated", family: family, weight: 2, harmless: true, what: "the primary's model server is saturated and healthy", inject: primaryModel(`{"saturated":true}`, "is saturated", false)},
		{kind: "model-late-status", family: family, weight: 2, harmless: true, what: "every status of the primary's model server is late by more than half an interval", inject: primaryModel(`{"status_ms":800}`, "sends a status every 800 ms, not 500", false)},
		{kind: "model-prefill", family: family, weight: 2, harmless: true, what: "the primary's model server takes seconds for a prefill", inject: primaryModel(`{"prefill_ms":2500}`, "prefills for 2.5 s", false)},
		{kind: "model-lie", family: family, weight: 1, what: "a model server lies about its epoch and role", inject: lyingModel},
		{kind: "model-crash-on-promote", family: family, aimed: true, exits: crashedAsTold, weight: 3, what: "the standbys' model servers crash when they are promoted", inject: badStandby(`{"crash_on_promote":true}`, "crash on Promote", 1)},
		{kind: "model-slow-promote", family: family, aimed: true, weight: 2, what: "a Promote times out and succeeds later", inject: badStandby(`{"promote":"slow","slow_ms":4000}`, "take 4 s for Promote", 1)},
		{kind: "model-refuse", family: family, aimed: true, weight: 2, what: "the standbys refuse to be promoted", inject: badStandby(`{"promote":"refuse"}`, "refuse Promote", 2)},
		{kind: "model-stops-late", family: family, exits: stoppedAsTold, weight: 2, alone: true, what: "a primary's model server shuts down in an orderly way, refusing connections while it works on, and its node is restarted", inject: modelStopsLate},
		{kind: "model-ignore-promote", family: family, aimed: true, weight: 2, what: "the standbys answer Promote as done and do nothing", inject: badStandby(`{"promote":"ignore"}`, "answer Promote and do nothing", 2)},
	}
}

// primaryModel puts the primary's model server into a state.
func primaryModel(control, what string, lost bool) func(context.Context, *stage, *draw) (broken, error) {
	return func(ctx context.Context, s *stage, d *draw) (broken, error) {
		group := d.group(s)
		h := s.primary(ctx, group)
		if h == nil {
			return broken{}, errNobody
		}
		b := broken{what: fmt.Sprintf("the model server of %s at %s %s", group, h.NodeID(), what), hold: d.above() + d.lease}
		if lost {
			b.lost = []string{group}
		}
		return b, h.ModelControl(ctx, group, []byte(control))
	}
}

// modelStopsLate restarts the node of a model server that accepts no connections any
// more and serves on over those that it has, for the rest of its lease. The new process
// sees refused connections only, and must not take them for the server's end.
func modelStopsLate(ctx context.Context, s *stage, d *draw) (broken, error) {
	group, late := d.group(s), 1.5+d.Float64()
	h := s.primary(ctx, group)
	if h == nil {
		return broken{}, errNobody
	}
	b := broken{
		what: fmt.Sprintf("the model server of %s at %s shuts down, and its node is restarted", group, h.NodeID()),
		lost: []string{group}, spared: s.elsewhere(ctx, h), hold: 3 * d.lease,
	}
	stop := fmt.Sprintf(`{"stop_late_ms":%d}`, time.Duration(late*float64(d.lease)).Milliseconds())
	if err := h.ModelControl(ctx, group, []byte(stop)); err != nil {
		return b, err
	}
	if err := s.kill(true, false, h); err != nil {
		return b, err
	}
	return b, s.startNode(h)
}

func lyingModel(ctx context.Context, s *stage, d *draw) (broken, error) {
	group, h := d.group(s), d.host(s)
	return broken{what: fmt.Sprintf("the model server of %s at %s lies about its epoch", group, h.NodeID()), hold: d.above()},
		h.ModelControl(ctx, group, []byte(`{"lie_epoch":true}`))
}

// badStandby makes some standbys of a group bad at being promoted, then takes the
// primary's model server away: one that can be promoted must be found, if there
// is one, or found again when they are put right.
func badStandby(control, what string, most int) func(context.Context, *stage, *draw) (broken, error) {
	return func(ctx context.Context, s *stage, d *draw) (broken, error) {
		group := d.group(s)
		primary := s.primary(ctx, group)
		if primary == nil {
			return broken{}, errNobody
		}
		var bad []*rig.Host
		for _, h := range s.members {
			if h != primary && len(bad) < most {
				bad = append(bad, h)
			}
		}
		var errs []error
		for _, h := range bad {
			errs = append(errs, h.ModelControl(ctx, group, []byte(control)))
		}
		b := broken{
			what: fmt.Sprintf("the model servers of %s at %s %s, that of the primary %s is killed", group, names(bad), what, primary.NodeID()),
			lost: []string{group}, hold: d.lease/2 + time.Duration(d.IntN(2000))*time.Millisecond,
		}
		if p := primary.Model(group); p != nil {
			errs = append(errs, p.Kill())
		}
		return b, errors.Join(errs...)
	}
}
