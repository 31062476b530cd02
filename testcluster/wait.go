// SPDX-License-Identifier: Apache-2.0

package testcluster

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// WaitLeader waits until all of the given members (none: all that run) follow
// one leader among them, and returns it.
func (c *Cluster) WaitLeader(among ...*Member) *Member {
	c.tb.Helper()
	if len(among) == 0 {
		among = c.Running()
	}
	var leader *Member
	wait.Until(c.tb, Patience, func() error {
		ids := map[string]int{}
		for _, m := range among {
			_, id := m.node.Leader()
			ids[id]++
		}
		for id, n := range ids {
			i := slices.IndexFunc(among, func(m *Member) bool { return m.ID == id })
			if n == len(among) && i >= 0 && among[i].node.Leading() {
				leader = among[i]
				return nil
			}
		}
		return fmt.Errorf("leaders by node: %v", ids)
	})
	return leader
}

// WaitPrimary waits until a member's instance serves under an epoch above, as
// all of the given members (none: all that run) see it.
func (c *Cluster) WaitPrimary(above uint64, among ...*Member) (*Member, uint64) {
	c.tb.Helper()
	if len(among) == 0 {
		among = c.Running()
	}
	var holder string
	var epoch uint64
	wait.Until(c.tb, Patience, func() error {
		var views []string
		for _, m := range among {
			g, _ := m.node.Machine().Group(hastate.DefaultGroup)
			views = append(views, fmt.Sprintf("%s sees %s %q epoch %d", m.ID, g.GetPhase(), g.GetHolder(), g.GetEpoch()))
			if g.GetPhase() != pb.GroupPhase_GROUP_PHASE_SERVING || g.GetEpoch() <= above {
				return errors.New(strings.Join(views, "; "))
			}
			if m != among[0] && g.GetEpoch() != epoch {
				return errors.New(strings.Join(views, "; "))
			}
			holder, epoch = g.GetHolder(), g.GetEpoch()
		}
		return nil
	})
	return c.Member(holder), epoch
}

// WaitReady waits until every running member has reported a READY instance.
func (c *Cluster) WaitReady() {
	c.tb.Helper()
	wait.Until(c.tb, Patience, func() error {
		ready := 0
		m := c.Running()[0]
		for _, in := range m.node.Machine().Instances(hastate.DefaultGroup) {
			if in.GetState() == pb.InstanceState_INSTANCE_STATE_READY {
				ready++
			}
		}
		if want := len(c.Running()); ready < want {
			return fmt.Errorf("%d of %d instances are ready on %s", ready, want, m.ID)
		}
		return nil
	})
}
