// SPDX-License-Identifier: Apache-2.0

package testcluster

import (
	"context"
	"flag"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/hastate/hastate"
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

// put writes a session at one member and fails the test if it cannot.
func put(t *testing.T, m *Member, id, value string) {
	t.Helper()
	if err := tryPut(within(t), t, m, id, value); err != nil {
		t.Fatalf("put at %s: %v", m.ID, err)
	}
}

func tryPut(ctx context.Context, t *testing.T, m *Member, id, value string) error {
	t.Helper()
	_, err := pb.NewSessionServiceClient(dial(t, m)).Put(ctx, &pb.PutRequest{Session: &pb.Session{Id: id, Value: []byte(value)}})
	return hastate.FromStatus(err)
}

// read reads a session at one member, linearizably; found is its value.
func read(ctx context.Context, conn grpc.ClientConnInterface, id string) (found string, err error) {
	reply, err := pb.NewSessionServiceClient(conn).Get(ctx, &pb.GetRequest{Id: id, Level: pb.ReadLevel_READ_LEVEL_LINEARIZABLE})
	return string(reply.GetSession().GetValue()), hastate.FromStatus(err)
}
