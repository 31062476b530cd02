// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"google.golang.org/grpc"

	"github.com/hastate/hastate/client"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// fault is one thing that can be broken.
type fault struct {
	// prepare brings the cluster into the state that the fault is about.
	prepare func(ctx context.Context, c *cluster) error
	// inject breaks it and says what was done.
	inject func(ctx context.Context, c *cluster) (string, error)
	// moves: primaryship moves, so that a new epoch must come.
	moves bool
}

func (f fault) newEpochAfter(epoch uint64) uint64 {
	if f.moves {
		return epoch
	}
	return 0
}

func nothing(context.Context, *cluster) error { return nil }

var faults = map[string]fault{
	"kill-model":  {prepare: nothing, inject: killModel, moves: true},
	"kill-host":   {prepare: nothing, inject: killHost, moves: true},
	"hang-model":  {prepare: nothing, inject: hangModel, moves: true},
	"kill-leader": {prepare: leaderElsewhere, inject: killLeader},
	"switchover":  {prepare: shortDrain, inject: switchover, moves: true},
}

func killModel(ctx context.Context, c *cluster) (string, error) {
	h, err := c.primaryHost(ctx)
	if err != nil {
		return "", err
	}
	return "SIGKILL to the model server of " + h.id, h.model.Kill()
}

func killHost(ctx context.Context, c *cluster) (string, error) {
	h, err := c.primaryHost(ctx)
	if err != nil {
		return "", err
	}
	return "SIGKILL to node and model server of " + h.id + ", as if the host were lost", errors.Join(h.node.Kill(), h.model.Kill())
}

func hangModel(ctx context.Context, c *cluster) (string, error) {
	h, err := c.primaryHost(ctx)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+h.http+"/fault/hang", nil)
	if err != nil {
		return "", err
	}
	resp, err := c.web.Do(req)
	if err != nil {
		return "", fmt.Errorf("hang the model of %s: %w", h.id, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode/100 != 2 {
		return "", fmt.Errorf("hang the model of %s: %s", h.id, resp.Status)
	}
	return "the engine of " + h.id + " hangs; its /health still says 200", nil
}

// leaderElsewhere moves Raft leadership away from the primary's node.
func leaderElsewhere(ctx context.Context, c *cluster) error {
	primary, err := c.primaryHost(ctx)
	if err != nil {
		return err
	}
	if c.leader(ctx) != primary.id {
		return nil
	}
	var to string
	for _, h := range c.hosts {
		if h != primary {
			to = h.id
		}
	}
	err = c.client.Call(ctx, client.Once, func(ctx context.Context, cc grpc.ClientConnInterface) error {
		_, err := pb.NewClusterServiceClient(cc).TransferLeadership(ctx, &pb.TransferLeadershipRequest{To: to})
		return err
	})
	if err != nil {
		return fmt.Errorf("move leadership to %s: %w", to, err)
	}
	c.say("leadership was moved to %s, away from the primary", to)
	return c.waitLeaderNot(ctx, primary.id)
}

// shortDrain lets a switchover cut the stream in the middle: with the default the
// old primary would be left to finish it.
func shortDrain(ctx context.Context, c *cluster) error {
	return c.client.Call(ctx, client.Repeatable, func(ctx context.Context, cc grpc.ClientConnInterface) error {
		groups := pb.NewGroupServiceClient(cc)
		reply, err := groups.GetGroup(ctx, &pb.GetGroupRequest{})
		if err != nil {
			return err
		}
		policy := reply.GetGroup().GetPolicy()
		policy.DrainMs = 100
		_, err = groups.Configure(ctx, &pb.ConfigureRequest{Policy: policy})
		return err
	})
}

func killLeader(ctx context.Context, c *cluster) (string, error) {
	id := c.leader(ctx)
	h, ok := c.host(id)
	if !ok {
		return "", fmt.Errorf("no leader to kill: %q", id)
	}
	if err := h.node.Kill(); err != nil {
		return "", err
	}
	c.background.Go(func() {
		if err := c.waitLeaderNot(ctx, id); err == nil {
			c.newLeaderAt = time.Now()
		}
	})
	return "SIGKILL to the Raft leader " + id + "; the primary is elsewhere", nil
}

// switchover runs beside the stream, as an operator's would.
func switchover(ctx context.Context, c *cluster) (string, error) {
	c.background.Go(func() {
		err := c.client.Call(ctx, client.Once, func(ctx context.Context, cc grpc.ClientConnInterface) error {
			_, err := pb.NewGroupServiceClient(cc).Switchover(ctx, &pb.SwitchoverRequest{Reason: "demo"})
			return err
		})
		if err != nil && ctx.Err() == nil {
			c.say("switchover: %v", err)
		}
	})
	return "planned switchover asked for", nil
}
