// SPDX-License-Identifier: Apache-2.0

package coordinate

import (
	"testing"

	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// TestVacantSince: the time of an earlier vacancy is not that of the next. An attempt
// that begins while somebody still holds the group has none (track record 21).
func TestVacantSince(t *testing.T) {
	s := &standing{vacant: 7, since: 100}
	for _, c := range []struct {
		phase pb.GroupPhase
		epoch uint64
		want  clock.Instant
	}{
		{pb.GroupPhase_GROUP_PHASE_VACANT, 7, 100},
		{pb.GroupPhase_GROUP_PHASE_VACANT, 9, 0},
		{pb.GroupPhase_GROUP_PHASE_SERVING, 9, 0},
		{pb.GroupPhase_GROUP_PHASE_GRANTED, 9, 0},
		{pb.GroupPhase_GROUP_PHASE_SERVING, 7, 0},
	} {
		if got := s.vacantSince(&pb.Group{Phase: c.phase, Epoch: c.epoch}); got != c.want {
			t.Errorf("%v of epoch %d: since %d, want %d", c.phase, c.epoch, got, c.want)
		}
	}
}
