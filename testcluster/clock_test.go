// SPDX-License-Identifier: Apache-2.0

package testcluster

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/node"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// rates are the clocks of the nodes: the bounds that leases assume, and a right
// one.
var rates = map[string]float64{"n1": 0.99, "n2": 1, "n3": 1.01}

// Clocks run apart as far as is allowed: a holder on the slowest is waited out by
// a leader on the fastest. Nothing else keeps the leases apart here: the margins
// are as small as they may be.
func TestClock_RatesAtTheirBounds(t *testing.T) {
	t.Parallel()
	tight := Calm
	tight.Name, tight.Lease, tight.FenceMargin, tight.GrantSlack = "tight", 3*time.Second, time.Millisecond, time.Millisecond
	c := New(t, Options{Profile: tight, Configure: func(n *node.Config) { n.Clock = NewScaled(rates[n.NodeID]) }})
	c.WaitReady()
	slow, fast := c.Members[0], c.Members[2]
	for _, round := range []struct{ holder, leader *Member }{{slow, fast}, {fast, slow}, {slow, fast}} {
		epoch := makePrimary(t, c, round.holder)
		makeLead(t, c, round.leader)
		c.Network.Isolate(raftID(round.holder))
		c.WaitPrimary(epoch, c.Others(round.holder)...)
		c.Network.Heal()
		c.WaitPrimary(epoch)
	}
}

// The wall clock is for people: set back by an hour while all runs it changes
// nothing but stamps.
func TestClock_WallSetBack(t *testing.T) {
	t.Parallel()
	var back atomic.Int64
	c := New(t, Options{Configure: func(n *node.Config) {
		n.Faults.Wall = func() time.Time { return time.Now().Add(-time.Duration(back.Load())) }
	}})
	c.WaitReady()
	first, epoch := c.WaitPrimary(0)
	leader := c.WaitLeader()
	sessions := c.Client().Sessions("")
	revision := leader.Node().Machine().Revision()
	const ttl = 3 * time.Second
	since := time.Now()
	if _, err := sessions.Put(within(t), &pb.PutRequest{Session: &pb.Session{Id: "mortal", TtlMs: uint64(ttl.Milliseconds())}}); err != nil {
		t.Fatal(err)
	}
	put(t, leader, "s", "before")

	back.Store(int64(time.Hour))
	put(t, leader, "s", "after")
	first.Instance.Kill()
	second, next := c.WaitPrimary(epoch)
	first.Instance.Restart()
	c.WaitReady()
	makeLead(t, c, second)
	makePrimary(t, c, first)
	expired(t, leader, "mortal", revision)
	if took := time.Since(since); took < ttl {
		t.Fatalf("a session with %v to live expired after %v", ttl, took)
	}
	if got, err := read(within(t), dial(t, first), "s"); err != nil || got != "after" {
		t.Fatalf("read %q, %v", got, err)
	}
	// History is in order of number; the stamps show the clock that went back.
	history := second.Node().Machine().History(hastate.DefaultGroup, 100)
	stampsFell := false
	for i := 1; i < len(history); i++ {
		newer, older := history[i-1], history[i]
		if newer.GetNumber() != older.GetNumber()+1 || newer.GetEpoch() <= older.GetEpoch() {
			t.Fatalf("transition %d of epoch %d follows %d of epoch %d", newer.GetNumber(), newer.GetEpoch(), older.GetNumber(), older.GetEpoch())
		}
		stampsFell = stampsFell || newer.GetGrantedUnixMs() < older.GetGrantedUnixMs()
	}
	if !stampsFell || len(history) < 3 {
		t.Fatalf("the wall clock of the grants did not go back: %v", history)
	}
	if tr := transition(t, second, next); tr.GetDetectMs() > uint64(Patience.Milliseconds()) || tr.GetGrantMs() > uint64(Patience.Milliseconds()) {
		t.Fatalf("durations were measured on the wall clock: %v", tr)
	}
}
