// SPDX-License-Identifier: Apache-2.0

package testcluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// suffrage waits until all of the given members see a node with a role; gone
// waits until it is in nobody's configuration.
func suffrage(t *testing.T, id string, want raft.ServerSuffrage, among ...*Member) {
	t.Helper()
	waitConfiguration(t, id, want.String(), among...)
}

func gone(t *testing.T, id string, among ...*Member) {
	t.Helper()
	waitConfiguration(t, id, "gone", among...)
}

func waitConfiguration(t *testing.T, id, want string, among ...*Member) {
	t.Helper()
	wait.Until(t, Patience, func() error {
		for _, m := range among {
			configuration, _ := m.Node().Machine().Configuration()
			got := "gone"
			for _, s := range configuration.Servers {
				if string(s.ID) == id {
					got = s.Suffrage.String()
				}
			}
			if got != want {
				return fmt.Errorf("%s sees %s as %s, want %s", m.ID, id, got, want)
			}
		}
		return nil
	})
}

// change makes a change of the membership and insists while it may go better
// later.
func change(t *testing.T, c *client.Client, do func(context.Context, pb.ClusterServiceClient) error) {
	t.Helper()
	ctx := within(t)
	wait.Until(t, Patience, func() error {
		err := c.Call(ctx, client.Repeatable, func(ctx context.Context, cc grpc.ClientConnInterface) error {
			return do(ctx, pb.NewClusterServiceClient(cc))
		})
		if errors.Is(err, hastate.ErrNotFound) {
			return nil // removed by an attempt whose answer was lost
		}
		return err
	})
}

func remove(id string) func(context.Context, pb.ClusterServiceClient) error {
	return func(ctx context.Context, c pb.ClusterServiceClient) error {
		_, err := c.RemoveMember(ctx, &pb.RemoveMemberRequest{NodeId: id})
		return err
	}
}

func promote(id string) func(context.Context, pb.ClusterServiceClient) error {
	return func(ctx context.Context, c pb.ClusterServiceClient) error {
		_, err := c.PromoteMember(ctx, &pb.PromoteMemberRequest{NodeId: id})
		return err
	}
}

func demote(id string) func(context.Context, pb.ClusterServiceClient) error {
	return func(ctx context.Context, c pb.ClusterServiceClient) error {
		_, err := c.DemoteMember(ctx, &pb.DemoteMemberRequest{NodeId: id})
		return err
	}
}

// notReady waits until a member says why it is not ready.
func notReady(t *testing.T, m *Member, because string) {
	t.Helper()
	wait.Until(t, Patience, func() error {
		ready, why := m.Node().Ready()
		if ready || !strings.Contains(why, because) {
			return fmt.Errorf("%s: ready %v, %q", m.ID, ready, why)
		}
		if problems := strings.Join(m.Node().Problems(), "; "); !strings.Contains(problems, because) {
			return fmt.Errorf("%s: problems %q", m.ID, problems)
		}
		return nil
	})
}

// ends waits for a member that ends by itself with an error that says because.
func ends(t *testing.T, m *Member, because string) {
	t.Helper()
	if err := m.Reap(); err == nil || !strings.Contains(err.Error(), because) {
		t.Fatalf("%s ended with %v, want %q", m.ID, err, because)
	}
}

func TestMember_ReplicaVoterRemovedAndBack(t *testing.T) {
	t.Parallel()
	c := New(t, Options{NoInstances: true})
	leader := c.WaitLeader()
	operator := c.Client()
	put(t, leader, "s", "before")
	first := c.Running()

	replica := c.Join("r1", true)
	suffrage(t, "r1", raft.Nonvoter, c.Running()...)
	if got, err := read(within(t), dial(t, replica), "s"); err != nil || got != "before" {
		t.Fatalf("a linearizable read at the replica: %q, %v", got, err)
	}
	change(t, operator, promote("r1"))
	suffrage(t, "r1", raft.Voter, c.Running()...)
	change(t, operator, demote("r1"))
	suffrage(t, "r1", raft.Nonvoter, c.Running()...)

	added := c.Join("n4", false)
	suffrage(t, "n4", raft.Voter, c.Running()...)

	// Removed, it says so, and goes on saying so when it comes back with its data.
	// It disturbs nobody.
	change(t, operator, remove("n4"))
	gone(t, "n4", c.Others(added)...)
	notReady(t, added, "is not a member of this cluster")
	term := c.WaitLeader(first...).Node().Raft().CurrentTerm()
	added.Stop()
	added.Start()
	notReady(t, added, "is not a member of this cluster")
	if got := c.WaitLeader(first...).Node().Raft().CurrentTerm(); got != term {
		t.Logf("term %d after %d: another election came, maybe for its own reason", got, term)
	}
	added.Stop()
	added.Wipe()
	added.Start()
	suffrage(t, "n4", raft.Voter, c.Running()...)

	// The leader removes itself: another leads, and it is out.
	leader = c.WaitLeader()
	change(t, operator, remove(leader.ID))
	gone(t, leader.ID, c.Others(leader)...)
	put(t, c.WaitLeader(c.Others(leader)...), "s", "after")
	leader.Stop()
}

func TestMember_DeadNodeReplaced(t *testing.T) {
	t.Parallel()
	c := New(t, Options{})
	c.WaitReady()
	dead, epoch := c.WaitPrimary(0)
	dead.Crash()
	dead.Instance.Kill()
	second, _ := c.WaitPrimary(epoch)
	operator := c.Client()
	change(t, operator, remove(dead.ID))
	gone(t, dead.ID, c.Running()...)
	wait.Until(t, Patience, func() error {
		for _, in := range second.Node().Machine().Instances(hastate.DefaultGroup) {
			if in.GetNodeId() == dead.ID {
				return fmt.Errorf("the instance of %s is still registered", dead.ID)
			}
		}
		return nil
	})
	fresh := c.Join("n4", false)
	suffrage(t, fresh.ID, raft.Voter, c.Running()...)
	c.WaitReady()
	// The newcomer counts: one of the first three may fail.
	third := c.Others(second, fresh)[0]
	third.Crash()
	third.Instance.Kill()
	put(t, c.WaitLeader(), "s", "v")
	if p, _ := c.WaitPrimary(0); p != second {
		t.Logf("primaryship moved from %s to %s", second.ID, p.ID)
	}
	third.Instance.Restart()
	third.Start()
	c.WaitReady()
}

// A voter that has lost its data must not vote before a majority has taken it in
// anew: what it acknowledged may be in no other log of the next majority. It is
// refused even when it cannot find the others and they find it.
func TestMember_VoterWithoutItsData(t *testing.T) {
	t.Parallel()
	c := New(t, Options{NoInstances: true})
	leader := c.WaitLeader()
	lost := c.Others(leader)[0]
	join := lost.Config().Join
	for name, prepare := range map[string]func(){
		"it finds the others":         func() {},
		"it is one of the founders":   func() { lost.Config().BootstrapExpect = 3 },
		"it looks in the wrong place": func() { lost.Config().Join, lost.Config().BootstrapExpect = []string{newAddress(t)}, 0 },
	} {
		lost.Stop()
		lost.Wipe()
		lost.Config().Join, lost.Config().BootstrapExpect = join, 0
		prepare()
		lost.Start()
		t.Log(name)
		r := lost.Node().Raft()
		err := lost.Wait()
		if err == nil || !strings.Contains(err.Error(), "comes back without its data") {
			t.Fatalf("%s: ended with %v", name, err)
		}
		if r.LastIndex() != 0 || r.CurrentTerm() != 0 {
			t.Fatalf("%s: it took part: last index %d, term %d", name, r.LastIndex(), r.CurrentTerm())
		}
	}
	lost.Stop()
	// Removed, it may join as a new node.
	change(t, c.Client(), remove(lost.ID))
	gone(t, lost.ID, c.Running()...)
	lost.Wipe()
	lost.Config().Join = join
	lost.Start()
	suffrage(t, lost.ID, raft.Voter, c.Running()...)
}

func TestMember_Refusals(t *testing.T) {
	t.Parallel()
	c := New(t, Options{NoInstances: true})
	c.WaitLeader()

	twin := c.Prepare("n2", "twin")
	twin.Start()
	ends(t, twin, `node id "n2" is in use by a running node`)

	nowhere := c.Prepare("n5", "")
	nowhere.Config().Join = nil
	nowhere.Start()
	ends(t, nowhere, "give join addresses")

	wrong := c.Prepare("n6", "")
	wrong.Config().Join = []string{newAddress(t)}
	wrong.Start()
	notReady(t, wrong, "no node of a cluster answered at the join addresses ("+wrong.Config().Join[0])
	wrong.Stop()

	// A node that belongs elsewhere.
	other := New(t, Options{Nodes: 1, Prefix: "x", NoInstances: true})
	stranger := other.Members[0]
	other.WaitLeader()
	stranger.Stop()
	stranger.Config().Join = c.Endpoints()[:3]
	stranger.Start()
	ends(t, stranger, "belongs to cluster")

	// It is not even taken in when an operator names it.
	stranger.Config().Join = nil
	stranger.Start()
	other.WaitLeader()
	_, err := pb.NewClusterServiceClient(dial(t, c.WaitLeader(c.Members[:3]...))).AddMember(within(t), &pb.AddMemberRequest{
		NodeId: stranger.ID, Address: stranger.Config().Listen,
	})
	if err = hastate.FromStatus(err); !errors.Is(err, hastate.ErrPrecondition) && !errors.Is(err, hastate.ErrAlreadyExists) {
		t.Fatalf("add a node of another cluster: %v", err)
	}
}
