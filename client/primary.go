// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Primary is who serves a group.
type Primary struct {
	Group string
	// NodeID is the node beside the primary; empty if the group is vacant.
	NodeID string
	// Address is where clients reach the primary.
	Address string
	// Epoch is the fencing token; it only grows. A vacant group has that of its
	// last primary.
	Epoch uint64
	Phase pb.GroupPhase
	// Model that it serves, nil if it says none.
	Model *pb.ModelRef
}

// Serving says that requests can be sent to the primary.
func (p Primary) Serving() bool {
	return p.NodeID != "" && p.Phase == pb.GroupPhase_GROUP_PHASE_SERVING
}

// before says that p is older than o: of an older epoch, or of an earlier phase
// of the same epoch. An epoch goes through granted, serving and vacant, and
// never back.
func (p Primary) before(o Primary) bool {
	if p.Epoch != o.Epoch {
		return p.Epoch < o.Epoch
	}
	return stage(p.Phase) < stage(o.Phase)
}

func stage(phase pb.GroupPhase) int {
	switch phase {
	case pb.GroupPhase_GROUP_PHASE_GRANTED:
		return 1
	case pb.GroupPhase_GROUP_PHASE_SERVING:
		return 2
	case pb.GroupPhase_GROUP_PHASE_VACANT:
		return 3
	}
	return 0
}

func (p Primary) equal(o Primary) bool {
	return p.Group == o.Group && p.NodeID == o.NodeID && p.Address == o.Address &&
		p.Epoch == o.Epoch && p.Phase == o.Phase && proto.Equal(p.Model, o.Model)
}

func fromProto(p *pb.Primary) Primary {
	return Primary{
		Group: p.GetGroup(), NodeID: p.GetNodeId(), Address: p.GetAddress(),
		Epoch: p.GetEpoch(), Phase: p.GetPhase(), Model: p.GetModel(),
	}
}

// groupCache is what is known of one group. Client.mu guards it.
type groupCache struct {
	newest Primary
	// until is when newest may no longer be used unasked, on Client.now. Only the
	// answer to a question extends it: how old a message of a stream is cannot be
	// known.
	until time.Duration
	// asking is the question under way, nil if none.
	asking *question
}

// question is shared by all who ask for the same group at the same time.
type question struct {
	done chan struct{} // closed by the asker after the fields below are set
	p    Primary
	err  error
}

// Primary returns who serves a group. The answer comes from the cache while it
// is valid, else from the cluster. ErrNoPrimary if nobody serves now,
// hastate.ErrNotFound if there is no such group.
func (c *Client) Primary(ctx context.Context, group string) (Primary, error) {
	group, err := checkGroup(group)
	if err != nil {
		return Primary{}, fmt.Errorf("get primary: %w", err)
	}
	ctx, cancel := c.within(ctx)
	defer cancel()
	p, q, err := c.cachedOrAsk(group)
	if err != nil {
		return Primary{}, fmt.Errorf("get primary of group %q: %w", group, err)
	}
	if q != nil {
		select {
		case <-q.done:
			p, err = q.p, q.err
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	if err != nil {
		return Primary{}, fmt.Errorf("get primary of group %q: %w", group, err)
	}
	if !p.Serving() {
		return p, noPrimary(p)
	}
	return p, nil
}

func noPrimary(p Primary) error {
	if p.NodeID != "" {
		return fmt.Errorf("group %q: %w: node %q is being promoted", p.Group, ErrNoPrimary, p.NodeID)
	}
	if p.Phase == pb.GroupPhase_GROUP_PHASE_SERVING {
		return fmt.Errorf("group %q: %w: the lease of the last one has run out", p.Group, ErrNoPrimary)
	}
	return fmt.Errorf("group %q: %w: it is vacant", p.Group, ErrNoPrimary)
}

// cachedOrAsk returns the cached primary, or the question under way, which it
// begins if there is none.
func (c *Client) cachedOrAsk(group string) (Primary, *question, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return Primary{}, nil, hastate.ErrClosed
	}
	g := c.groups[group]
	if g == nil {
		g = &groupCache{}
		c.remember(group, g)
	}
	if g.newest.Serving() && c.now() < g.until {
		return g.newest, nil, nil
	}
	if g.asking == nil {
		q := &question{done: make(chan struct{})}
		g.asking = q
		c.wg.Go(func() {
			q.p, q.err = c.ask(group)
			c.mu.Lock()
			g.asking = nil
			c.mu.Unlock()
			close(q.done)
		})
	}
	return Primary{}, g.asking, nil
}

// remember adds a group. Names that no cluster has do not fill the memory: at
// the limit of groups an idle one is forgotten. c.mu is held.
func (c *Client) remember(group string, g *groupCache) {
	if len(c.groups) >= hastate.MaxGroups {
		for name, old := range c.groups {
			if old.asking == nil {
				delete(c.groups, name)
				break
			}
		}
	}
	c.groups[group] = g
}

// ask asks the cluster for a primary.
func (c *Client) ask(group string) (Primary, error) {
	ctx, cancel := context.WithTimeout(c.ctx, DefaultTimeout)
	defer cancel()
	var found Primary
	err := c.call(ctx, Repeatable, func(ctx context.Context, cc grpc.ClientConnInterface) error {
		sent := c.now()
		resp, err := pb.NewGroupServiceClient(cc).GetPrimary(ctx, &pb.GetPrimaryRequest{Group: group})
		if err != nil {
			return err
		}
		got := fromProto(resp.GetPrimary())
		got.Group = group
		newest := c.observe(got, sent+time.Duration(resp.GetPrimary().GetValidForMs())*time.Millisecond)
		if got.before(newest) {
			return status.Errorf(codes.Unavailable, "node %q is behind: it knows epoch %d, the newest is %d",
				resp.GetHeader().GetNodeId(), got.Epoch, newest.Epoch)
		}
		found = got
		return nil
	})
	return found, err
}

// observe takes in what a node said and returns the newest that is known. What is
// older than that is dropped.
func (c *Client) observe(p Primary, until time.Duration) Primary {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := c.groups[p.Group]
	if g == nil {
		g = &groupCache{}
		c.remember(p.Group, g)
	}
	switch {
	case p.before(g.newest):
		c.log.Debug("dropped a stale primary", "group", p.Group, "epoch", p.Epoch, "newest_epoch", g.newest.Epoch)
	case g.newest.before(p):
		g.newest, g.until = p, until
	default:
		g.newest, g.until = p, max(g.until, until)
	}
	return g.newest
}
