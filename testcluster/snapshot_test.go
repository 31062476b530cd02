// SPDX-License-Identifier: Apache-2.0

package testcluster

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/wait"
	"github.com/hastate/hastate/node"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/transport"
)

// eager compacts the log after a few entries.
func eager(c *node.Config) {
	c.Snapshot = node.SnapshotPolicy{Interval: 20 * time.Millisecond, Threshold: 20, Trailing: 5}
}

// writeUntilCompacted writes at the leader, one entry after the other, until its
// newest snapshot is at an index.
func writeUntilCompacted(t *testing.T, leader *Member, index uint64) {
	t.Helper()
	conn := dial(t, leader)
	n := 0
	wait.Until(t, Patience, func() error {
		n++
		_, err := pb.NewSessionServiceClient(conn).Put(within(t), &pb.PutRequest{Session: &pb.Session{Id: "fill-" + strconv.Itoa(n%7), Value: []byte(strconv.Itoa(n))}})
		if err != nil {
			return err
		}
		snapshot, err := strconv.ParseUint(leader.Node().Raft().Stats()["last_snapshot_index"], 10, 64)
		if err != nil {
			return err
		}
		if snapshot < index {
			return fmt.Errorf("the newest snapshot is at %d, want %d", snapshot, index)
		}
		return nil
	})
}

// snapshotsTo counts what was sent to a member of snapshots.
func snapshotsTo(c *Cluster, to *Member) uint64 {
	var n uint64
	for _, m := range c.Members {
		if m != to {
			n += c.Network.Sent(raftID(m), raftID(to), transport.KindSnapshot)
		}
	}
	return n
}

// caughtUp waits until a member has applied what a leader has.
func caughtUp(t *testing.T, m, leader *Member) {
	t.Helper()
	want, _ := leader.Node().Machine().Applied()
	wait.Until(t, Patience, func() error {
		if got, _ := m.Node().Machine().Applied(); got < want {
			return fmt.Errorf("%s has applied %d of %d", m.ID, got, want)
		}
		return nil
	})
}

// A follower that was away for long, and one whose log goes another way than the
// leader's, get a snapshot and go on with the log after it, also when they are
// restarted on the way.
func TestSnapshot_FarBehindAndDivergent(t *testing.T) {
	t.Parallel()
	c := New(t, Options{NoInstances: true, Configure: eager})
	leader := c.WaitLeader()
	put(t, leader, "s", "v0")

	behind := c.Others(leader)[0]
	index := behind.Node().Raft().LastIndex()
	behind.Crash()
	writeUntilCompacted(t, leader, index+100)
	behind.Start()
	caughtUp(t, behind, leader)
	if snapshotsTo(c, behind) == 0 {
		t.Fatal("the follower caught up without a snapshot")
	}

	// The leader is cut off with entries that only it has, while the others go on:
	// beyond them, or, as with a long tail, not that far.
	for round, tail := range []int{400, 400, 3, 3} {
		old := c.WaitLeader()
		others := c.Others(old)
		before := snapshotsTo(c, old)
		c.Network.Isolate(raftID(old))
		common := old.Node().Raft().CommitIndex()
		for range tail {
			old.Node().Raft().Barrier(0) // it is answered when the node leads no more
		}
		wait.Until(t, Patience, func() error {
			last := old.Node().Raft().LastIndex()
			if last < common+uint64(tail) && old.Node().Raft().State() == raft.Leader { //nolint:gosec // small
				return fmt.Errorf("%s has entries up to %d", old.ID, last)
			}
			return nil
		})
		next := c.WaitLeader(others...)
		restart := round%2 == 1
		if restart {
			old.Crash()
		}
		writeUntilCompacted(t, next, common+60)
		if restart {
			old.Start()
		}
		c.Network.Heal()
		if restart { // again, while it catches up
			wait.Until(t, Patience, func() error {
				if snapshotsTo(c, old) == before {
					return fmt.Errorf("%s gets no snapshot", old.ID)
				}
				return nil
			})
			old.Crash()
			old.Start()
		}
		caughtUp(t, old, next)
		if snapshotsTo(c, old) == before {
			t.Fatal("the former leader caught up without a snapshot")
		}
	}
	// The state on the disk is the same as that in memory: all start from it.
	for _, m := range c.Members {
		m.Crash()
	}
	for _, m := range c.Members {
		m.Start()
	}
	if got, err := read(within(t), dial(t, c.WaitLeader()), "s"); err != nil || got != "v0" {
		t.Fatalf("got %q, %v", got, err)
	}
}

// save reads a whole archive from one member.
func save(t *testing.T, m *Member) []byte {
	t.Helper()
	stream, err := pb.NewClusterServiceClient(dial(t, m)).SaveSnapshot(within(t), &pb.SaveSnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	for {
		msg, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return archive.Bytes()
		}
		if err != nil {
			t.Fatal(err)
		}
		archive.Write(msg.GetChunk())
	}
}

func restore(t *testing.T, m *Member, archive []byte) (*pb.RestoreSnapshotResponse, error) {
	t.Helper()
	stream, err := pb.NewClusterServiceClient(dial(t, m)).RestoreSnapshot(within(t))
	if err != nil {
		t.Fatal(err)
	}
	for len(archive) > 0 {
		n := min(len(archive), 200<<10)
		if err := stream.Send(&pb.RestoreSnapshotRequest{Chunk: archive[:n]}); err != nil {
			break // CloseAndRecv says why
		}
		archive = archive[n:]
	}
	reply, err := stream.CloseAndRecv()
	return reply, hastate.FromStatus(err)
}

func TestArchive_SaveAndRestore(t *testing.T) {
	t.Parallel()
	c := New(t, Options{})
	c.WaitReady()
	first, _ := c.WaitPrimary(0)
	leader := c.WaitLeader()
	other := c.Others(leader)[0]
	sessions := c.Client().Sessions(hastate.DefaultGroup)
	for i := range 40 {
		put(t, leader, fmt.Sprintf("s-%02d", i), fmt.Sprint("saved ", i))
	}
	archive := save(t, other)

	// What the backup says of the lease is not true any more.
	epoch := makePrimary(t, c, c.Others(first)[0])
	put(t, leader, "s-00", "changed")
	put(t, leader, "new", "after the backup")
	if _, err := sessions.Delete(within(t), &pb.DeleteRequest{Id: "s-01"}); err != nil {
		t.Fatal(err)
	}

	// Any flipped byte is found before anything is changed: one in each part.
	for _, at := range []int{0, 9, 40, len(archive) / 3, len(archive) / 2, len(archive) - 3} {
		bad := bytes.Clone(archive)
		bad[at] ^= 0x20
		if _, err := restore(t, other, bad); !errors.Is(err, hastate.ErrInvalid) {
			t.Fatalf("an archive with byte %d of %d flipped: %v", at, len(bad), err)
		}
	}
	if _, err := restore(t, other, archive[:len(archive)/2]); !errors.Is(err, hastate.ErrInvalid) {
		t.Fatalf("half an archive: %v", err)
	}
	if got, err := read(within(t), dial(t, other), "s-00"); err != nil || got != "changed" {
		t.Fatalf("after refused archives: %q, %v", got, err)
	}
	if p, again := c.WaitPrimary(0); again != epoch {
		t.Logf("primaryship moved to %s for a reason of its own", p.ID)
	}

	// The primary does not hear of the restore.
	held, before := c.WaitPrimary(0)
	rest := c.Others(held)
	makeLead(t, c, rest[0])
	c.Network.Isolate(raftID(held))
	reply, err := restore(t, rest[1], archive)
	if err != nil || reply.GetRecords() == 0 {
		t.Fatalf("restore: %v, %v", reply, err)
	}
	for id, want := range map[string]string{"s-00": "saved 0", "s-01": "saved 1", "s-39": "saved 39"} {
		if got, err := read(within(t), dial(t, rest[1]), id); err != nil || got != want {
			t.Fatalf("after the restore %s is %q, %v, want %q", id, got, err, want)
		}
	}
	if _, err := sessions.Get(within(t), "new", pb.ReadLevel_READ_LEVEL_LINEARIZABLE); !errors.Is(err, hastate.ErrNotFound) {
		t.Fatalf("what was written after the backup: %v", err)
	}
	// Who held the lease is waited out; the monitor sees that no two overlap.
	c.WaitPrimary(before, rest...)
	c.Network.Heal()
	c.WaitPrimary(before)
	c.WaitReady()
	// Writes go on; a node that was away gets there too.
	other.Crash()
	for i := range 10 {
		_, err := sessions.Put(within(t), &pb.PutRequest{Session: &pb.Session{Id: fmt.Sprint("later-", i)}})
		if err != nil && !errors.Is(err, hastate.ErrOutcomeUnknown) && !errors.Is(err, hastate.ErrClientExpired) {
			t.Fatal(err)
		}
	}
	other.Start()
	c.WaitLeader()
}

// TestArchive_OneAtATime: restores share a file, so a second one must not begin while
// one is under way.
func TestArchive_OneAtATime(t *testing.T) {
	t.Parallel()
	c := New(t, Options{})
	c.WaitReady()
	leader := c.WaitLeader()
	put(t, leader, "s", "saved")
	archive := save(t, leader)
	put(t, leader, "s", "changed")
	first, err := pb.NewClusterServiceClient(dial(t, leader)).RestoreSnapshot(within(t))
	if err != nil {
		t.Fatal(err)
	}
	half := len(archive) / 2
	if err := first.Send(&pb.RestoreSnapshotRequest{Chunk: archive[:half]}); err != nil {
		t.Fatal(err)
	}
	// It is under way when a second one is told so. One that is let in before is no
	// archive, and changes nothing.
	wait.Until(t, Patience, func() error {
		if _, err := restore(t, leader, []byte("no archive")); !errors.Is(err, hastate.ErrPrecondition) {
			return errors.Join(errors.New("a second restore was not refused"), err)
		}
		return nil
	})
	if err := first.Send(&pb.RestoreSnapshotRequest{Chunk: archive[half:]}); err != nil {
		t.Fatal(err)
	}
	if reply, err := first.CloseAndRecv(); err != nil || reply.GetRecords() == 0 {
		t.Fatalf("the first restore: %v, %v", reply, hastate.FromStatus(err))
	}
	if got, err := read(within(t), dial(t, leader), "s"); err != nil || got != "saved" {
		t.Fatalf("after the restore: %q, %v", got, err)
	}
}
