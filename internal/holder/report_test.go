// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"testing"
	"time"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func TestReporter(t *testing.T) {
	is := func(s pb.InstanceState, reason string) *pb.Instance {
		return &pb.Instance{Group: "g", NodeId: "n1", State: s, Reason: reason}
	}
	const warm, live, ready = pb.InstanceState_INSTANCE_STATE_WARM, pb.InstanceState_INSTANCE_STATE_LIVE, pb.InstanceState_INSTANCE_STATE_READY
	r := &reporter{}
	if r.at() != never {
		t.Fatal("reports what is not known")
	}
	send := func(d time.Duration, want bool) {
		t.Helper()
		if got := r.due(at(d)) != nil; got != want {
			t.Fatalf("at %v: sends %t, want %t", d, got, want)
		}
	}
	r.want = is(warm, "")
	send(0, true) // the first at once
	send(0, false)
	r.done(at(1*ms), true)
	r.want = is(live, "")
	send(49*ms, false) // a change, at most every 50 ms
	send(50*ms, true)
	r.done(at(51*ms), true)
	r.want = is(ready, "")
	send(52*ms, true) // to READY at once
	r.done(at(53*ms), false)
	send(72*ms, false) // refused: again after a back-off
	send(73*ms, true)
	r.done(at(74*ms), true)
	r.want = is(ready, "busy")
	send(1072*ms, false) // only the text is new
	send(1073*ms, true)
	r.done(at(1074*ms), true)
	send(5000*ms, false)
	// Somebody has removed it.
	looked := 0
	lookup := func() *pb.Instance { looked++; return nil }
	r.check(at(1500*ms), lookup)
	r.check(at(2074*ms), lookup)
	if looked != 1 {
		t.Fatalf("looked %d times", looked)
	}
	send(2075*ms, true)
	// An older report has overtaken it.
	r.done(at(2076*ms), true)
	r.check(at(3100*ms), func() *pb.Instance {
		i := is(warm, "")
		i.Revision = 9
		return i
	})
	send(3101*ms, true)
	r.done(at(3102*ms), true)
	r.check(at(4200*ms), func() *pb.Instance {
		i := is(ready, "busy")
		i.Revision = 10
		return i
	})
	send(4201*ms, false)
}
