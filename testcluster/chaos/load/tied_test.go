// SPDX-License-Identifier: Apache-2.0

package load

import (
	"context"
	"net"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// elsewhere is a node that names another one as the leader, the first time.
type elsewhere struct {
	pb.UnimplementedSessionServiceServer
	calls atomic.Int64
}

func (e *elsewhere) Get(context.Context, *pb.GetRequest) (*pb.GetResponse, error) {
	if e.calls.Add(1) == 1 {
		return nil, hastate.ToStatus(&hastate.NotLeaderError{LeaderID: "n2", LeaderAddress: "192.0.2.1:7000"})
	}
	return &pb.GetResponse{Session: &pb.Session{Id: "k", Revision: 7}}, nil
}

// TestTied_KeepsToItsNode: a tied client does not follow a hint to another node.
func TestTied_KeepsToItsNode(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	node, server := &elsewhere{}, grpc.NewServer()
	pb.RegisterSessionServiceServer(server, node)
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	o := Options{Groups: []string{"g"}, Dir: t.TempDir()}
	if err := o.complete(); err != nil {
		t.Fatal(err)
	}
	c, err := o.dialNode(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := c.Sessions("g").Get(ctx, "k", pb.ReadLevel_READ_LEVEL_LINEARIZABLE)
	if err != nil || s.GetRevision() != 7 || node.calls.Load() != 2 {
		t.Errorf("%v, %v after %d calls", s, err, node.calls.Load())
	}
}

// TestTied_FreshIsInFront: the ids of one writer fall, so that the first change after
// the list with which a watch begins shows the end of the list.
func TestTied_FreshIsInFront(t *testing.T) {
	w := &tied{l: &Load{o: Options{Prefix: "c1-"}}, id: 3}
	before := w.fresh()
	for range 2000 {
		next := w.fresh()
		if next >= before {
			t.Fatalf("%s comes after %s", next, before)
		}
		before = next
	}
}
