// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"fmt"
	"strings"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/hastate/hastate"
)

// The metadata of every RPC between nodes.
const (
	mdCluster = "hastate-cluster-bin"
	mdFrom    = "hastate-from-bin"
	mdTo      = "hastate-to-bin"
)

const peerServicePrefix = "/hastate.v1.PeerService/"

// Outgoing adds to ctx what a node tells its peer with every RPC: its cluster
// ("" if not known), its own id, and the id of the node that it means to reach
// ("" if not known). The RPCs over Conn carry it already.
func Outgoing(ctx context.Context, cluster string, from, to raft.ServerID) context.Context {
	md, ok := metadata.FromOutgoingContext(ctx)
	if ok {
		md = md.Copy()
	} else {
		md = metadata.MD{}
	}
	for key, value := range map[string]string{mdCluster: cluster, mdFrom: string(from), mdTo: string(to)} {
		// Set, not append: a context that came in from another node must not
		// speak for it.
		if value == "" {
			md.Delete(key)
		} else {
			md.Set(key, value)
		}
	}
	return metadata.NewOutgoingContext(ctx, md)
}

// Incoming returns what the caller of an RPC has told with Outgoing.
func Incoming(ctx context.Context) (cluster string, from, to raft.ServerID) {
	md, _ := metadata.FromIncomingContext(ctx)
	get := func(key string) string {
		if v := md.Get(key); len(v) > 0 {
			return v[0]
		}
		return ""
	}
	return get(mdCluster), raft.ServerID(get(mdFrom)), raft.ServerID(get(mdTo))
}

// CheckIncoming refuses an RPC that is meant for another node or comes from
// another cluster. What the caller left out is not checked. The error matches
// hastate.ErrPrecondition and is a gRPC status already.
func (t *Transport) CheckIncoming(ctx context.Context) error {
	cluster, from, to := Incoming(ctx)
	if to != "" && to != t.opts.ID {
		return refuse("this is %s, not %s: correct the address that %s has for %s", t.opts.ID, to, from, to)
	}
	if own := t.opts.ClusterID(); own != "" && cluster != "" && own != cluster {
		return refuse("node %s belongs to cluster %s, and %s to cluster %s: nodes of two clusters must not talk to each other", t.opts.ID, own, from, cluster)
	}
	return nil
}

func refuse(format string, args ...any) error {
	return hastate.ToStatus(fmt.Errorf("%w: %s", hastate.ErrPrecondition, fmt.Sprintf(format, args...)))
}

// admit checks a request of Raft and returns who sent it. Only a leader's
// request may tell this node which cluster it is in: any stranger can ask for a
// vote.
func (t *Transport) admit(ctx context.Context, fromLeader bool) (raft.ServerID, error) {
	cluster, from, to := Incoming(ctx)
	if from == "" || to == "" {
		return "", hastate.ToStatus(fmt.Errorf("%w: the sender's or the receiver's id is missing in a Raft request", hastate.ErrInvalid))
	}
	if from == t.opts.ID {
		return "", refuse("two nodes call themselves %s: give each its own id", from)
	}
	if err := t.CheckIncoming(ctx); err != nil {
		t.logger.Warn("refused a request", "from", from, "err", err)
		return "", err
	}
	if fromLeader && cluster != "" && t.opts.ClusterID() == "" {
		if err := t.opts.OnClusterID(cluster); err != nil {
			return "", refuse("node %s does not accept cluster %s: %v", t.opts.ID, cluster, err)
		}
		t.logger.Info("joined the cluster of a leader", "cluster", cluster, "leader", from)
	}
	t.calledBy(from)
	return from, nil
}

// UnaryServerInterceptor applies CheckIncoming to calls of PeerService.
func (t *Transport) UnaryServerInterceptor() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		if err := t.checkPeerCall(ctx, info.FullMethod); err != nil {
			return nil, err
		}
		return handle(ctx, req)
	}
}

// StreamServerInterceptor applies CheckIncoming to streams of PeerService.
func (t *Transport) StreamServerInterceptor() grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
		if err := t.checkPeerCall(stream.Context(), info.FullMethod); err != nil {
			return err
		}
		return handle(srv, stream)
	}
}

func (t *Transport) checkPeerCall(ctx context.Context, method string) error {
	if !strings.HasPrefix(method, peerServicePrefix) {
		return nil
	}
	return t.CheckIncoming(ctx)
}

// The interceptors of the connections to a peer.

func (t *Transport) outgoing(ctx context.Context, to raft.ServerID) context.Context {
	return Outgoing(ctx, t.opts.ClusterID(), t.opts.ID, to)
}

func (t *Transport) identityDialOptions(to raft.ServerID) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return invoke(t.outgoing(ctx, to), method, req, reply, cc, opts...)
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return open(t.outgoing(ctx, to), desc, cc, method, opts...)
		}),
	}
}
