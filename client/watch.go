// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// WatchGroups calls on with the state of the groups (none: all) after a
// revision (0: the current state first) and then with every change and
// heartbeat, one after the other. It goes on at another node when one fails or
// falls silent, where it left off; if that is no longer kept, it begins anew with
// the current state. It returns the error of on, or why ctx ended.
func (c *Client) WatchGroups(ctx context.Context, groups []string, after uint64, on func(*pb.WatchResponse) error) error {
	ctx, cancel := c.bind(ctx)
	defer cancel()
	return c.watchGroups(ctx, groups, after, on)
}

func (c *Client) watchGroups(ctx context.Context, groups []string, after uint64, on func(*pb.WatchResponse) error) error {
	return c.follow(ctx, "groups", func(ctx context.Context, cc grpc.ClientConnInterface, g *guard) error {
		stream, err := pb.NewGroupServiceClient(cc).Watch(ctx, &pb.WatchRequest{Groups: groups, AfterRevision: after})
		if err != nil {
			return err
		}
		for {
			var resp *pb.WatchResponse
			err := g.recv(func() (err error) {
				resp, err = stream.Recv()
				return err
			})
			if errors.Is(hastate.FromStatus(err), hastate.ErrCompacted) {
				after = 0
			}
			if err != nil {
				return err
			}
			if err := on(resp); err != nil {
				return stopError{err}
			}
			after = max(after, resp.GetRevision())
		}
	})
}

// WatchPrimary sends the primary of a group: as it is now, and then on every
// change, vacancy and promotion included (see Primary.Serving). An older epoch is
// never sent after a newer one. A slow reader gets only the newest. The channel
// is closed when ctx ends, when the client is closed, or when the cluster refuses
// the watch for good (which is logged).
func (c *Client) WatchPrimary(ctx context.Context, group string) (<-chan Primary, error) {
	group, err := checkGroup(group)
	if err != nil {
		return nil, fmt.Errorf("watch primary: %w", err)
	}
	out := make(chan Primary, 1)
	err = c.spawn(func() {
		defer close(out)
		if err := c.followPrimary(ctx, group, func(p Primary) { replace(out, p) }); err != nil && ctx.Err() == nil && c.ctx.Err() == nil {
			c.log.Error("watch of the primary ended", "group", group, "error", err)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("watch primary: %w", err)
	}
	return out, nil
}

// replace puts p into a channel of capacity 1 that nobody else sends to, in place
// of what was not read.
func replace(out chan Primary, p Primary) {
	for {
		select {
		case out <- p:
			return
		default:
		}
		select {
		case <-out:
		default:
		}
	}
}

// followPrimary calls on with the primary and each change of it.
func (c *Client) followPrimary(ctx context.Context, group string, on func(Primary)) error {
	ctx, cancel := c.bind(ctx)
	defer cancel()
	var sent *Primary
	see := func(p *pb.Primary) {
		got := fromProto(p)
		newest := c.observe(got, 0)
		if sent != nil && newest.equal(*sent) {
			return
		}
		sent = &newest
		on(newest)
	}
	return c.watchGroups(ctx, []string{group}, 0, func(resp *pb.WatchResponse) error {
		for _, p := range append(resp.GetPrimaries(), resp.GetPrimary()) {
			if p.GetGroup() == group {
				see(p)
			}
		}
		return nil
	})
}
