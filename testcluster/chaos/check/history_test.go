// SPDX-License-Identifier: Apache-2.0

package check

import (
	"strings"
	"testing"

	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

// moved is a failover that served, 100 ms after it was granted.
func moved(number, before, epoch uint64) *pb.Transition {
	return &pb.Transition{
		Group: "g", Number: number, Kind: pb.TransitionKind_TRANSITION_KIND_FAILOVER, Outcome: pb.TransitionOutcome_TRANSITION_OUTCOME_SERVING,
		From: "a", To: "b", EpochBefore: before, Epoch: epoch, Reason: "lease expired", DetectedBy: "c",
		GrantedUnixMs: 1_000_000, EndedUnixMs: 1_000_100, DetectMs: 800, GrantMs: 20, PromoteMs: 60, ServeMs: 40,
	}
}

// but changes a transition.
func but(t *pb.Transition, change func(*pb.Transition)) *pb.Transition {
	change(t)
	return t
}

func failed(t *pb.Transition) *pb.Transition {
	t.Outcome, t.PromoteMs, t.ServeMs = pb.TransitionOutcome_TRANSITION_OUTCOME_FAILED, 0, 0
	return t
}

// fault takes the primary of g away from an epoch on.
func fault(began, whole int64, epoch uint64) record.Fault {
	return record.Fault{
		Round: 1, Kind: "kill", What: "a", Began: ms(began), Healed: ms(whole), Whole: ms(whole),
		Lost: []string{"g"}, Epochs: map[string]uint64{"g": epoch},
	}
}

func harmless(f record.Fault) record.Fault {
	f.Harmless, f.Lost = true, nil
	return f
}

func spared(f record.Fault, group string) record.Fault {
	f.Spared = []string{group}
	return f
}

// kind is a fault of one kind.
func kind(f record.Fault, kind string) record.Fault {
	f.Kind = kind
	return f
}

func showed(at int64, epoch uint64, phase pb.GroupPhase) record.GroupEvent {
	return record.GroupEvent{At: ms(at), Group: &pb.Group{Name: "g", Epoch: epoch, Phase: phase, Holder: "b"}}
}

type chronicle struct {
	transitions []*pb.Transition
	faults      []record.Fault
	o           HistoryOptions
	want        string
}

func TestHistory(t *testing.T) {
	two := []record.Fault{fault(1000, 5000, 3), fault(10_000, 15_000, 7)}
	for name, c := range map[string]chronicle{
		"honest":            {transitions: []*pb.Transition{moved(1, 0, 3), moved(2, 3, 7), moved(3, 7, 9)}, faults: two},
		"in any order":      {transitions: []*pb.Transition{moved(3, 7, 9), moved(2, 3, 7), but(moved(2, 3, 7), func(t *pb.Transition) { t.Outcome = pending })}, faults: two},
		"one that failed":   {transitions: []*pb.Transition{failed(moved(5, 3, 4)), moved(6, 4, 7), moved(7, 7, 9)}, faults: two},
		"fits its fault":    {transitions: []*pb.Transition{moved(2, 3, 7)}, faults: two[:1], o: HistoryOptions{Events: []record.GroupEvent{showed(2000, 7, servingPhase)}}},
		"the wall jumped":   {transitions: []*pb.Transition{but(moved(2, 3, 7), func(t *pb.Transition) { t.EndedUnixMs -= 3_600_000 })}, o: HistoryOptions{WallJumped: true}},
		"caused by the one": {transitions: []*pb.Transition{moved(2, 3, 7)}, faults: []record.Fault{fault(1000, 20_000, 3), harmless(fault(2000, 3000, 3))}},

		"a gap":              {transitions: []*pb.Transition{moved(1, 0, 3), moved(3, 3, 7)}, want: "some are missing"},
		"a broken chain":     {transitions: []*pb.Transition{moved(1, 0, 3), moved(2, 4, 7)}, want: "says that epoch 4 was before it"},
		"epoch goes back":    {transitions: []*pb.Transition{moved(1, 0, 3), moved(2, 3, 3)}, want: "not above"},
		"rewritten":          {transitions: []*pb.Transition{moved(1, 0, 3), moved(1, 0, 4)}, want: "transition 1 was to b with epoch 3"},
		"no reason":          {transitions: []*pb.Transition{but(moved(1, 0, 3), func(t *pb.Transition) { t.Reason = "" })}, want: "no reason"},
		"no kind":            {transitions: []*pb.Transition{but(moved(1, 0, 3), func(t *pb.Transition) { t.Kind = 0 })}, want: "no kind"},
		"no outcome":         {transitions: []*pb.Transition{but(moved(1, 0, 3), func(t *pb.Transition) { t.Outcome = 0 })}, want: "no outcome"},
		"no times":           {transitions: []*pb.Transition{but(moved(1, 0, 3), func(t *pb.Transition) { t.EndedUnixMs = 0 })}, want: "no times"},
		"pending at rest":    {transitions: []*pb.Transition{but(moved(1, 0, 3), func(t *pb.Transition) { t.Outcome = pending })}, want: "never ended"},
		"phases too short":   {transitions: []*pb.Transition{but(moved(1, 0, 3), func(t *pb.Transition) { t.EndedUnixMs += 5000 })}, want: "its phases after the grant are 100ms"},
		"phases too long":    {transitions: []*pb.Transition{but(moved(1, 0, 3), func(t *pb.Transition) { t.PromoteMs += 5000 })}, want: "its phases after the grant are"},
		"ended before":       {transitions: []*pb.Transition{failed(but(moved(1, 0, 3), func(t *pb.Transition) { t.EndedUnixMs -= 5000 }))}, want: "before it was granted"},
		"longer than it was": {transitions: []*pb.Transition{but(moved(2, 3, 7), func(t *pb.Transition) { t.ServeMs, t.EndedUnixMs = 3_600_000, t.EndedUnixMs+3_600_000 })}, faults: two[:1], o: HistoryOptions{WallJumped: true, Events: []record.GroupEvent{showed(2000, 7, servingPhase)}}, want: "but it served 1s after the fault began"},
		"no transition":      {transitions: []*pb.Transition{moved(1, 0, 3)}, faults: two[:1], want: "there is no transition after epoch 3"},
		"only a later one":   {transitions: []*pb.Transition{moved(2, 3, 9)}, faults: []record.Fault{fault(1000, 5000, 3), fault(10_000, 15_000, 3)}, want: "there is no transition after epoch 3"},
	} {
		t.Run(name, func(t *testing.T) {
			v := History(c.transitions, c.faults, c.o)
			switch {
			case c.want == "" && len(v) != 0:
				t.Error(v)
			case c.want != "" && (len(v) == 0 || !strings.Contains(v[0].Text, c.want) || v[0].Check != checkHistory):
				t.Errorf("%v, not %q", v, c.want)
			}
		})
	}
}

// wholeAt is a fault after which the group had an epoch.
func wholeAt(f record.Fault, epoch uint64) record.Fault {
	f.WholeEpochs = map[string]uint64{"g": epoch}
	return f
}

func TestFalseFailovers(t *testing.T) {
	initial := func(t *pb.Transition) { t.Kind = pb.TransitionKind_TRANSITION_KIND_INITIAL }
	granted := pb.GroupPhase_GROUP_PHASE_GRANTED
	one := []record.Fault{fault(1000, 5000, 3)}
	for name, c := range map[string]struct {
		transitions []*pb.Transition
		faults      []record.Fault
		events      []record.GroupEvent
		want        string
	}{
		"the first":            {transitions: []*pb.Transition{but(moved(1, 0, 3), initial)}},
		"with a fault":         {transitions: []*pb.Transition{moved(2, 3, 7), moved(3, 7, 9)}, faults: one},
		"seen in time":         {transitions: []*pb.Transition{moved(2, 3, 7)}, faults: one, events: []record.GroupEvent{showed(2000, 7, granted)}},
		"news came late":       {transitions: []*pb.Transition{moved(2, 3, 7)}, faults: one, events: []record.GroupEvent{showed(5900, 7, granted)}},
		"never whole":          {transitions: []*pb.Transition{moved(2, 3, 7)}, faults: []record.Fault{{Epochs: map[string]uint64{"g": 3}}}, events: []record.GroupEvent{showed(99_000, 7, granted)}},
		"a switchover":         {transitions: []*pb.Transition{but(moved(2, 3, 7), func(t *pb.Transition) { t.Kind = pb.TransitionKind_TRANSITION_KIND_SWITCHOVER })}},
		"ordered":              {transitions: []*pb.Transition{but(moved(2, 3, 7), func(t *pb.Transition) { t.DetectedBy = operator })}},
		"beside a harmless":    {transitions: []*pb.Transition{moved(2, 3, 7)}, faults: []record.Fault{fault(1000, 5000, 3), harmless(fault(2000, 3000, 3))}},
		"between two":          {transitions: []*pb.Transition{moved(2, 3, 7)}, faults: []record.Fault{fault(1000, 5000, 3), harmless(fault(6000, 7000, 7))}},
		"without a fault":      {transitions: []*pb.Transition{moved(2, 3, 7)}, want: "no fault had begun"},
		"before all faults":    {transitions: []*pb.Transition{moved(2, 2, 3)}, faults: one, want: "no fault had begun"},
		"spared":               {transitions: []*pb.Transition{moved(2, 3, 7)}, faults: []record.Fault{spared(fault(1000, 5000, 3), "g")}, want: "cannot have touched that group"},
		"a spared regrant":     {transitions: []*pb.Transition{but(moved(2, 3, 7), func(t *pb.Transition) { t.Kind = pb.TransitionKind_TRANSITION_KIND_REGRANT })}, faults: []record.Fault{spared(wholeAt(fault(1000, 5000, 3), 7), "g")}, want: "cannot have touched that group"},
		"harmless and spared":  {transitions: []*pb.Transition{moved(2, 3, 7)}, faults: []record.Fault{harmless(spared(fault(1000, 5000, 3), "g"))}, want: "must not move a primary"},
		"spared but ordered":   {transitions: []*pb.Transition{but(moved(2, 3, 7), func(t *pb.Transition) { t.DetectedBy = operator })}, faults: []record.Fault{spared(fault(1000, 5000, 3), "g")}},
		"another is spared":    {transitions: []*pb.Transition{moved(2, 3, 7)}, faults: []record.Fault{spared(fault(1000, 5000, 3), "h")}},
		"spared beside one":    {transitions: []*pb.Transition{moved(2, 3, 7)}, faults: []record.Fault{fault(1000, 5000, 3), spared(fault(2000, 3000, 3), "g")}},
		"with a harmless one":  {transitions: []*pb.Transition{moved(2, 3, 7)}, faults: []record.Fault{harmless(fault(1000, 5000, 3))}, want: "must not move a primary"},
		"after one, harmless":  {transitions: []*pb.Transition{moved(2, 3, 7)}, faults: []record.Fault{fault(1000, 1500, 2), harmless(fault(2000, 3000, 3))}, want: "must not move a primary"},
		"news came very late":  {transitions: []*pb.Transition{moved(2, 3, 7)}, faults: []record.Fault{wholeAt(fault(1000, 5000, 3), 7)}, events: []record.GroupEvent{showed(9000, 7, granted)}},
		"after it was whole":   {transitions: []*pb.Transition{moved(2, 3, 7)}, faults: []record.Fault{wholeAt(fault(1000, 5000, 3), 3)}, events: []record.GroupEvent{showed(9000, 7, granted)}, want: "after everything was whole again"},
		"long after":           {transitions: []*pb.Transition{moved(2, 3, 7)}, faults: one, events: []record.GroupEvent{showed(9000, 7, granted)}, want: "after everything was whole again"},
		"a regrant for naught": {transitions: []*pb.Transition{but(moved(2, 3, 7), func(t *pb.Transition) { t.Kind = pb.TransitionKind_TRANSITION_KIND_REGRANT })}, want: "no fault had begun"},
	} {
		t.Run(name, func(t *testing.T) {
			v := FalseFailovers(c.transitions, c.faults, c.events)
			switch {
			case c.want == "" && len(v) != 0:
				t.Error(v)
			case c.want != "" && (len(v) != 1 || !strings.Contains(v[0].Text, c.want) || v[0].Check != checkFalseFailover):
				t.Errorf("%v, not %q", v, c.want)
			}
		})
	}
}
