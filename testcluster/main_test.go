// SPDX-License-Identifier: Apache-2.0

package testcluster

import (
	"context"
	"testing"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

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
