// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// identity remembers the cluster that the client talks to. An answer of another
// cluster, reached through a wrong or reused address, is an error: its epochs and
// revisions mean nothing here.
type identity struct {
	mu sync.Mutex // guards id
	id string     // empty until the first answer
}

type headed interface{ GetHeader() *pb.ReplyHeader }

// check looks at a reply. UNAVAILABLE makes the caller try another endpoint.
func (c *identity) check(reply any) error {
	h, ok := reply.(headed)
	if !ok || h.GetHeader().GetClusterId() == "" {
		return nil
	}
	id := h.GetHeader().GetClusterId()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.id == "" {
		c.id = id
	}
	if c.id != id {
		return status.Errorf(codes.Unavailable, "node %q belongs to cluster %s, this client talks to cluster %s: correct the endpoints; if the cluster was built anew, restart the client",
			h.GetHeader().GetNodeId(), id, c.id)
	}
	return nil
}

func (c *identity) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if err := invoke(ctx, method, req, reply, cc, opts...); err != nil {
		return err
	}
	return c.check(reply)
}

func (c *identity) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := open(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, err
	}
	return &checkedStream{ClientStream: s, identity: c}, nil
}

type checkedStream struct {
	grpc.ClientStream
	identity *identity
}

func (s *checkedStream) RecvMsg(m any) error {
	if err := s.ClientStream.RecvMsg(m); err != nil {
		return err
	}
	return s.identity.check(m)
}
