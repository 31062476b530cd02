// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"io"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// State is the replicated state of this node. Records that it returns are not
// changed by either side.
type State interface {
	ClusterID() string
	Revision() uint64
	// Applied is how far the log has been applied here.
	Applied() (index, term uint64)
	WaitApplied(ctx context.Context, index uint64) error
	Hash() (index uint64, hash [32]byte)
	// Changed is closed at the next change of a group, instance or member,
	// renewals included.
	Changed() <-chan struct{}

	Group(name string) (*pb.Group, bool)
	Groups() []*pb.Group
	Instances(group string) []*pb.Instance
	History(group string, limit int) []*pb.Transition
	Session(group, id string) (*pb.Session, bool, error)
	Sessions(q SessionQuery) (SessionPage, error)
	Model(name, version string) (*pb.ModelVersion, bool)
	ModelByAlias(name, alias string) (*pb.ModelVersion, bool)
	Models(name string) ([]*pb.ModelVersion, []*pb.ModelAlias)
	Members() []*pb.Member

	// Subscribe delivers what changes after a revision; CompactedError if that
	// is no longer kept.
	Subscribe(after uint64) (Feed, error)
}

// SessionQuery chooses a page of sessions in order of id.
type SessionQuery struct {
	Group, Prefix string
	// After is the id before the first one.
	After    string
	Limit    int
	KeysOnly bool
}

// SessionPage is the answer. Next is the After of the next page, empty if there
// is none.
type SessionPage struct {
	Sessions []*pb.Session
	Next     string
	Revision uint64
}

// Feed delivers whole revisions in order.
type Feed interface {
	// Next waits for changes. When ctx ends nothing is lost: the next call
	// continues. CompactedError if the reader fell too far behind.
	Next(ctx context.Context) ([]Event, error)
	Close()
}

// Event is one change; the fields that it does not concern are nil.
type Event struct {
	Revision   uint64
	Group      *pb.Group
	Transition *pb.Transition
	Instance   *pb.Instance
	Session    *pb.SessionEvent
}

// Proposer puts commands into the log; propose.Node does.
type Proposer interface {
	Propose(ctx context.Context, cmd *pb.Command) (*pb.Result, error)
	ProposeAsync(cmd *pb.Command, done func(*pb.Result, error))
	ServeForward(stream pb.PeerService_ForwardServer) error
}

// Reader makes reads linearizable; readindex.Node does.
type Reader interface {
	Read(ctx context.Context) error
	ServeReadIndex(ctx context.Context) (*pb.ReadIndexResponse, error)
	// FreshAsOf is an instant of the node's clock such that the state, when it is
	// read after this call, has every write that was acknowledged before it; false
	// if nothing is known of the state yet. It does not wait.
	FreshAsOf() (clock.Instant, bool)
}

// Raft is the part of *raft.Raft that is needed here.
type Raft interface {
	State() raft.RaftState
	LeaderWithID() (raft.ServerAddress, raft.ServerID)
	CurrentTerm() uint64
	LastIndex() uint64
	CommitIndex() uint64
}

// Log is the part of the log store that is needed here.
type Log interface {
	GetLog(index uint64, log *raft.Log) error
	// StoredAt is not earlier than when this node first stored the entry.
	StoredAt(index uint64) clock.Instant
}

// Peers finds the connection to a node; transport.Transport does.
type Peers interface {
	Conn(id raft.ServerID) (*grpc.ClientConn, error)
}

// Groups changes primaries; the leader's coordinator does. It is asked only on
// the leader and answers NotLeaderError if that has changed.
type Groups interface {
	// Switchover moves a group in a planned way; to may be empty.
	Switchover(ctx context.Context, group, to, reason string) (*pb.Transition, error)
	// Failover takes the group from its holder, whatever its health.
	Failover(ctx context.Context, group, to, reason string, force bool) (*pb.Transition, error)
}

// Membership changes the cluster; member.Membership does. All but Members are
// asked only on the leader.
type Membership interface {
	// Members is what this node knows; on the leader it includes who can be
	// reached.
	Members() []*pb.Member
	Add(ctx context.Context, id, address string, replica bool) (*pb.Member, error)
	Remove(ctx context.Context, id string, force bool) error
	Promote(ctx context.Context, id string) error
	Demote(ctx context.Context, id string) error
	// Transfer returns the new leader; to may be empty.
	Transfer(ctx context.Context, to string) (string, error)
	Join(ctx context.Context, req *pb.JoinRequest) (*pb.JoinResponse, error)
}

// Snapshots saves and restores the whole state.
type Snapshots interface {
	Save(ctx context.Context, w io.Writer) error
	Restore(ctx context.Context, r io.Reader) (records uint64, err error)
}

// Greeter answers other nodes' Hello.
type Greeter interface {
	Hello(ctx context.Context, req *pb.HelloRequest) (*pb.HelloResponse, error)
}

// Holder is the side of one group's lease that is beside its instance.
type Holder interface {
	Canvass(ctx context.Context, req *pb.CanvassRequest) (*pb.CanvassResponse, error)
	Nominate(ctx context.Context, req *pb.NominateRequest) (*pb.NominateResponse, error)
	Granted(ctx context.Context, req *pb.GrantedRequest) (*pb.GrantedResponse, error)
	Fence(ctx context.Context, req *pb.FenceRequest) (*pb.FenceResponse, error)
	// Holds reports whether the lease is valid now and the instance serves
	// under it.
	Holds() bool
}

// Holders are the holders of this node.
type Holders interface {
	For(group string) (Holder, bool)
}
