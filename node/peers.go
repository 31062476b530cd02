// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/member"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// peers asks other nodes, over the transport's control connections, and this
// node itself without a network.
type peers struct{ n *Node }

// client is the PeerService of another node.
func (p *peers) client(id string) (pb.PeerServiceClient, error) {
	conn, err := p.n.transport.Conn(raft.ServerID(id))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", id, err)
	}
	return pb.NewPeerServiceClient(conn), nil
}

// ask calls one method of PeerService on a node: locally if it is this one.
func ask[Req, Resp any](ctx context.Context, p *peers, id string, req Req,
	local func(pb.PeerServiceServer) func(context.Context, Req) (Resp, error),
	remote func(pb.PeerServiceClient) func(context.Context, Req, ...grpc.CallOption) (Resp, error),
) (Resp, error) {
	if id == p.n.cfg.NodeID {
		return local(p.n.services.Peer())(ctx, req)
	}
	client, err := p.client(id)
	if err != nil {
		var none Resp
		return none, err
	}
	resp, err := remote(client)(ctx, req)
	return resp, hastate.FromStatus(err)
}

// Canvass asks how an instance stands as a candidate.
func (p *peers) Canvass(ctx context.Context, id string, req *pb.CanvassRequest) (*pb.CanvassResponse, error) {
	return ask(ctx, p, id, req,
		func(s pb.PeerServiceServer) func(context.Context, *pb.CanvassRequest) (*pb.CanvassResponse, error) {
			return s.Canvass
		},
		func(c pb.PeerServiceClient) func(context.Context, *pb.CanvassRequest, ...grpc.CallOption) (*pb.CanvassResponse, error) {
			return c.Canvass
		})
}

// Nominate asks a candidate for its consent.
func (p *peers) Nominate(ctx context.Context, id string, req *pb.NominateRequest) (*pb.NominateResponse, error) {
	return ask(ctx, p, id, req,
		func(s pb.PeerServiceServer) func(context.Context, *pb.NominateRequest) (*pb.NominateResponse, error) {
			return s.Nominate
		},
		func(c pb.PeerServiceClient) func(context.Context, *pb.NominateRequest, ...grpc.CallOption) (*pb.NominateResponse, error) {
			return c.Nominate
		})
}

// Granted tells a candidate that its grant has committed.
func (p *peers) Granted(ctx context.Context, id string, req *pb.GrantedRequest) (*pb.GrantedResponse, error) {
	return ask(ctx, p, id, req,
		func(s pb.PeerServiceServer) func(context.Context, *pb.GrantedRequest) (*pb.GrantedResponse, error) {
			return s.Granted
		},
		func(c pb.PeerServiceClient) func(context.Context, *pb.GrantedRequest, ...grpc.CallOption) (*pb.GrantedResponse, error) {
			return c.Granted
		})
}

// Fence asks the holder to give up.
func (p *peers) Fence(ctx context.Context, id string, req *pb.FenceRequest) (*pb.FenceResponse, error) {
	return ask(ctx, p, id, req,
		func(s pb.PeerServiceServer) func(context.Context, *pb.FenceRequest) (*pb.FenceResponse, error) {
			return s.Fence
		},
		func(c pb.PeerServiceClient) func(context.Context, *pb.FenceRequest, ...grpc.CallOption) (*pb.FenceResponse, error) {
			return c.Fence
		})
}

// progress is what is known of another node from its last answer.
type progress struct {
	applied uint64
	at      time.Time
	version string
}

func (n *Node) noteProgress(id string, applied uint64, version string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, known := n.progress[id]; !known && len(n.progress) >= maxAddresses {
		return
	}
	n.progress[id] = progress{applied: applied, at: time.Now(), version: version}
}

// seen is what membership knows of another node.
func (n *Node) seen(id raft.ServerID) (member.Seen, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p, ok := n.progress[string(id)]
	return member.Seen{Applied: p.applied, Version: p.version, Age: time.Since(p.at)}, ok
}

// exchangeInterval is how often nodes tell each other how far they have got.
const exchangeInterval = 500 * time.Millisecond

// exchange says hello to every other member over and over: it carries addresses
// that changed, applied indexes for the promotion of replicas, and versions.
func (n *Node) exchange(ctx context.Context) error {
	tick := time.NewTicker(exchangeInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		configuration, _ := n.machine.Configuration()
		done := make(chan struct{}, len(configuration.Servers))
		asked := 0
		for _, server := range configuration.Servers {
			if string(server.ID) == n.cfg.NodeID {
				continue
			}
			asked++
			go func() {
				defer func() { done <- struct{}{} }()
				n.exchangeWith(ctx, string(server.ID))
			}()
		}
		for range asked {
			<-done
		}
	}
}

func (n *Node) exchangeWith(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	client, err := n.peers.client(id)
	if err != nil {
		return
	}
	reply, err := client.Hello(ctx, n.hello())
	if err != nil {
		return // unreachable, or it refuses us and says so in its own log
	}
	n.noteProgress(reply.GetNodeId(), reply.GetAppliedIndex(), reply.GetVersion())
}

// followMembers keeps the addresses on disk in step with the member records, so
// that a whole cluster can restart, and lets go of nodes that were removed.
func (n *Node) followMembers(ctx context.Context) error {
	members := map[string]bool{}
	for {
		changed := n.machine.Changed()
		before := members
		members = map[string]bool{}
		for _, m := range n.machine.Members() {
			members[m.GetNodeId()] = true
			news, err := n.identity.Learn(m.GetNodeId(), m.GetAddress())
			if err != nil {
				return err
			}
			if news {
				n.log.Info("member address", "member", m.GetNodeId(), "address", m.GetAddress())
			}
		}
		for id := range before {
			if members[id] || id == n.cfg.NodeID {
				continue
			}
			// An append that waits for it would wait for a long time.
			n.transport.Disconnect(raft.ServerAddress(id))
			if err := n.identity.Forget(id); err != nil {
				return err
			}
		}
		if cluster := n.machine.ClusterID(); cluster != "" {
			if err := n.identity.Pin(cluster); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// resolve finds the address of a node by its id.
func (n *Node) resolve(id raft.ServerID) (string, error) {
	if address, ok := n.identity.Address(string(id)); ok {
		return address, nil
	}
	return "", fmt.Errorf("%w: the address of node %q is not known yet", hastate.ErrNotFound, id)
}
