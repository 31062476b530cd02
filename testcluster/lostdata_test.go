// SPDX-License-Identifier: Apache-2.0

package testcluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/logstore"
	"github.com/hastate/hastate/internal/wait"
	"github.com/hastate/hastate/node"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// A node of which a part of the data is lost must not go on with the rest: without
// its state it would apply what comes to an empty one, without its log it could
// vote twice.
func TestLostData_APartOfTheFolder(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"state.db", "raft.db", "raft.seg", "snapshots"} {
		t.Run(name, func(t *testing.T) {
			c := New(t, Options{NoInstances: true, Configure: func(c *node.Config) {
				c.Snapshot = node.SnapshotPolicy{Interval: 20 * time.Millisecond, Threshold: 5, Trailing: 5}
				if c.LogStore = logstore.Bolt; name == "raft.seg" {
					c.LogStore = logstore.Segments
				}
			}})
			leader := c.WaitLeader()
			victim := c.Others(leader)[0]
			sessions := c.Client().Sessions(hastate.DefaultGroup)
			for range 30 {
				if _, err := sessions.Put(within(t), &pb.PutRequest{Session: &pb.Session{Id: "s"}}); err != nil {
					t.Fatal(err)
				}
			}
			wait.Until(t, Patience, func() error {
				stats := victim.Node().Raft().Stats()
				if at := stats["last_snapshot_index"]; at == "0" || at == "" {
					return fmt.Errorf("no snapshot of %s yet: %v", victim.ID, stats)
				}
				if first, err := victim.Node().FirstLogIndex(); err != nil || first < 2 {
					return fmt.Errorf("the log of %s begins with %d: %w", victim.ID, first, err)
				}
				if a, b := victim.Node().Machine().Revision(), leader.Node().Machine().Revision(); a < b {
					return fmt.Errorf("%s is at revision %d of %d", victim.ID, a, b)
				}
				return nil
			})
			victim.Crash()
			path, aside := filepath.Join(victim.Config().DataDir, name), filepath.Join(filepath.Dir(victim.Config().DataDir), "aside-"+name)
			if err := os.Rename(path, aside); err != nil {
				t.Fatal(err)
			}
			err := victim.TryStart()
			if !errors.Is(err, hastate.ErrPrecondition) || !strings.Contains(err.Error(), name) {
				t.Fatalf("started without %s: %v", name, err)
			}
			// With all of its data it goes on, with the state of the others.
			if err := errors.Join(os.RemoveAll(path), os.Rename(aside, path)); err != nil {
				t.Fatal(err)
			}
			victim.Start()
		})
	}
}

// A log that is older than the state lacks entries that the node has acknowledged:
// it would vote for a leader that lacks them too.
func TestLostData_AnOlderLog(t *testing.T) {
	t.Parallel()
	for _, kind := range logstore.Kinds {
		t.Run(string(kind)+" flushed", func(t *testing.T) { olderLog(t, kind, func(*node.Node) error { return nil }) })
		// A snapshot of the node's own goes as far as the state, and vouches for no log.
		t.Run(string(kind)+" snapshot", func(t *testing.T) { olderLog(t, kind, func(n *node.Node) error { return n.Raft().Snapshot().Error() }) })
	}
}

// olderLog puts an older log back after some writes, and before was done at their end.
func olderLog(t *testing.T, kind logstore.Kind, before func(*node.Node) error) {
	t.Helper()
	c := New(t, Options{NoInstances: true, Configure: func(c *node.Config) { c.LogStore = kind }})
	leader := c.WaitLeader()
	victim := c.Others(leader)[0]
	sessions := c.Client().Sessions(hastate.DefaultGroup)
	write := func() {
		for range 10 {
			if _, err := sessions.Put(within(t), &pb.PutRequest{Session: &pb.Session{Id: "s"}}); err != nil {
				t.Fatal(err)
			}
		}
		caughtUp(t, victim, leader)
		if err := before(victim.Node()); err != nil {
			t.Fatal(err)
		}
		victim.Stop()
	}
	write()
	log := logstore.PathIn(victim.Config().DataDir, victim.Config().LogStore)
	older := log + "-older"
	copyFolder(t, older, log)
	victim.Start()
	write()
	newest := log + "-newest"
	if err := errors.Join(os.Rename(log, newest), os.Rename(older, log)); err != nil {
		t.Fatal(err)
	}
	if err := victim.TryStart(); !errors.Is(err, hastate.ErrPrecondition) || !strings.Contains(err.Error(), "the log "+filepath.Base(log)) || !strings.Contains(err.Error(), "the log is older than the rest") {
		t.Fatalf("started with an older log: %v", err)
	}
	if err := errors.Join(os.RemoveAll(log), os.Rename(newest, log)); err != nil {
		t.Fatal(err)
	}
	victim.Start()
}

// A log from before a snapshot that the node was sent may end anywhere, but it knows
// no term that the state has entries of: the node could vote in that term again.
func TestLostData_ALogOfAnOlderTerm(t *testing.T) {
	t.Parallel()
	c := New(t, Options{NoInstances: true, Configure: eager})
	leader := c.WaitLeader()
	victim, next := c.Others(leader)[0], c.Others(leader)[1]
	put(t, leader, "s", "v0")
	caughtUp(t, victim, leader)
	index := victim.Node().Raft().LastIndex()
	victim.Stop()
	log := logstore.PathIn(victim.Config().DataDir, victim.Config().LogStore)
	older := log + "-older"
	copyFolder(t, older, log)
	if err := leader.Node().TransferLeadership(within(t), next.ID); err != nil {
		t.Fatal(err)
	}
	leader = c.WaitLeader(leader, next)
	writeUntilCompacted(t, leader, index+100)
	victim.Start()
	caughtUp(t, victim, leader)
	if snapshotsTo(c, victim) == 0 {
		t.Fatal("the follower caught up without a snapshot")
	}
	victim.Crash()
	newest := log + "-newest"
	if err := errors.Join(os.Rename(log, newest), os.Rename(older, log)); err != nil {
		t.Fatal(err)
	}
	if err := victim.TryStart(); !errors.Is(err, hastate.ErrPrecondition) || !strings.Contains(err.Error(), filepath.Base(log)) {
		t.Fatalf("started with a log of an older term: %v", err)
	}
	if err := errors.Join(os.RemoveAll(log), os.Rename(newest, log)); err != nil {
		t.Fatal(err)
	}
	victim.Start()
}

// A voter that has lost its disk must not help to elect a leader that lacks an
// acknowledged write: of the two that had confirmed it, it was one.
func TestLostData_TheWholeDisk(t *testing.T) {
	t.Parallel()
	c := New(t, Options{NoInstances: true})
	leader := c.WaitLeader()
	behind := c.Others(leader)[0]
	lost := c.Others(leader, behind)[0]
	// Both are known to have had data.
	wait.Until(t, Patience, func() error {
		if n := len(leader.Node().Machine().Members()); n < 3 {
			return fmt.Errorf("%d members are recorded", n)
		}
		return nil
	})
	c.Network.Isolate(raft.ServerID(behind.ID))
	if _, err := c.Client().Sessions(hastate.DefaultGroup).Put(within(t), &pb.PutRequest{Session: &pb.Session{Id: "s"}}); err != nil {
		t.Fatal(err)
	}
	acknowledged := leader.Node().Machine().Revision()
	if r := behind.Node().Machine().Revision(); r >= acknowledged {
		t.Fatalf("%s was cut off and is at revision %d of %d", behind.ID, r, acknowledged)
	}
	leader.Crash()
	lost.Crash()
	if err := os.RemoveAll(lost.Config().DataDir); err != nil {
		t.Fatal(err)
	}
	c.Network.Heal()
	lost.Start()
	// Long enough for several elections, were there a vote to be had.
	for range 4 {
		timer := time.NewTimer(Calm.Heartbeat)
		<-timer.C
		if behind.Node().Raft().State() == raft.Leader {
			t.Fatalf("%s leads with the vote of %s, which has lost its disk; it has revision %d, a write of %d was acknowledged", behind.ID, lost.ID, behind.Node().Machine().Revision(), acknowledged)
		}
	}
	leader.Start()
	c.WaitLeader(leader, behind)
	wait.Until(t, Patience, func() error {
		if r := behind.Node().Machine().Revision(); r < acknowledged {
			return fmt.Errorf("revision %d of %d", r, acknowledged)
		}
		return nil
	})
	// It says what to do, and once that is done it is a member again.
	if err := lost.Wait(); !errors.Is(err, hastate.ErrPrecondition) || !strings.Contains(err.Error(), "member remove") {
		t.Fatalf("%s ended with: %v", lost.ID, err)
	}
	lost.Crash()
	cluster := pb.NewClusterServiceClient(dial(t, c.WaitLeader(leader, behind)))
	if _, err := cluster.RemoveMember(within(t), &pb.RemoveMemberRequest{NodeId: lost.ID, Force: true}); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(lost.Config().DataDir); err != nil {
		t.Fatal(err)
	}
	lost.Start()
	wait.Until(t, Patience, func() error {
		configuration, _ := leader.Node().Machine().Configuration()
		for _, s := range configuration.Servers {
			if s.ID == raft.ServerID(lost.ID) && s.Suffrage == raft.Voter {
				return nil
			}
		}
		return fmt.Errorf("%s is not a voter again: %v", lost.ID, configuration)
	})
}

// A node whose disk fails when raft wants to save a new term ends with the
// error of the disk, as after any other failed write.
func TestTermCannotBeSaved(t *testing.T) {
	c := New(t, Options{NoInstances: true})
	leader := c.WaitLeader()
	others := c.Others(leader)
	broken := others[0]
	broken.Log.Fail()
	// There is nothing to append; the next leader asks for votes in a new term.
	if err := leader.Node().TransferLeadership(within(t), others[1].ID); err != nil {
		t.Logf("transfer: %v", err) // its barrier may have found the broken node first
	}
	if err := broken.Wait(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("it ended with %v", err)
	}
	broken.Log.Heal()
	broken.Stop()
	broken.Start()
	c.WaitLeader()
}
