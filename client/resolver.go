// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"fmt"
	"sync"

	"google.golang.org/grpc/resolver"
)

// Scheme is the scheme of the targets of ResolverBuilder.
const Scheme = "hastate"

// ResolverBuilder makes gRPC channels follow a primary:
//
//	conn, err := grpc.NewClient("hastate:///chat", grpc.WithResolvers(c.ResolverBuilder()), ...)
//
// connects to the primary of group "chat", and to the next one after a failover
// or switchover. While the group is vacant, RPCs fail with UNAVAILABLE; those with
// grpc.WaitForReady wait for the next primary. The channel must be closed before
// the Client.
func (c *Client) ResolverBuilder() resolver.Builder { return resolverBuilder{c} }

type resolverBuilder struct{ c *Client }

func (b resolverBuilder) Scheme() string { return Scheme }

// Build starts to follow the group that the target names; none is the default
// group.
func (b resolverBuilder) Build(target resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	group, err := checkGroup(target.Endpoint())
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", target.URL.String(), err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &primaryResolver{c: b.c, group: group, cc: cc, cancel: cancel}
	r.wg.Add(1)
	err = b.c.spawn(func() {
		defer r.wg.Done()
		r.run(ctx)
	})
	if err != nil {
		cancel()
		return nil, fmt.Errorf("resolve %s: %w", target.URL.String(), err)
	}
	return r, nil
}

// primaryResolver tells one gRPC channel where the primary is.
type primaryResolver struct {
	c      *Client
	group  string
	cc     resolver.ClientConn
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func (r *primaryResolver) run(ctx context.Context) {
	err := r.c.followPrimary(ctx, r.group, r.update)
	if ctx.Err() == nil {
		// It was refused, or the client was closed before the channel.
		r.cc.ReportError(fmt.Errorf("follow the primary of group %q: %w", r.group, err))
	}
}

// update tells the channel. A channel without an address drops the connection to
// the former primary; the error is what its RPCs fail with.
func (r *primaryResolver) update(p Primary) {
	if !p.Serving() {
		if err := r.cc.UpdateState(resolver.State{}); err != nil {
			r.c.log.Debug("channel has no address", "group", r.group, "error", err)
		}
		r.cc.ReportError(noPrimary(p))
		return
	}
	// ServerName: a certificate is that of the instance, not of the group.
	address := resolver.Address{Addr: p.Address, ServerName: p.Address}
	if err := r.cc.UpdateState(resolver.State{Addresses: []resolver.Address{address}}); err != nil {
		r.c.log.Warn("channel refused the primary's address", "group", r.group, "address", p.Address, "error", err)
	}
}

// ResolveNow does nothing: changes come by themselves.
func (r *primaryResolver) ResolveNow(resolver.ResolveNowOptions) {}

// Close ends the watch and waits for it.
func (r *primaryResolver) Close() {
	r.cancel()
	r.wg.Wait()
}

var _ resolver.Builder = resolverBuilder{}
