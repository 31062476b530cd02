// SPDX-License-Identifier: Apache-2.0

package testcluster

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/internal/wait"
	"github.com/hastate/hastate/node"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/transport"
)

// starved loses what carries log entries to one node, and nothing else: it hears
// from its leader all the time, and gets no further.
type starved struct {
	transport.FaultHook
	victim *atomic.Pointer[raft.ServerID]
}

func (s starved) Before(ctx context.Context, from, to raft.ServerID, kind string) error {
	if v := s.victim.Load(); v != nil && *v == to {
		switch kind {
		case transport.KindAppend, transport.KindPipeline, transport.KindSnapshot:
			return errors.New("lost by the test")
		}
	}
	return s.FaultHook.Before(ctx, from, to, kind)
}

// localAge reads a session at one member's own state: how old the answer is at most,
// and whether it has the session.
func localAge(ctx context.Context, t *testing.T, conn grpc.ClientConnInterface, id string) (age time.Duration, known, found bool) {
	t.Helper()
	// The answer to a session that is not there has no age: another one is asked for.
	sessions := pb.NewSessionServiceClient(conn)
	old, err := sessions.Get(ctx, &pb.GetRequest{Id: "old", Level: pb.ReadLevel_READ_LEVEL_LOCAL})
	if err != nil {
		t.Fatal(err)
	}
	_, err = sessions.Get(ctx, &pb.GetRequest{Id: id, Level: pb.ReadLevel_READ_LEVEL_LOCAL})
	if err != nil && status.Code(err) != codes.NotFound {
		t.Fatal(err)
	}
	s := old.GetStaleness()
	return time.Duration(s.GetLeaderContactMs()) * time.Millisecond, s.GetLeaderKnown(), err == nil //nolint:gosec // small
}

// haveOld waits until the members have a session and know how old their state is.
func haveOld(t *testing.T, members ...*Member) {
	t.Helper()
	for _, m := range members {
		conn := dial(t, m)
		wait.Until(t, Patience, func() error {
			res, err := pb.NewSessionServiceClient(conn).Get(within(t), &pb.GetRequest{Id: "old", Level: pb.ReadLevel_READ_LEVEL_LOCAL})
			if err == nil && !res.GetStaleness().GetLeaderKnown() {
				return fmt.Errorf("%s does not know how old its state is", m.ID)
			}
			return err
		})
	}
}

// A follower that hears from its leader and gets no entries says how old it is: it
// lacks a write, so its answer is older than that.
func TestStaleness_HeartbeatsAloneMakeNothingFresh(t *testing.T) {
	t.Parallel()
	var victim atomic.Pointer[raft.ServerID]
	c := New(t, Options{NoInstances: true, Configure: func(cfg *node.Config) {
		cfg.Faults.Network = starved{cfg.Faults.Network, &victim}
	}})
	put(t, c.WaitLeader(), "old", "v")
	haveOld(t, c.Members...)
	for try := range tries {
		leader := c.WaitLeader()
		behind, key := c.Others(leader)[0], fmt.Sprintf("try-%d", try)
		id := raftID(behind)
		victim.Store(&id)
		put(t, leader, key, "v")
		lacked := lacks(t, behind, key, clock.Boot{}.Now())
		if lacked {
			watchEnds(t, behind)
		}
		victim.Store(nil)
		if lacked {
			getsFresh(t, behind, key)
			return
		}
		t.Logf("%s was elected just before it could be starved", behind.ID)
	}
	t.Fatal("no follower could be starved")
}

// lacks looks for some heartbeats at what a member that lacks an acknowledged write
// says of its age, and reports whether it does lack it.
func lacks(t *testing.T, m *Member, key string, acknowledged clock.Instant) bool {
	t.Helper()
	ctx, conn := within(t), dial(t, m)
	lacked := true
	wait.Until(t, Patience, func() error {
		since := clock.Boot{}.Now().Sub(acknowledged)
		age, known, found := localAge(ctx, t, conn, key)
		switch {
		case found:
			lacked = false
			return nil
		case !known || age < since:
			t.Fatalf("%s says %v (known: %v), and lacks a write of %v ago", m.ID, age, known, since)
		case since < 3*Calm.Heartbeat:
			return fmt.Errorf("only %v have passed", since)
		}
		return nil
	})
	return lacked
}

// watchEnds waits until a watch at a member cannot be held: there would be no news.
func watchEnds(t *testing.T, m *Member) {
	t.Helper()
	ctx, sessions := within(t), pb.NewSessionServiceClient(dial(t, m))
	wait.Until(t, Patience, func() error {
		watch, err := sessions.WatchSessions(ctx, &pb.WatchSessionsRequest{})
		for err == nil {
			_, err = watch.Recv()
		}
		if status.Code(err) != codes.Unavailable {
			return fmt.Errorf("its watch ended with %w", err)
		}
		return nil
	})
}

// getsFresh waits until a member has a write, and says that it has what was there
// when the wait began.
func getsFresh(t *testing.T, m *Member, key string) {
	t.Helper()
	ctx, conn, began := within(t), dial(t, m), clock.Boot{}.Now()
	wait.Until(t, Patience, func() error {
		since := clock.Boot{}.Now().Sub(began)
		if age, _, found := localAge(ctx, t, conn, key); !found || age >= since {
			return fmt.Errorf("%s says %v after %v, has the write: %v", m.ID, age, since, found)
		}
		return nil
	})
}

// A leader that is cut off, and notices, says for how long it has been.
func TestStaleness_StepDownMakesNothingFresh(t *testing.T) {
	t.Parallel()
	c := New(t, Options{NoInstances: true})
	old := c.WaitLeader()
	put(t, old, "old", "v")
	haveOld(t, old)
	c.Network.Isolate(raftID(old))
	cut := clock.Boot{}.Now()
	wait.Until(t, Patience, func() error {
		if s := old.Node().Raft().State(); s == raft.Leader {
			return errors.New("it takes itself for the leader")
		}
		return nil
	})
	noticed := clock.Boot{}.Now()
	if age, known, _ := localAge(within(t), t, dial(t, old), "old"); !known || age < noticed.Sub(cut) {
		t.Fatalf("it says %v (known: %v), and was cut off %v ago", age, known, noticed.Sub(cut))
	}
	c.Network.Heal()
	c.WaitLeader()
}
