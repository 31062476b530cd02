// SPDX-License-Identifier: Apache-2.0

package testcluster

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/wait"
)

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
