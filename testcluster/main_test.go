// SPDX-License-Identifier: Apache-2.0

package testcluster

import (
	"context"
	"flag"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// TestMain lets a few clusters run at once, since their tests mostly wait, and
// looks for leaked goroutines when all have ended. -test.parallel=1 -run X tells
// whose they are.
func TestMain(m *testing.M) {
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// dial connects to one member's API.
func dial(t *testing.T, m *Member) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+m.Config().Listen, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Errorf("close connection: %v", err)
		}
	})
	return conn
}

// within is the context of one test's calls.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	t.Cleanup(cancel)
	return ctx
}

// transition finds the record of an epoch in a member's history.
func transition(t *testing.T, m *Member, epoch uint64) *pb.Transition {
	t.Helper()
	for _, tr := range m.Node().Machine().History(hastate.DefaultGroup, 100) {
		if tr.GetEpoch() == epoch {
			return tr
		}
	}
	t.Fatalf("%s has no transition to epoch %d", m.ID, epoch)
	return nil
}

func raftID(m *Member) raft.ServerID { return raft.ServerID(m.ID) }

// makeLead brings leadership to a member, however often elections get in
// between.
func makeLead(t *testing.T, c *Cluster, to *Member) {
	t.Helper()
	deadline := time.Now().Add(Patience)
	for {
		leader := c.WaitLeader()
		if leader == to {
			return
		}
		err := leader.Node().TransferLeadership(within(t), to.ID)
		if time.Now().After(deadline) {
			t.Fatalf("leadership does not get to %s: %v", to.ID, err)
		}
	}
}

// makePrimary brings primaryship to a member, and returns its epoch.
func makePrimary(t *testing.T, c *Cluster, to *Member) uint64 {
	t.Helper()
	c.WaitReady()
	deadline := time.Now().Add(Patience)
	for {
		holder, epoch := c.WaitPrimary(0)
		if holder == to {
			return epoch
		}
		_, err := pb.NewGroupServiceClient(dial(t, to)).Switchover(within(t), &pb.SwitchoverRequest{To: to.ID, Reason: "test"})
		if time.Now().After(deadline) {
			t.Fatalf("primaryship does not get to %s: %v", to.ID, err)
		}
	}
}

// ordered has an order carried out, and insists: nodes of a busy machine may not
// answer the leader in time.
func ordered(t *testing.T, c *Cluster, order func(primary *Member, epoch uint64) error) {
	t.Helper()
	deadline := time.Now().Add(Patience)
	for {
		err := order(c.WaitPrimary(0))
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// replaced is the transition that followed an epoch, and stays what has to be
// said if another epoch than this one serves: on a busy machine leases run out.
func replaced(t *testing.T, m *Member, epoch uint64) *pb.Transition {
	t.Helper()
	for _, tr := range m.Node().Machine().History(hastate.DefaultGroup, 100) {
		if tr.GetEpochBefore() == epoch {
			return tr
		}
	}
	t.Fatalf("%s has no transition from epoch %d", m.ID, epoch)
	return nil
}

func stays(t *testing.T, c *Cluster, holder *Member, epoch uint64) {
	t.Helper()
	p, again := c.WaitPrimary(0)
	if p == holder && again == epoch {
		return
	}
	tr := replaced(t, p, epoch)
	if !strings.Contains(tr.GetReason(), "lease") {
		t.Fatalf("primaryship moved from %s: %v", holder.ID, tr)
	}
	t.Logf("primaryship moved from %s for a reason of its own: %s", holder.ID, tr.GetReason())
}

// put writes a session at one member, over and over until that is acknowledged.
func put(t *testing.T, m *Member, id, value string) {
	t.Helper()
	conn := dial(t, m)
	ctx := within(t)
	wait.Until(t, Patience, func() error { return tryPut(ctx, conn, id, value) })
}

func tryPut(ctx context.Context, conn grpc.ClientConnInterface, id, value string) error {
	_, err := pb.NewSessionServiceClient(conn).Put(ctx, &pb.PutRequest{Session: &pb.Session{Id: id, Value: []byte(value)}})
	return hastate.FromStatus(err)
}

// read reads a session at one member, linearizably; found is its value.
func read(ctx context.Context, conn grpc.ClientConnInterface, id string) (found string, err error) {
	reply, err := pb.NewSessionServiceClient(conn).Get(ctx, &pb.GetRequest{Id: id, Level: pb.ReadLevel_READ_LEVEL_LINEARIZABLE})
	return string(reply.GetSession().GetValue()), hastate.FromStatus(err)
}
