// SPDX-License-Identifier: Apache-2.0

package check

import (
	"strings"
	"testing"

	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

// ms is an instant in milliseconds.
func ms(n int64) clock.Instant { return clock.Instant(n * 1e6) }

func lease(node string, epoch uint64, from, until int64) record.Lease {
	return record.Lease{Node: node, Group: "g", Epoch: epoch, From: ms(from), Until: ms(until)}
}

func ended(l record.Lease) record.Lease {
	l.Ended = true
	return l
}

func serve(node string, epoch uint64, at int64) record.Served {
	return record.Served{Node: node, Group: "g", Epoch: epoch, At: ms(at)}
}

func groupAt(revision, epoch uint64, holder string, phase pb.GroupPhase) record.GroupEvent {
	g := &pb.Group{Name: "g", Revision: revision, Epoch: epoch, Holder: holder, Phase: phase}
	if phase == pb.GroupPhase_GROUP_PHASE_VACANT {
		g.Holder, g.LastHolder = "", holder
	}
	return record.GroupEvent{At: ms(int64(revision)), Revision: revision, Group: g} //nolint:gosec // small
}

func granted(revision, epoch uint64, holder string) record.GroupEvent {
	return groupAt(revision, epoch, holder, pb.GroupPhase_GROUP_PHASE_GRANTED)
}

func vacated(revision, epoch uint64, holder string) record.GroupEvent {
	return groupAt(revision, epoch, holder, pb.GroupPhase_GROUP_PHASE_VACANT)
}

func answer(node string, epoch uint64, call, ret int64) record.Request {
	return record.Request{Group: "g", Node: node, Epoch: epoch, Call: ms(call), Return: ms(ret)}
}

// story is what OnePrimary is given.
type story struct {
	leases   []record.Lease
	served   []record.Served
	events   []record.GroupEvent
	ops      []record.Op
	requests []record.Request
}

func (s story) judge() []record.Violation {
	return OnePrimary(s.leases, s.served, s.events, s.ops, s.requests)
}

func TestOnePrimary_Honest(t *testing.T) {
	for name, s := range map[string]story{
		"nothing": {},
		"one after the other": {
			leases:   []record.Lease{lease("a", 3, 0, 100), lease("a", 3, 0, 200), ended(lease("a", 3, 0, 150)), lease("b", 7, 150, 400)},
			served:   []record.Served{serve("a", 3, 0), serve("a", 3, 149), serve("b", 7, 160)},
			events:   []record.GroupEvent{granted(5, 3, "a"), vacated(9, 3, "a"), granted(10, 7, "b")},
			ops:      row(under(3, put("x", 6)), under(3, put("y", 8)), under(7, put("z", 11)), put("w", 12), outcome(record.Refused, under(3, put("v", 0)))),
			requests: []record.Request{answer("a", 3, 10, 20), answer("a", 3, 140, 170), answer("b", 7, 155, 165), {Group: "g", Call: ms(5), Return: ms(9), Error: "no"}},
		},
		"another group":                 {leases: []record.Lease{lease("a", 3, 0, 100), {Node: "b", Group: "h", Epoch: 4, From: ms(50), Until: ms(90)}}},
		"rounded":                       {leases: []record.Lease{lease("a", 3, 10, 100)}, served: []record.Served{{Node: "a", Group: "g", Epoch: 3, At: ms(100) + 900_000}, {Node: "a", Group: "g", Epoch: 3, At: ms(10) - 900_000}}},
		"the state of now comes early":  {events: []record.GroupEvent{granted(20, 9, "b"), granted(5, 3, "a"), vacated(19, 3, "a")}},
		"a write just before the grant": {events: []record.GroupEvent{granted(5, 3, "a"), granted(10, 7, "b")}, ops: row(under(3, put("x", 9)))},
		"an append of old again":        {events: []record.GroupEvent{granted(10, 7, "b")}, ops: row(under(7, app("x;", 0, 2, 4)))},
	} {
		t.Run(name, func(t *testing.T) {
			if v := s.judge(); len(v) != 0 {
				t.Error(v)
			}
		})
	}
}

func TestOnePrimary_Detects(t *testing.T) {
	for name, c := range map[string]struct {
		story
		want string
	}{
		"overlapping leases":      {story{leases: []record.Lease{lease("a", 3, 0, 100), lease("b", 7, 99, 200)}}, "two leases at once"},
		"renewed too late":        {story{leases: []record.Lease{lease("a", 3, 0, 100), lease("b", 7, 101, 200), lease("a", 3, 0, 150)}}, "two leases at once"},
		"overlap over an epoch":   {story{leases: []record.Lease{lease("a", 3, 0, 300), ended(lease("b", 5, 310, 311)), lease("b", 5, 310, 900), lease("c", 7, 320, 400)}}, "two leases at once"},
		"two holders":             {story{leases: []record.Lease{lease("a", 3, 0, 100), lease("b", 3, 200, 300)}}, "two holders"},
		"served without a lease":  {story{leases: []record.Lease{lease("a", 3, 0, 100)}, served: []record.Served{serve("b", 4, 50)}}, "never held"},
		"served after the lease":  {story{leases: []record.Lease{lease("a", 3, 0, 100)}, served: []record.Served{serve("a", 3, 102)}}, "outside the lease"},
		"served after giving up":  {story{leases: []record.Lease{lease("a", 3, 0, 100), ended(lease("a", 3, 0, 50))}, served: []record.Served{serve("a", 3, 60)}}, "outside the lease"},
		"served before the lease": {story{leases: []record.Lease{lease("a", 3, 10, 100)}, served: []record.Served{serve("a", 3, 5)}}, "outside the lease"},
		"served under the old":    {story{served: []record.Served{serve("a", 3, 10), serve("b", 7, 20), serve("a", 3, 21)}}, "served under epoch 3 for 1ms after"},
		"served, two of an epoch": {story{served: []record.Served{serve("a", 3, 10), serve("b", 3, 20)}}, "two holders"},
		"epoch goes back":         {story{events: []record.GroupEvent{granted(5, 7, "a"), granted(9, 3, "b")}}, "was followed by epoch 3"},
		"watch names another":     {story{events: []record.GroupEvent{granted(5, 7, "a"), granted(6, 7, "b")}}, "two holders"},
		"lease of another":        {story{events: []record.GroupEvent{granted(5, 7, "a")}, leases: []record.Lease{lease("b", 7, 0, 10)}}, "two holders"},
		"write not fenced":        {story{events: []record.GroupEvent{granted(5, 3, "a"), granted(10, 7, "b")}, ops: row(under(3, put("x", 11)))}, "epoch 3 was over by revision 10"},
		"write after a release":   {story{events: []record.GroupEvent{granted(5, 3, "a"), vacated(8, 3, "a")}, ops: row(under(3, put("x", 9)))}, "epoch 3 was over by revision 8"},
		"write two epochs late":   {story{events: []record.GroupEvent{granted(10, 9, "b"), granted(20, 12, "b")}, ops: row(under(3, put("x", 15)))}, "epoch 3 was over by revision 10"},
		"answered by the old":     {story{requests: []record.Request{answer("b", 7, 10, 20), answer("a", 3, 25, 30)}}, "under epoch 3 a request that began 5ms after"},
	} {
		t.Run(name, func(t *testing.T) {
			v := c.judge()
			if len(v) != 1 || v[0].Check != checkOnePrimary || !strings.Contains(v[0].Text, c.want) {
				t.Errorf("%v, not %q", v, c.want)
			}
		})
	}
}

// TestFound_Bounded: what is broken through and through is told in few words.
func TestFound_Bounded(t *testing.T) {
	var requests []record.Request
	for i := range int64(1000) {
		requests = append(requests, answer("a", uint64(5000-i), 10*i, 10*i+1)) //nolint:gosec // small
	}
	if v := OnePrimary(nil, nil, nil, nil, requests); len(v) != maxFound+1 || v[maxFound].Text != "and 949 more" {
		t.Errorf("%d: %v", len(v), v[len(v)-1])
	}
}
