// SPDX-License-Identifier: Apache-2.0

package client_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/hastate/hastate/client"
	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// A real channel follows the primary from one server to the next.
func TestClient_ResolverBuilder(t *testing.T) {
	cluster := newFakeCluster("c1")
	node := startNode(t, "n1", cluster)
	// Two model servers; any service will do.
	a, b := startNode(t, "model-a", cluster), startNode(t, "model-b", cluster)
	c := dial(t, client.Options{}, node)

	conn, err := grpc.NewClient("hastate:///g", grpc.WithResolvers(c.ResolverBuilder()),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ask := func(opts ...grpc.CallOption) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		resp, err := pb.NewClusterServiceClient(conn).Status(ctx, &pb.StatusRequest{}, opts...)
		return resp.GetHeader().GetNodeId(), err
	}
	answers := func(want string) func() error {
		return func() error {
			if got, err := ask(); err != nil || got != want {
				return fmt.Errorf("got %q, want %q: %w", got, want, err)
			}
			return nil
		}
	}

	// Vacant: an error that says so.
	wait.Until(t, 10*time.Second, func() error {
		_, err := ask()
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), client.ErrNoPrimary.Error()) {
			return fmt.Errorf("got: %w", err)
		}
		return nil
	})
	// An RPC that waits gets the next primary.
	waited := make(chan error, 1)
	go func() {
		got, err := ask(grpc.WaitForReady(true))
		if err == nil && got != "model-a" {
			err = errors.New("answered by " + got)
		}
		waited <- err
	}()
	cluster.setPrimary("n1", a.addr, 5, granted) // not yet
	cluster.setPrimary("n1", a.addr, 5, serving)
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	wait.Until(t, 10*time.Second, answers("model-a"))
	// A switchover: the old server still runs, but is left.
	cluster.setPrimary("n2", b.addr, 9, serving)
	wait.Until(t, 10*time.Second, answers("model-b"))
	// Vacant again: the connection to the former primary is not used.
	cluster.setPrimary("", "", 9, vacant)
	wait.Until(t, 10*time.Second, func() error {
		if got, err := ask(); status.Code(err) != codes.Unavailable {
			return fmt.Errorf("got %q: %w", got, err)
		}
		return nil
	})
	cluster.setPrimary("n1", a.addr, 12, serving)
	wait.Until(t, 10*time.Second, answers("model-a"))
}

func TestClient_ResolverBuilder_AfterClose(t *testing.T) {
	n := startNode(t, "n1", newFakeCluster("c1"))
	c, err := client.Dial(client.Options{Endpoints: []string{n.addr}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("hastate:///g", grpc.WithResolvers(c.ResolverBuilder()),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := pb.NewClusterServiceClient(conn).Status(ctx, &pb.StatusRequest{}); err == nil {
		t.Error("answered by nobody")
	}
}
