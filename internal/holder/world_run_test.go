// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hastate/hastate/election"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// The kinds of things that may happen: in a calm world leaders, processes and
// servers stay.
const calm, all = 91, 100

// live runs a world for some steps, with choices made by pick, which returns a
// number below its argument.
func (w *world) live(steps int, pick func(int) int) error {
	w.elect(0)
	w.append(&pb.Command{Op: &pb.Command_ReportInstance{ReportInstance: &pb.ReportInstance{Instance: &pb.Instance{Group: "g", NodeId: "n0"}}}}, nil, nil)
	for range steps {
		w.happen(pick)
		if err := w.check(); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) happen(pick func(int) int) {
	n := w.nodes[pick(len(w.nodes))]
	switch op := pick(w.ops); {
	case op < 45:
		w.deliver(pick)
	case op < 60:
		n.store()
		n.apply()
	case op < 70:
		for range 1 + pick(20) {
			n.store()
			n.apply()
		}
	case op < 73:
		w.passUntilGrantable(n)
	case op < 80:
		w.pass([]time.Duration{ms, 3 * ms, 20 * ms, 60 * ms, 150 * ms, 400 * ms, 1250 * ms}[pick(7)], pick)
	case op < 91:
		w.findPrimary(n.id)
	case op < 93:
		w.elect(n.id)
	case op < 94:
		n.restart()
	case op < 95:
		n.die()
		n.status()
	case op < 96:
		n.alive = true
		n.status()
	case op < 97:
		w.switchover(n.id, uint32(pick(2)*5000))
	case op < 98:
		w.revoke()
	case op < 99:
		n.step(evStatus{status: Status{State: pb.InstanceState_INSTANCE_STATE_FAILED}})
	default:
		n.status()
	}
}

// deliver takes some message, seldom to lose it.
func (w *world) deliver(pick func(int) int) {
	if len(w.messages) == 0 {
		return
	}
	i := pick(len(w.messages))
	m := w.messages[i]
	w.messages = append(w.messages[:i], w.messages[i+1:]...)
	if pick(10) == 0 {
		m.lost()
		return
	}
	m.arrives()
}

// pass lets time go by; most nodes notice what is due, the others are paused.
func (w *world) pass(d time.Duration, pick func(int) int) {
	w.now += d
	for _, n := range w.nodes {
		if pick(5) == 0 {
			continue
		}
		for i := 0; n.m.wake() <= n.clock(); i++ {
			n.step(evTimer{})
			if i > 100 {
				panic(fmt.Sprintf("%s wants to be woken for ever: %+v", n.name(), *n.m))
			}
		}
	}
}

// passUntilGrantable lets time go by to the very moment at which the leader's rule
// lets it grant; one node is paused meanwhile.
func (w *world) passUntilGrantable(paused *member) {
	for range 1500 {
		n, g := w.view()
		if n == nil || w.mayGrant(n, g) {
			return
		}
		w.now += time.Millisecond
		for _, o := range w.nodes {
			if o != paused && o.m.wake() <= o.clock() {
				o.step(evTimer{})
			}
		}
	}
}

func randomWorld(pick func(int) int) *world {
	var rates, offsets []int64
	for range 3 {
		rates = append(rates, int64(pick(3)-1))
		offsets = append(offsets, int64(pick(5))*int64(time.Hour))
	}
	return newWorld(rates, offsets)
}

func TestWorldHasOnePrimary(t *testing.T) {
	served := 0
	rapid.Check(t, func(rt *rapid.T) {
		pick := func(n int) int { return rapid.IntRange(0, n-1).Draw(rt, "") }
		w := randomWorld(pick)
		if err := w.live(600, pick); err != nil {
			rt.Fatal(err)
		}
		served += len(w.served)
	})
	t.Logf("%d epochs were served", served)
}

// The same with many more steps; rapid could not shrink what it finds.
func TestWorldHasOnePrimaryForLong(t *testing.T) {
	served := 0
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		w := randomWorld(r.IntN)
		if err := w.live(4000, r.IntN); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		served += len(w.served)
	}
	if served < 300 {
		t.Fatalf("only %d epochs were served: the world is too hostile to prove anything", served)
	}
	t.Logf("%d epochs were served", served)
}

// A model that cannot fail proves nothing: each wrong rule must be found out.
func TestWorldFindsOutWrongRules(t *testing.T) {
	for name, waits := range map[string]func(election.GroupView) bool{
		"grant at once": func(election.GroupView) bool { return true },
		"no allowance for clock rates": func(v election.GroupView) bool {
			return v.Group.GetPhase() == pb.GroupPhase_GROUP_PHASE_VACANT ||
				v.Now.Sub(v.Leader.RenewStoredAt) > time.Duration(v.Group.GetTtlMs())*time.Millisecond
		},
	} {
		t.Run(name, func(t *testing.T) {
			// One of the first seeds finds it; the others are for when the world changes.
			for seed := uint64(400); seed < 4000; seed++ {
				r := rand.New(rand.NewPCG(seed, 2))
				w := randomWorld(r.IntN)
				w.waits, w.ops = waits, calm
				if err := w.live(1500, r.IntN); err != nil && strings.Contains(err.Error(), "two primaries") {
					t.Logf("seed %d: %v", seed, err)
					return
				}
			}
			t.Fatal("nothing was found")
		})
	}
}
