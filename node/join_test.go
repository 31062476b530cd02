// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// peerThat answers Join as a test wants.
type peerThat struct {
	pb.UnimplementedPeerServiceServer
	join func() (*pb.JoinResponse, error)
}

func (p peerThat) Join(context.Context, *pb.JoinRequest) (*pb.JoinResponse, error) {
	reply, err := p.join()
	return reply, hastate.ToStatus(err)
}

func servePeer(t *testing.T, p peerThat) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, done := grpc.NewServer(), make(chan struct{})
	pb.RegisterPeerServiceServer(server, p)
	go func() {
		defer close(done)
		_ = server.Serve(l) // it ends with Stop
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return l.Addr().String()
}

func openNode(t *testing.T) *Node {
	t.Helper()
	n, err := Open(Config{NodeID: "n2", DataDir: t.TempDir(), Listen: "127.0.0.1:0", BootstrapExpect: 3})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// While a cluster begins, its leader's log may reach a node between any two steps
// of its own attempt to join.
func TestJoinExisting_WhileTheClusterBegins(t *testing.T) {
	n := openNode(t)
	var answer func() (*pb.JoinResponse, error)
	seen := &pb.HelloResponse{NodeId: "n1", Address: servePeer(t, peerThat{join: func() (*pb.JoinResponse, error) { return answer() }})}

	if err := n.identity.Pin("c1"); err != nil { // by the leader's first append
		t.Fatal(err)
	}
	answer = func() (*pb.JoinResponse, error) { return &pb.JoinResponse{}, nil }
	if why, err := n.joinExisting(t.Context(), seen); err != nil || why == "" {
		t.Fatalf("an answer without a cluster id: %q, %v", why, err)
	}

	answer = func() (*pb.JoinResponse, error) { return nil, hastate.ErrPrecondition }
	if _, err := n.joinExisting(t.Context(), seen); err == nil {
		t.Fatal("a refusal of an empty node is not taken for one")
	}
	answer = func() (*pb.JoinResponse, error) {
		n.hadState = true // the log has come meanwhile
		return nil, hastate.ErrPrecondition
	}
	if why, err := n.joinExisting(t.Context(), seen); err != nil || why != "" {
		t.Fatalf("a refusal for being empty that is out of date: %q, %v", why, err)
	}

	answer = func() (*pb.JoinResponse, error) { return &pb.JoinResponse{ClusterId: "c2"}, nil }
	if _, err := n.joinExisting(t.Context(), seen); err == nil || !strings.Contains(err.Error(), "c2") {
		t.Fatalf("another cluster: %v", err)
	}
}

// A node that is not of the cluster cannot say where a member is, nor fill the table
// of addresses.
func TestHello_OfAStranger(t *testing.T) {
	n := openNode(t)
	hello := func(id, address, cluster string) {
		t.Helper()
		if _, err := n.Hello(t.Context(), &pb.HelloRequest{NodeId: id, Address: address, ClusterId: cluster, BootId: "b"}); err != nil {
			t.Fatal(err)
		}
	}
	where := func(want string) {
		t.Helper()
		if got, _ := n.identity.Address("n3"); got != want {
			t.Fatalf("n3 is at %q, want %q", got, want)
		}
	}
	hello("n3", "first:1", "") // a cluster that begins
	where("first:1")
	if err := n.identity.Pin("c1"); err != nil {
		t.Fatal(err)
	}
	hello("n3", "stranger:1", "")
	where("first:1")
	hello("n3", "moved:1", "c1")
	where("moved:1")
	for i := range 2 * maxAddresses {
		hello(fmt.Sprintf("x%d", i), "x:1", "")
	}
	if known := n.identity.Addresses(); len(known) != 1 {
		t.Fatalf("%d addresses are remembered", len(known))
	}
}
