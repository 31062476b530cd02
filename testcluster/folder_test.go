// SPDX-License-Identifier: Apache-2.0

package testcluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// A voter that comes back without its data has forgotten its votes and entries
// that a majority counted. The leader goes on sending to it: it must not take
// anything, and it must end, until it is removed.
func TestWipedVoter(t *testing.T) {
	c := New(t, Options{NoInstances: true})
	leader := c.WaitLeader()
	wait.Until(t, Patience, func() error { // a member is refused by what its record says
		if n := len(leader.Node().Machine().Members()); n < 3 {
			return fmt.Errorf("%d member records", n)
		}
		return nil
	})
	wiped := c.Others(leader)[0]
	wiped.Crash()
	if err := os.RemoveAll(wiped.Config().DataDir); err != nil {
		t.Fatal(err)
	}
	// It knows of nobody and is found by the others first.
	join := wiped.Config().Join
	wiped.Config().Join = nil
	wiped.Start()
	n := wiped.Node()
	if err := wiped.Wait(); !errors.Is(err, hastate.ErrPrecondition) {
		t.Fatalf("it ended with %v", err)
	}
	if last := n.Raft().LastIndex(); last != 0 {
		t.Errorf("it took entries up to %d", last)
	}
	wiped.Stop()

	// Removed, it is taken in as a new one.
	ctx := within(t)
	if _, err := pb.NewClusterServiceClient(dial(t, leader)).RemoveMember(ctx, &pb.RemoveMemberRequest{NodeId: wiped.ID, Force: true}); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(wiped.Config().DataDir); err != nil {
		t.Fatal(err)
	}
	wiped.Config().Join = join
	wiped.Start()
	c.WaitLeader()
}

// The loss of one file of a data folder must be noticed: both databases are made
// when they are not there.
func TestFolderWithoutAFile(t *testing.T) {
	for _, name := range []string{"raft.db", "state.db"} {
		t.Run(name, func(t *testing.T) {
			c := New(t, Options{NoInstances: true})
			c.WaitLeader()
			m := c.Members[2]
			n := m.Node()
			wait.Until(t, Patience, func() error { // with a snapshot, the log is not all
				if err := n.Raft().Snapshot().Error(); err != nil {
					return err
				}
				if n.Machine().Flushed() == 0 {
					return errors.New("nothing is flushed")
				}
				return nil
			})
			m.Stop()
			file := filepath.Join(m.Config().DataDir, name)
			if err := os.Rename(file, file+".aside"); err != nil {
				t.Fatal(err)
			}
			if err := m.TryStart(); !errors.Is(err, hastate.ErrPrecondition) {
				if err == nil {
					m.Stop()
				}
				t.Fatalf("without %s: %v", name, err)
			}
			if err := os.Rename(file+".aside", file); err != nil {
				t.Fatal(err)
			}
			m.Start()
			c.WaitLeader()
		})
	}
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
