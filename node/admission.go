// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// admission decides whether this node takes part in Raft. A node without data
// does only once it is known that nobody relies on what it may have had: a voter
// whose disk was emptied would vote again in a term in which it has voted, and a
// majority may have counted on entries that it no longer has. So a cluster must
// have taken it in, or it must begin one with others that have no data either.
type admission struct {
	// mu guards all below.
	mu sync.Mutex
	// admitted never goes back.
	admitted bool
	// empty are other nodes that want to begin a cluster and said, when this
	// process asked them, that they have no data.
	empty map[string]bool
}

func (a *admission) is() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.admitted
}

func (a *admission) admit() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.admitted = true
}

// met notes an empty node and reports whether this admits us: whether all that
// are expected have been met.
func (a *admission) met(id string, expect int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.admitted || expect == 0 || len(a.empty) >= expect {
		return false
	}
	if a.empty == nil {
		a.empty = map[string]bool{}
	}
	a.empty[id] = true
	a.admitted = len(a.empty)+1 >= expect
	return a.admitted
}

// knows drops from known the nodes that do not count yet: a cluster is begun when
// every node knows every other, and then all must have been admitted.
func (a *admission) knows(known map[string]string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.admitted {
		maps.DeleteFunc(known, func(id, _ string) bool { return !a.empty[id] })
	}
}

const raftServicePrefix = "/hastate.v1.RaftService/"

func (n *Node) checkAdmitted(method string) error {
	if !strings.HasPrefix(method, raftServicePrefix) || n.admission.is() {
		return nil
	}
	return status.Error(codes.Unavailable, fmt.Sprintf("node %s has no data and has not been taken in yet", n.cfg.NodeID))
}

func (n *Node) admitUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if err := n.checkAdmitted(info.FullMethod); err != nil {
		return nil, err
	}
	return handle(ctx, req)
}

func (n *Node) admitStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	if err := n.checkAdmitted(info.FullMethod); err != nil {
		return err
	}
	return handle(srv, stream)
}
