// SPDX-License-Identifier: Apache-2.0

package api

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// localReads are all that say how old their answer is.
func localReads(t *testing.T, r *rig) map[string]func() *pb.Staleness {
	t.Helper()
	return map[string]func() *pb.Staleness{
		"GetPrimary": func() *pb.Staleness {
			t.Helper()
			res, err := pb.NewGroupServiceClient(r.conn).GetPrimary(t.Context(), &pb.GetPrimaryRequest{Level: pb.ReadLevel_READ_LEVEL_LOCAL})
			if err != nil {
				t.Fatal(err)
			}
			return res.GetStaleness()
		},
		"Get": func() *pb.Staleness {
			t.Helper()
			res, err := pb.NewSessionServiceClient(r.conn).Get(t.Context(), &pb.GetRequest{Id: "s", Level: pb.ReadLevel_READ_LEVEL_LOCAL})
			if err != nil {
				t.Fatal(err)
			}
			return res.GetStaleness()
		},
		"Status": func() *pb.Staleness {
			t.Helper()
			res, err := pb.NewClusterServiceClient(r.conn).Status(t.Context(), &pb.StatusRequest{})
			if err != nil {
				t.Fatal(err)
			}
			return &pb.Staleness{LeaderContactMs: res.GetLeaderContactMs(), LeaderKnown: res.GetLeaderKnown()}
		},
	}
}

// slowState is a state that takes a while to read.
type slowState struct {
	*fakeState
	during func()
}

func (s slowState) Group(name string) (*pb.Group, bool) {
	s.during()
	return s.fakeState.Group(name)
}

func (s slowState) Groups() []*pb.Group {
	s.during()
	return s.fakeState.Groups()
}

func (s slowState) Session(group, id string) (*pb.Session, bool, error) {
	s.during()
	return s.fakeState.Session(group, id)
}

func TestStaleness(t *testing.T) {
	r := newRig(t, "n1")
	serving(r)
	r.putSession(&pb.Session{Group: "default", Id: "s"})
	for name, local := range localReads(t, r) {
		r.lock(func() { r.fresh = 0 })
		r.clock.Advance(time.Hour)
		if s := local(); s.GetLeaderKnown() || s.GetLeaderContactMs() != 0 {
			t.Errorf("%s: nothing is known of the state: %v", name, s)
		}
		r.lock(func() { r.fresh = r.clock.Now() })
		r.clock.Advance(7*time.Second + time.Microsecond)
		if s := local(); !s.GetLeaderKnown() || s.GetLeaderContactMs() != 7001 {
			t.Errorf("%s: the state was confirmed 7.000001 s ago: %v", name, s)
		}
	}
}

// TestStaleness_CountsFromBeforeTheRead: a node that stands still between reading its
// state and answering, or that is confirmed meanwhile, read a state that is older.
func TestStaleness_CountsFromBeforeTheRead(t *testing.T) {
	var pause atomic.Pointer[func()]
	during := func(f func()) { pause.Store(&f) }
	during(func() {})
	r := newRig(t, "n1", func(c *Config) {
		c.State = slowState{c.State.(*fakeState), func() { (*pause.Load())() }}
	})
	serving(r)
	r.putSession(&pb.Session{Group: "default", Id: "s"})
	known := func() { r.lock(func() { r.fresh = r.clock.Now() }) }
	r.clock.Advance(time.Second)
	for name, local := range localReads(t, r) {
		known()
		during(func() { r.clock.Advance(time.Hour) })
		if s := local(); s.GetLeaderContactMs() < uint64(time.Hour.Milliseconds()) {
			t.Errorf("%s: it stood still for an hour: %v", name, s)
		}
		known()
		during(func() { r.clock.Advance(time.Hour); known() })
		if s := local(); s.GetLeaderContactMs() < uint64(time.Hour.Milliseconds()) {
			t.Errorf("%s: it was confirmed after it had read its state: %v", name, s)
		}
	}
}

func TestFreshness(t *testing.T) {
	for _, one := range []struct {
		now, asOf clock.Instant
		known     bool
		want      uint64
	}{
		{5_000_000, 3_000_000, true, 2},
		{5_000_001, 3_000_000, true, 3},
		{5_000_000, 5_000_000, true, 0},
		{5_000_000, 0, false, 0},
	} {
		f := freshness{asOf: one.asOf, known: one.known}
		if s := f.staleness(one.now); s.GetLeaderContactMs() != one.want || s.GetLeaderKnown() != one.known {
			t.Errorf("%+v: %v", one, s)
		}
	}
}
