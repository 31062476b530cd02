// SPDX-License-Identifier: Apache-2.0

package check

import (
	"strings"
	"testing"
	"time"

	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

// because is a failover for a reason.
func because(reason string) []*pb.Transition {
	return []*pb.Transition{but(moved(2, 3, 7), func(t *pb.Transition) { t.Reason = reason })}
}

// lasting is a failover with phases.
func lasting(reason string, detect, grant, promote, serve uint64) *pb.Transition {
	return but(moved(2, 3, 7), func(t *pb.Transition) {
		t.Reason, t.DetectMs, t.GrantMs, t.PromoteMs, t.ServeMs = reason, detect, grant, promote, serve
	})
}

// toldOf is an event with a transition.
func toldOf(t *pb.Transition) record.GroupEvent {
	e := showed(2000, t.GetEpoch(), servingPhase)
	e.Transition = t
	return e
}

func judgeHistories(t *testing.T, all map[string]chronicle) {
	t.Helper()
	for name, c := range all {
		t.Run(name, func(t *testing.T) {
			v := History(c.transitions, c.faults, c.o)
			switch {
			case c.want == "" && len(v) != 0:
				t.Error(v)
			case c.want != "" && (len(v) != 1 || !strings.Contains(v[0].Text, c.want) || v[0].Check != checkHistory):
				t.Errorf("%v, not %q", v, c.want)
			}
		})
	}
}

func TestHistory_WallClock(t *testing.T) {
	wall := kind(harmless(fault(6000, 7000, 7)), "wall-clock")
	before, after := kind(fault(1000, 5000, 3), "x"), kind(fault(10_000, 15_000, 7), "x")
	faults := []record.Fault{before, wall, after}
	off := func(t *pb.Transition) *pb.Transition {
		return but(t, func(t *pb.Transition) { t.EndedUnixMs -= 3_600_000 })
	}
	judgeHistories(t, map[string]chronicle{
		"after the jump":           {transitions: []*pb.Transition{moved(2, 3, 7), off(moved(3, 7, 9))}, faults: faults},
		"in the jump":              {transitions: []*pb.Transition{moved(2, 3, 7), off(moved(3, 7, 9))}, faults: faults[:2]},
		"in a jump with another":   {transitions: []*pb.Transition{moved(2, 3, 7), off(moved(3, 7, 9))}, faults: []record.Fault{before, kind(wall, "x+wall-clock")}},
		"before the jump":          {transitions: []*pb.Transition{off(moved(2, 3, 7)), moved(3, 7, 9)}, faults: faults, want: "before it was granted"},
		"before all faults":        {transitions: []*pb.Transition{off(moved(1, 0, 3)), moved(2, 3, 7), moved(3, 7, 9)}, faults: faults, want: "before it was granted"},
		"known to all, and before": {transitions: []*pb.Transition{off(moved(2, 3, 7)), moved(3, 7, 9)}, faults: faults, o: HistoryOptions{WallJumped: true}, want: "before it was granted"},
		"events count after it":    {transitions: []*pb.Transition{moved(2, 3, 7), but(off(moved(3, 7, 9)), func(t *pb.Transition) { t.DetectMs = 60_000 })}, faults: faults, o: HistoryOptions{Events: []record.GroupEvent{showed(12_000, 9, servingPhase)}}, want: "but it served 2s after the fault began"},
	})
}

func TestHistory_Phases(t *testing.T) {
	model, host := []record.Fault{kind(fault(1000, 5000, 3), killModel)}, []record.Fault{kind(fault(1000, 5000, 3), killHost)}
	seen := HistoryOptions{Events: []record.GroupEvent{showed(2000, 7, servingPhase)}, Lease: 1200 * time.Millisecond}
	const down, expired = "the instance is down", "lease expired"
	one := func(t *pb.Transition) []*pb.Transition { return []*pb.Transition{t} }
	judgeHistories(t, map[string]chronicle{
		"model":              {transitions: one(lasting(down, 700, 100, 60, 40)), faults: model, o: seen},
		"host":               {transitions: one(lasting(expired, 1200, 100, 60, 40)), faults: host, o: seen},
		"just after another": {transitions: one(lasting(expired, 1800, 100, 60, 40)), faults: []record.Fault{{Kind: "lossy-link", Began: ms(100), Whole: ms(900)}, host[0]}, o: seen},
		"host came back":     {transitions: one(lasting("the node was restarted", 0, 10, 60, 40)), faults: host, o: seen},
		"no lease is known":  {transitions: one(lasting(expired, 0, 10, 60, 40)), faults: host},
		"another fault":      {transitions: one(lasting(down, 2500, 100, 60, 40)), faults: []record.Fault{kind(model[0], "x")}, o: seen},
		"two faults":         {transitions: one(lasting(down, 2500, 100, 60, 40)), faults: []record.Fault{kind(model[0], "kill-model+x")}, o: seen},
		"not lost":           {transitions: one(lasting(down, 2500, 100, 60, 40)), faults: []record.Fault{{Kind: killModel, Began: ms(1000), Whole: ms(5000), Epochs: map[string]uint64{"g": 3}}}, o: seen},

		"model, too long":    {transitions: one(lasting(down, 1500, 100, 60, 40)), faults: model, o: seen, want: "but it served 1s after the fault began"},
		"host, too long":     {transitions: one(lasting(expired, 1500, 100, 60, 40)), faults: host, o: seen, want: "but it served 1s after the fault began"},
		"long after another": {transitions: one(lasting(expired, 1800, 100, 60, 40)), faults: []record.Fault{{Kind: "lossy-link", Began: ms(-900), Whole: ms(-300)}, host[0]}, o: seen, want: "but it served 1s after the fault began"},
		"host, no lease":     {transitions: one(lasting(expired, 300, 100, 60, 40)), faults: host, o: seen, want: "which a lease of 1.2s does not allow"},
		"no time at all":     {transitions: one(lasting(down, 0, 0, 0, 0)), faults: model, o: seen, want: "took no time at all"},
		"nor without fault":  {transitions: one(lasting(down, 0, 0, 0, 0)), want: "took no time at all"},
	})
}

func TestHistory_Cause(t *testing.T) {
	lost := func(k string) []record.Fault { return []record.Fault{kind(fault(1000, 5000, 3), k)} }
	order := func(k string) []record.Fault { return []record.Fault{kind(harmless(fault(1000, 5000, 3)), k)} }
	const misfit = "has a reason that does not fit round 1"
	honest := map[string][]string{
		killModel:    {"the instance is down: silent for 300ms", "the instance's process is gone", "the instance has lost its epoch: it was restarted"},
		"model-hang": {"the instance is down: silent for 300ms", "lease expired"}, "pause-model": {"the instance is down"}, "model-refuse": {"the instance is down"},
		killHost: {"lease expired", "the node was restarted"}, "kill-node": {"the node was restarted"},
		"cut-primary": {"the lease could not be renewed in time"}, "power-cut-host": {"lease expired"},
		"kill-model+cut-leader": {"lease expired"}, "disk-full": {"whatever"},
	}
	all := map[string]chronicle{}
	for k, list := range honest {
		for _, reason := range list {
			all[k+": "+reason] = chronicle{transitions: because(reason), faults: lost(k)}
		}
	}
	for k, reason := range map[string]string{
		killModel: "lease expired", killHost: "the instance is down", "kill-node": "operator: failover",
		"cut-primary": "the instance is down", "power-cut-host": "first primary", "model-crash-on-promote": "promotion failed: x",
	} {
		all[k+" is no "+reason] = chronicle{transitions: because(reason), faults: lost(k), want: misfit}
	}
	all["switchover"] = chronicle{transitions: because("operator: chaos"), faults: order("switchover")}
	all["switchover not done"] = chronicle{transitions: because("switchover to n2 was not done: it is busy"), faults: order("switchover")}
	all["no switchover"] = chronicle{transitions: because("lease expired"), faults: order("switchover"), want: misfit}
	all["no failover"] = chronicle{transitions: because("the instance is down"), faults: order("failover-force"), want: misfit}
	all["only the first"] = chronicle{transitions: append(because("lease expired"), but(moved(3, 7, 9), func(t *pb.Transition) { t.Reason = "promotion failed: x" })), faults: lost(killHost)}
	judgeHistories(t, all)
}

func TestHistory_ToldOnce(t *testing.T) {
	pended := func(t *pb.Transition) *pb.Transition {
		return but(t, func(t *pb.Transition) { t.Outcome, t.EndedUnixMs, t.PromoteMs, t.ServeMs = pending, 0, 0, 0 })
	}
	told := func(t *pb.Transition) HistoryOptions {
		return HistoryOptions{Events: []record.GroupEvent{toldOf(t)}}
	}
	one := []*pb.Transition{moved(2, 3, 7)}
	other := func(t *pb.Transition) { t.Reason = "another" }
	judgeHistories(t, map[string]chronicle{
		"as it is":           {transitions: one, o: told(moved(2, 3, 7))},
		"pending first":      {transitions: one, o: told(pended(moved(2, 3, 7)))},
		"not kept":           {transitions: one, o: told(moved(1, 0, 3))},
		"otherwise":          {transitions: one, o: told(but(moved(2, 3, 7), other)), want: "was told in two ways"},
		"otherwise, pending": {transitions: one, o: told(but(pended(moved(2, 3, 7)), other)), want: "was told in two ways"},
		"other durations":    {transitions: []*pb.Transition{moved(2, 3, 7), but(moved(2, 3, 7), func(t *pb.Transition) { t.PromoteMs++ })}, want: "was told in two ways"},
		"another end":        {transitions: []*pb.Transition{moved(2, 3, 7), failed(moved(2, 3, 7))}, want: "was told in two ways"},
	})
	v := History([]*pb.Transition{moved(1, 0, 3), moved(2, 2, 3)}, nil, HistoryOptions{})
	if len(v) == 0 || !strings.Contains(v[0].Text, "has the epoch of transition 1") {
		t.Errorf("two of one epoch: %v", v)
	}
}
