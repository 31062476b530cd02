// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const (
	// joinInterval is the time between two rounds of asking the join list.
	joinInterval = 100 * time.Millisecond
	// helloTimeout bounds one question to one address.
	helloTimeout = time.Second
	// founderPatience is how many rounds a node that begins a cluster with others
	// waits to be called before it asks to join.
	founderPatience = 20
	// joinTimeout bounds one request to be taken in.
	joinTimeout = 10 * time.Second
	// strangerInterval is the time between two looks whether there is a leader.
	strangerInterval = time.Second
	// maxJoin bounds the join list, with what its members know.
	maxJoin = 64
)

// hello is what this node says of itself.
func (n *Node) hello() *pb.HelloRequest {
	applied, _ := n.machine.Applied()
	return &pb.HelloRequest{
		NodeId: n.cfg.NodeID, Address: n.advertise, ClusterId: n.identity.ClusterID(), BootId: n.bootID,
		BootstrapExpect: uint32(n.cfg.BootstrapExpect), //nolint:gosec // checked by Validate: 0 to 9
		Version:         n.cfg.Version, AppliedIndex: applied,
	}
}

// Hello answers another node that looks for its cluster. A node with our id and
// another boot is refused: two processes with one id could vote twice.
func (n *Node) Hello(_ context.Context, req *pb.HelloRequest) (*pb.HelloResponse, error) {
	if req.GetNodeId() == n.cfg.NodeID && req.GetBootId() != n.bootID {
		return nil, fmt.Errorf("%w: node id %q is in use by a running node at %s: give the other one its own id", hastate.ErrAlreadyExists, n.cfg.NodeID, n.advertise)
	}
	if err := n.checkStranger(req); err != nil {
		return nil, err
	}
	if req.GetNodeId() != n.cfg.NodeID {
		if n.believes(req) {
			if _, err := n.identity.Learn(req.GetNodeId(), req.GetAddress()); err != nil {
				return nil, err
			}
			n.noteProgress(req.GetNodeId(), req.GetAppliedIndex(), req.GetVersion())
		}
	}
	me := n.hello()
	known := n.identity.Addresses()
	n.admission.knows(known)
	known[n.cfg.NodeID] = n.advertise
	leaderAddress, leaderID := n.Leader()
	return &pb.HelloResponse{
		NodeId: me.GetNodeId(), Address: me.GetAddress(), ClusterId: me.GetClusterId(), BootId: me.GetBootId(),
		BootstrapExpect: me.GetBootstrapExpect(), HasState: n.hasState(), LeaderId: leaderID, LeaderAddress: leaderAddress,
		Version: me.GetVersion(), AppliedIndex: me.GetAppliedIndex(), Known: known,
	}, nil
}

// believes reports whether what a node says of itself is remembered. Once there is a
// cluster, one that is not known to belong to it cannot say where a member is: a new
// node that was given a member's id by mistake would cut the member off. It is
// remembered when a leader has taken it in.
func (n *Node) believes(req *pb.HelloRequest) bool {
	mine := n.identity.ClusterID()
	if mine == "" || req.GetClusterId() == mine {
		return true
	}
	for _, m := range n.machine.Members() {
		if m.GetNodeId() == req.GetNodeId() {
			return false
		}
	}
	// A voter of the first configuration that has not got the log yet.
	configuration, _ := n.machine.Configuration()
	return slices.ContainsFunc(configuration.Servers, func(s raft.Server) bool { return string(s.ID) == req.GetNodeId() })
}

// checkStranger refuses a node that says it is of another cluster.
func (n *Node) checkStranger(req *pb.HelloRequest) error {
	mine := n.identity.ClusterID()
	if mine != "" && req.GetClusterId() != "" && req.GetClusterId() != mine {
		return fmt.Errorf("%w: node %q belongs to cluster %s, this is cluster %s: correct its join list, or empty its data folder to move it here", hastate.ErrPrecondition, req.GetNodeId(), req.GetClusterId(), mine)
	}
	return validName("node id", req.GetNodeId())
}

// hasState says whether this node has ever had a Raft log.
func (n *Node) hasState() bool { return n.hadState || n.raft.LastIndex() > 0 }

// enter makes this node a member of a cluster: it begins a new one with the
// others of its kind, or asks an existing one to take it in. It returns when
// that is done, or with an error that no retry can mend.
func (n *Node) enter(ctx context.Context) error {
	tick := time.NewTicker(joinInterval)
	defer tick.Stop()
	var complained time.Time
	for round := 0; ; round++ {
		if n.hasState() {
			return n.announce(ctx)
		}
		why, err := n.enterOnce(ctx, round)
		if err != nil {
			return err
		}
		if why != "" && time.Since(complained) > 5*time.Second && round > 10 {
			complained = time.Now()
			n.log.Warn("not in a cluster yet", "reason", why)
		}
		n.setJoinProblem(why)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// enterOnce is one round: it returns why this node is not in yet.
func (n *Node) enterOnce(ctx context.Context, round int) (string, error) {
	answers, trouble, err := n.askAround(ctx)
	if err != nil {
		return "", err
	}
	for _, a := range answers {
		if !a.GetHasState() || a.GetClusterId() == "" {
			continue
		}
		if n.cfg.BootstrapExpect > 0 && n.admission.is() && round < founderPatience {
			// One of those that begin together has done so, with this node among the
			// voters: the leader will call.
			return "waiting for the leader of the new cluster to call", nil
		}
		return n.joinExisting(ctx, a)
	}
	if n.cfg.BootstrapExpect > 0 {
		return n.bootstrap(answers, trouble)
	}
	if len(n.cfg.Join) == 0 {
		return "", fmt.Errorf("%w: data folder %s is empty and there is nobody to join: give join addresses, or bootstrap-expect to begin a new cluster", hastate.ErrPrecondition, n.cfg.DataDir)
	}
	return "no node of a cluster answered at the join addresses" + trouble, nil
}

// askAround says hello to the join list and to whoever the answers name. That a node
// of the join list belongs to another cluster is an error; a remembered address may
// be somebody else's by now.
func (n *Node) askAround(ctx context.Context) (map[string]*pb.HelloResponse, string, error) {
	answers := map[string]*pb.HelloResponse{}
	asked := map[string]bool{n.advertise: true}
	queue := slices.Clone(n.cfg.Join)
	queue = append(queue, slices.Sorted(maps.Values(n.identity.Addresses()))...)
	var troubles []string
	for len(queue) > 0 && len(asked) < maxJoin {
		address := queue[0]
		queue = queue[1:]
		if asked[address] {
			continue
		}
		asked[address] = true
		reply, err := n.helloTo(ctx, address)
		switch {
		case err == nil && reply.GetNodeId() == n.cfg.NodeID && reply.GetBootId() == n.bootID:
			continue // myself, by another name
		case err == nil && reply.GetNodeId() == n.cfg.NodeID, status.Code(err) == codes.AlreadyExists:
			return nil, "", fmt.Errorf("%w: node id %q is in use by a running node at %s: give this one its own id", hastate.ErrAlreadyExists, n.cfg.NodeID, address)
		case status.Code(err) == codes.FailedPrecondition && slices.Contains(n.cfg.Join, address):
			return nil, "", err
		case err != nil:
			troubles = append(troubles, fmt.Sprintf("%s: %s", address, status.Convert(err).Message()))
			continue
		}
		answers[reply.GetNodeId()] = reply
		if !reply.GetHasState() && reply.GetBootstrapExpect() > 0 && n.admission.met(reply.GetNodeId(), n.cfg.BootstrapExpect) {
			if err := n.identity.SetAdmitted(); err != nil {
				return nil, "", err
			}
		}
		if _, err := n.identity.Learn(reply.GetNodeId(), reply.GetAddress()); err != nil {
			return nil, "", err
		}
		queue = append(queue, slices.Sorted(maps.Values(reply.GetKnown()))...)
	}
	trouble := ""
	if len(troubles) > 0 {
		trouble = " (" + strings.Join(troubles, "; ") + ")"
	}
	return answers, trouble, nil
}

// helloTo asks one address with a connection of its own: nothing is known yet of
// who is there.
func (n *Node) helloTo(ctx context.Context, address string) (*pb.HelloResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	conn, err := n.dialAddress(address)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	return pb.NewPeerServiceClient(conn).Hello(ctx, n.hello())
}

func (n *Node) dialAddress(address string) (*grpc.ClientConn, error) {
	opts := n.cfg.dialOptions()
	if host, _, err := net.SplitHostPort(address); opts == nil && !n.cfg.AllowPlaintext && (err != nil || !loopback(host)) {
		return nil, fmt.Errorf("%w: %s is not loopback and there is no TLS: give certificates, or allow plaintext explicitly", hastate.ErrInvalid, address)
	}
	if opts == nil {
		opts = []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	}
	conn, err := grpc.NewClient("passthrough:///"+address, opts...)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	return conn, nil
}

// joinExisting asks a cluster that a node of it was found of to take this one in.
func (n *Node) joinExisting(ctx context.Context, seen *pb.HelloResponse) (string, error) {
	address := seen.GetLeaderAddress()
	if address == "" {
		address = seen.GetAddress()
	}
	reply, err := n.askToJoin(ctx, address)
	switch status.Code(err) {
	case codes.OK:
		if reply.GetClusterId() == "" {
			return "the cluster is just beginning", nil
		}
		if err := n.identity.Pin(reply.GetClusterId()); err != nil {
			return "", err
		}
		n.admission.admit()
		return "waiting for the leader to call", nil
	case codes.AlreadyExists, codes.FailedPrecondition, codes.InvalidArgument:
		if isNotLeader(err) {
			return "the cluster has no leader", nil
		}
		if status.Code(err) == codes.FailedPrecondition && n.hasState() {
			// It was refused for being empty, and has got the log since it asked.
			return "", nil
		}
		return "", fmt.Errorf("%w: join at %s: %s", hastate.ErrPrecondition, address, status.Convert(err).Message())
	default:
		return fmt.Sprintf("join at %s: %s", address, status.Convert(err).Message()), nil
	}
}

func isNotLeader(err error) bool {
	err = hastate.FromStatus(err)
	return errors.Is(err, hastate.ErrNotLeader) || errors.Is(err, hastate.ErrNoLeader)
}

// announce tells the others where this node is now: its address may have changed
// since it last ran. While it finds no leader it asks the one of the others why:
// it may have been removed.
func (n *Node) announce(ctx context.Context) error {
	n.setJoinProblem("")
	if _, _, err := n.askAround(ctx); err != nil {
		return err
	}
	tick := time.NewTicker(strangerInterval)
	defer tick.Stop()
	for alone := 0; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if _, leader := n.Leader(); leader != "" {
			alone = 0
			n.setJoinProblem("")
			continue
		}
		if alone++; alone <= 1 {
			continue // an election takes less
		}
		why := n.askWhyAlone(ctx)
		n.setJoinProblem(why)
		if alone == 3 {
			n.log.Warn("no leader is known", "silent", n.silentVoters(), "reason", why)
		}
	}
}

// silentVoters are the voters that have not answered this node lately.
func (n *Node) silentVoters() []string {
	var silent []string
	configuration, _ := n.machine.Configuration()
	for _, s := range configuration.Servers {
		at, ok := n.transport.LastAnswered(s.ID)
		if s.Suffrage == raft.Voter && string(s.ID) != n.cfg.NodeID && (!ok || n.cfg.Clock.Now().Sub(at) > 2*strangerInterval) {
			silent = append(silent, string(s.ID))
		}
	}
	return silent
}

// askWhyAlone asks the leader that others follow whether this node is one of
// them, and returns what it says against it.
func (n *Node) askWhyAlone(ctx context.Context) string {
	answers, _, err := n.askAround(ctx)
	if err != nil {
		return err.Error()
	}
	for _, a := range answers {
		if a.GetClusterId() == "" || a.GetLeaderAddress() == "" || a.GetLeaderId() == n.cfg.NodeID {
			continue
		}
		_, err := n.askToJoin(ctx, a.GetLeaderAddress())
		if status.Code(err) == codes.FailedPrecondition || status.Code(err) == codes.AlreadyExists {
			return status.Convert(err).Message()
		}
		return ""
	}
	return ""
}

// askToJoin asks the leader of a cluster, which is at address.
func (n *Node) askToJoin(ctx context.Context, address string) (*pb.JoinResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	conn, err := n.dialAddress(address)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	return pb.NewPeerServiceClient(conn).Join(ctx, &pb.JoinRequest{
		NodeId: n.cfg.NodeID, Address: n.advertise, Replica: n.cfg.Replica, Empty: !n.hasState() && !n.admission.is(), Version: n.cfg.Version,
	})
}
