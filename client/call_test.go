// SPDX-License-Identifier: Apache-2.0

package client_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// A node without a leader holds a call until its caller's time is up.
func waitingForLeader() bend {
	hold := func() error {
		<-time.After(400 * time.Millisecond)
		return &hastate.NotLeaderError{}
	}
	return bend{
		leaderless: true,
		getPrimary: func() (*pb.GetPrimaryResponse, error) { return nil, hastate.ToStatus(hold()) },
		openClient: hold,
	}
}

func TestCall_DeadlineWithoutLeaderIsNoLeader(t *testing.T) {
	n := startNode(t, "n1", newFakeCluster("c"))
	n.set(waitingForLeader())
	c := dial(t, client.Options{}, n)
	for name, do := range map[string]func(context.Context) error{
		"read": func(ctx context.Context) error {
			return c.Call(ctx, client.Repeatable, func(ctx context.Context, cc grpc.ClientConnInterface) error {
				_, err := pb.NewGroupServiceClient(cc).GetPrimary(ctx, &pb.GetPrimaryRequest{Group: "g"})
				return err
			})
		},
		"once": func(ctx context.Context) error {
			return c.Call(ctx, client.Once, func(context.Context, grpc.ClientConnInterface) error {
				t.Error("sent to a node that knows no leader")
				return nil
			})
		},
		"put": func(ctx context.Context) error {
			_, err := c.Sessions("g").Put(ctx, &pb.PutRequest{Session: &pb.Session{Id: "a"}})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
			defer cancel()
			err := do(ctx)
			if !errors.Is(err, hastate.ErrNoLeader) || errors.Is(err, hastate.ErrOutcomeUnknown) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want no leader and a passed deadline", err)
			}
		})
	}
}

func TestCall_HungNodeIsNotNoLeader(t *testing.T) {
	n := startNode(t, "n1", newFakeCluster("c"))
	n.hang(true)
	c := dial(t, client.Options{}, n)
	ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	_, err := c.Sessions("g").Get(ctx, "a", 0)
	if errors.Is(err, hastate.ErrNoLeader) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want only a passed deadline", err)
	}
}
