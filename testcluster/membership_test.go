// SPDX-License-Identifier: Apache-2.0

package testcluster

import (
	"fmt"
	"testing"

	"github.com/hastate/hastate/internal/wait"
	"github.com/hastate/hastate/transport"
)

// A voter that has lost its data must not vote before a majority has taken it in
// anew: what it has acknowledged may be in no other log that decides.
func TestMember_VoterWithoutItsData(t *testing.T) {
	t.Parallel()
	c := New(t, Options{NoInstances: true})
	c.WaitLeader()
	m := c.Others(c.WaitLeader())[0]
	m.Stop()
	m.Wipe()
	// Nobody is at its join address, but the others know where it is.
	m.Config().Join = []string{newAddress(t)}
	m.Config().BootstrapExpect = 0
	m.Start()
	leader := c.WaitLeader(c.Others(m)...)
	before := c.Network.Sent(raftID(leader), raftID(m), transport.KindHeartbeat)
	wait.Until(t, Patience, func() error {
		if now := c.Network.Sent(raftID(leader), raftID(m), transport.KindHeartbeat); now < before+20 {
			return fmt.Errorf("%d heartbeats", now-before)
		}
		return nil
	})
	t.Log(m.Node().Raft().LastIndex(), m.Node().Raft().CurrentTerm(), m.Node().Problems())
}
