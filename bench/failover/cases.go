// SPDX-License-Identifier: Apache-2.0

package failover

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"syscall"

	"google.golang.org/grpc"

	"github.com/hastate/hastate/client"
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// fault is one way to break the cluster.
type fault struct {
	// prepare brings leader and primary to where they have to be.
	prepare func(ctx context.Context, c *cluster) error
	inject  func(ctx context.Context, c *cluster) error
	// await waits until clients are served again.
	await func(ctx context.Context, c *cluster, m *measured, began clock.Instant) (Round, error)
}

var cases = map[string]fault{
	// The model server alone: the node beside it notices.
	"model-killed": {anywhere, func(ctx context.Context, c *cluster) error {
		return c.atPrimary(ctx, func(h *host) error { return h.model.Signal(syscall.SIGKILL) })
	}, moved},
	// The node alone: its model server has to stop by itself, and the lease to pass.
	"node-killed": {anywhere, func(ctx context.Context, c *cluster) error {
		return c.atPrimary(ctx, func(h *host) error { return h.node.Signal(syscall.SIGKILL) })
	}, moved},
	// All that a host has, which also leads.
	"host-lost": {leaderAtPrimary, func(ctx context.Context, c *cluster) error { return c.atPrimary(ctx, signal(syscall.SIGKILL)) }, moved},
	"host-hung": {leaderAtPrimary, func(ctx context.Context, c *cluster) error { return c.atPrimary(ctx, signal(syscall.SIGSTOP)) }, moved},
	// The primary stays where it is.
	"leader-lost": {leaderElsewhere, func(ctx context.Context, c *cluster) error {
		leader, err := c.leader(ctx)
		if err != nil {
			return err
		}
		return leader.node.Signal(syscall.SIGKILL)
	}, written},
	"switchover": {anywhere, func(ctx context.Context, c *cluster) error {
		return c.client.Call(ctx, client.Once, func(ctx context.Context, cc grpc.ClientConnInterface) error {
			_, err := pb.NewGroupServiceClient(cc).Switchover(ctx, &pb.SwitchoverRequest{Reason: "bench"})
			return err
		})
	}, switched},
}

// Cases are the names of what can be broken.
func Cases() []string { return slices.Sorted(maps.Keys(cases)) }

func signal(sig syscall.Signal) func(h *host) error {
	return func(h *host) error { return errors.Join(h.node.Signal(sig), h.model.Signal(sig)) }
}

func anywhere(context.Context, *cluster) error { return nil }

// atPrimary does something to the host that the primary is on.
func (c *cluster) atPrimary(ctx context.Context, do func(*host) error) error {
	h, err := c.primary(ctx)
	if err != nil {
		return err
	}
	return do(h)
}

func leaderAtPrimary(ctx context.Context, c *cluster) error {
	p, err := c.primary(ctx)
	if err != nil {
		return err
	}
	return c.lead(ctx, p)
}

func leaderElsewhere(ctx context.Context, c *cluster) error {
	p, err := c.primary(ctx)
	if err != nil {
		return err
	}
	l, err := c.leader(ctx)
	if err != nil || l != p {
		return err
	}
	return c.lead(ctx, c.hosts[(slices.Index(c.hosts, p)+1)%len(c.hosts)])
}

// lead moves leadership to a host.
func (c *cluster) lead(ctx context.Context, to *host) error {
	return poll(ctx, "leadership at "+to.id, func() error {
		l, err := c.leader(ctx)
		if err != nil || l == to {
			return err
		}
		err = c.client.Call(ctx, client.Once, func(ctx context.Context, cc grpc.ClientConnInterface) error {
			_, err := pb.NewClusterServiceClient(cc).TransferLeadership(ctx, &pb.TransferLeadershipRequest{To: to.id})
			return err
		})
		return errors.Join(fmt.Errorf("%s leads", l.id), err)
	})
}

// moved waits for another primary.
func moved(ctx context.Context, c *cluster, m *measured, began clock.Instant) (Round, error) {
	var r Round
	served, err := m.awaitServed(ctx)
	if err != nil {
		return r, err
	}
	told, err := m.awaitTold(ctx)
	if err != nil {
		return r, err
	}
	obeyed, err := c.obeyed(served.epoch)
	if err == nil && obeyed < began {
		err = fmt.Errorf("the primary moved by itself, %v before anything was broken: epoch %d, before %d", began.Sub(obeyed), served.epoch, m.before)
	}
	r.ServedMs, r.ToldMs, r.PrimaryMs = ms(served.at.Sub(began)), ms(told.at.Sub(began)), ms(obeyed.Sub(began))
	return r, err
}

// switched is moved, but clients are served until shortly before.
func switched(ctx context.Context, c *cluster, m *measured, began clock.Instant) (Round, error) {
	r, err := moved(ctx, c, m, began)
	if err == nil {
		r.ServedMs -= ms(m.lastBefore().Sub(began))
	}
	return r, err
}

// written waits until a write is acknowledged; the primary must not have moved.
func written(ctx context.Context, c *cluster, m *measured, began clock.Instant) (Round, error) {
	if err := c.write(ctx); err != nil {
		return Round{}, err
	}
	r := Round{ServedMs: ms(clock.Boot{}.Now().Sub(began))}
	p, err := c.waitServing(ctx, 0)
	if err == nil && p.Epoch != m.before {
		err = fmt.Errorf("the loss of the Raft leader moved the primary: epoch %d, before %d", p.Epoch, m.before)
	}
	return r, err
}
