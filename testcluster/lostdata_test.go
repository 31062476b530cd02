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

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/wait"
	"github.com/hastate/hastate/node"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// A node of which a part of the data is lost must not go on with the rest: without
// its state it would apply what comes to an empty one, without its log it could
// vote twice.
func TestLostData_APartOfTheFolder(t *testing.T) {
	for _, name := range []string{"state.db", "raft.db", "snapshots"} {
		t.Run(name, func(t *testing.T) {
			c := New(t, Options{NoInstances: true, Configure: func(c *node.Config) {
				c.Snapshot = node.SnapshotPolicy{Interval: 20 * time.Millisecond, Threshold: 5, Trailing: 5}
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
