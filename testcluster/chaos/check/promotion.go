// SPDX-License-Identifier: Apache-2.0

package check

import (
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

// Promotions checks that a primary was announced only after its model server had
// been promoted under its epoch (G7): by the server's own record, whatever it has
// said. Announced is what a watch shows in phase SERVING, and what the history
// says has served.
//
// There is no slack: all instants are of one clock, a server writes its promotion
// down before it tells anybody of it, and a watch tells of it only after the log.
func Promotions(transitions []*pb.Transition, events []record.GroupEvent, promotions []record.Promotion) []record.Violation {
	f := &found{check: checkPromotion}
	promoted := map[tenure]clock.Instant{}
	for _, p := range promotions {
		t := tenure{p.Node, p.Group, p.Epoch}
		if at, ok := promoted[t]; !ok || p.At < at {
			promoted[t] = p.At
		}
	}
	announced := map[tenure]clock.Instant{} // 0: at some time
	for _, t := range transitions {
		if t.GetOutcome() == servingOutcome {
			announced[tenure{t.GetTo(), t.GetGroup(), t.GetEpoch()}] = 0
		}
	}
	for _, e := range events {
		if e.Group.GetPhase() != servingPhase {
			continue
		}
		t := tenure{e.Group.GetHolder(), e.Group.GetName(), e.Group.GetEpoch()}
		if at := announced[t]; at == 0 || e.At < at {
			announced[t] = e.At
		}
	}
	for _, t := range sorted(announced, compareTenures) {
		at, ok := promoted[t]
		switch {
		case !ok:
			f.add("", "group %s: %s was announced as the primary of epoch %d, and its model server never obeyed a Promote of it", t.group, t.node, t.epoch)
		case announced[t] != 0 && announced[t] < at:
			f.add("", "group %s: %s was announced as the primary of epoch %d %v before its model server obeyed the Promote of it",
				t.group, t.node, t.epoch, at.Sub(announced[t]))
		}
	}
	return f.violations()
}
