// SPDX-License-Identifier: Apache-2.0

package election

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const (
	vacant  = pb.GroupPhase_GROUP_PHASE_VACANT
	granted = pb.GroupPhase_GROUP_PHASE_GRANTED
	serving = pb.GroupPhase_GROUP_PHASE_SERVING
)

func TestLeaseWait(t *testing.T) {
	const slack = 5 * time.Millisecond
	end := start.Add(1010*time.Millisecond + slack)
	view := func(barrier bool, phase pb.GroupPhase) LeaderView {
		return LeaderView{BarrierApplied: barrier, Phase: phase, TTL: time.Second, RenewStoredAt: start}
	}
	for _, c := range []struct {
		name string
		view LeaderView
		now  clock.Instant
		wait time.Duration
		ok   bool
	}{
		{"just stored", view(true, serving), start, 1015*time.Millisecond + 1, true},
		{"one before the end", view(true, serving), end - 1, 2, true},
		{"at the end a slow holder may still act", view(true, serving), end, 1, true},
		{"one after", view(true, serving), end + 1, 0, true},
		{"granted counts as held", view(true, granted), end, 1, true},
		{"a phase that is not known counts as held", view(true, 0), end, 1, true},
		{"vacant", view(true, vacant), start, 0, true},
		{"no barrier", view(false, serving), end.Add(time.Hour), 0, false},
		{"vacant, no barrier", view(false, vacant), end.Add(time.Hour), 0, false},
		{"stored after now, as a clock that is read late", view(true, serving), start - 10, 1015*time.Millisecond + 11, true},
	} {
		wait, ok := LeaseWait(c.view, c.now, slack)
		if wait != c.wait || ok != c.ok {
			t.Errorf("%s: LeaseWait = %d, %v, want %d, %v", c.name, wait, ok, c.wait, c.ok)
		}
	}
}

// TestLeaseWait_Exact: after exactly the wait the leader may grant, and not a
// nanosecond earlier.
func TestLeaseWait_Exact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := LeaderView{
			BarrierApplied: true, Phase: serving,
			TTL:           time.Duration(rapid.Int64Range(0, int64(time.Minute)).Draw(t, "ttl")),
			RenewStoredAt: clock.Instant(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "stored")),
		}
		slack := time.Duration(rapid.Int64Range(0, int64(time.Second)).Draw(t, "slack"))
		now := v.RenewStoredAt.Add(time.Duration(rapid.Int64Range(0, int64(2*time.Minute)).Draw(t, "age")))
		wait, ok := LeaseWait(v, now, slack)
		if !ok || wait < 0 {
			t.Fatalf("wait %d, %v", wait, ok)
		}
		if again, _ := LeaseWait(v, now.Add(wait), slack); again != 0 {
			t.Fatalf("after %d there are still %d to wait", wait, again)
		}
		if wait == 0 {
			return
		}
		if again, _ := LeaseWait(v, now.Add(wait-1), slack); again != 1 {
			t.Fatalf("1 ns before the end %d are left to wait", again)
		}
	})
}
