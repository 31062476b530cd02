// SPDX-License-Identifier: Apache-2.0

package check

import (
	"strings"
	"testing"

	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

func TestPromotions(t *testing.T) {
	served := []*pb.Transition{{Group: "g", To: "b", Epoch: 3, Outcome: servingOutcome}}
	failed := []*pb.Transition{{Group: "g", To: "b", Epoch: 3, Outcome: pb.TransitionOutcome_TRANSITION_OUTCOME_FAILED}}
	granted := pb.GroupPhase_GROUP_PHASE_GRANTED
	by := func(node string, epoch uint64, at int64) record.Promotion {
		return record.Promotion{Node: node, Group: "g", Epoch: epoch, At: ms(at)}
	}
	for name, c := range map[string]struct {
		transitions []*pb.Transition
		events      []record.GroupEvent
		promotions  []record.Promotion
		want        string
	}{
		"in order":          {served, []record.GroupEvent{showed(900, 3, granted), showed(1000, 3, servingPhase)}, []record.Promotion{by("b", 3, 999)}, ""},
		"obeyed twice":      {served, []record.GroupEvent{showed(1000, 3, servingPhase)}, []record.Promotion{by("b", 3, 5000), by("b", 3, 999)}, ""},
		"not seen":          {served, nil, []record.Promotion{by("b", 3, 999)}, ""},
		"failed":            {failed, []record.GroupEvent{showed(900, 3, granted)}, nil, ""},
		"nothing":           {nil, nil, []record.Promotion{by("b", 3, 999)}, ""},
		"never, history":    {served, nil, []record.Promotion{by("b", 2, 999)}, "never obeyed"},
		"never, watch":      {nil, []record.GroupEvent{showed(1000, 3, servingPhase)}, []record.Promotion{by("a", 3, 999)}, "never obeyed"},
		"announced before":  {served, []record.GroupEvent{showed(1000, 3, servingPhase), showed(2000, 3, servingPhase)}, []record.Promotion{by("b", 3, 1500)}, "500ms before"},
		"announced in time": {served, []record.GroupEvent{showed(2000, 3, servingPhase)}, []record.Promotion{by("b", 3, 1500)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			v := Promotions(c.transitions, c.events, c.promotions)
			if c.want == "" && len(v) != 0 || c.want != "" && (len(v) != 1 || !strings.Contains(v[0].Text, c.want) || v[0].Check != checkPromotion) {
				t.Errorf("%v, not %q", v, c.want)
			}
		})
	}
}
