// SPDX-License-Identifier: Apache-2.0

package load

import (
	"cmp"
	"context"
	"errors"
	"net"
	"slices"
	"time"

	"google.golang.org/grpc"

	"github.com/hastate/hastate/client"
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Options shape a load. Where 0 means a default, the default is named.
type Options struct {
	// Endpoints are the gRPC addresses of the nodes.
	Endpoints []string
	// Groups that are used. They must exist for Callers and epochs to be of use.
	Groups []string
	// Dir is the folder of the run: records go to Dir/records.
	Dir string
	// Prefix of the ids of all sessions. Each load on one cluster needs another one:
	// its sessions must be new.
	Prefix string
	// Seed of what is drawn. What clients do also depends on what they are told.
	Seed uint64

	// Workers share the sessions; 0: 3, besides one for each node that is tied to it.
	// Each has a connection of its own to every node, as has everybody else here but
	// for those that are tied.
	Workers int
	// Think is the pause of a worker between two operations, 0: 15 ms, which makes
	// 200 to 400 operations a second on a small machine.
	Think time.Duration
	// KVKeys and StreamKeys are the shared sessions of each group at one time that
	// are written whole, 0: 6, and that are appended to, 0: 3.
	KVKeys, StreamKeys int
	// Appenders write a stream of their own each, in the groups in turn; 0: one a
	// group.
	Appenders int
	// AppendEvery is the pause of an Appender; 0: 100 ms.
	AppendEvery time.Duration
	// CallEvery is how often each group's caller asks its primary; 0: 20 ms.
	CallEvery time.Duration
	// Servers are the addresses of all model servers of each group. Every CallEvery
	// one of them is asked too, as a client does that has an old address: what a
	// server then does is in its own record. May be nil.
	Servers map[string][]string
	// CallTimeout is for one such request; 0: 500 ms.
	CallTimeout time.Duration
	// OpTimeout is for one operation; 0: 3 s. One write of a worker in 20 has only a
	// twentieth of it, and tied clients have 100 to 600 ms: clients that give up are
	// how outcomes become unknown.
	OpTimeout time.Duration
	// NoCallers leaves out the callers: there are no model servers.
	NoCallers bool

	// DialContext makes the callers' connections; nil: net.Dialer.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
	// DialOptions are for the connections to nodes; none: plaintext.
	DialOptions []grpc.DialOption
	// Clock is what everything is timed by; nil: clock.Boot.
	Clock clock.Clock

	// dial is another cluster, for tests, and dialNode one of its nodes.
	dial     func() (cluster, error)
	dialNode func(endpoint string) (cluster, error)
}

// attemptTimeout is how long a client waits for one node.
const attemptTimeout = 500 * time.Millisecond

func (o *Options) complete() error {
	if len(o.Groups) == 0 {
		return errors.New("load: name at least one group")
	}
	if o.Dir == "" {
		return errors.New("load: name the folder of the run")
	}
	o.Workers, o.Think = cmp.Or(o.Workers, 3), cmp.Or(o.Think, 15*time.Millisecond)
	o.KVKeys, o.StreamKeys = cmp.Or(o.KVKeys, 6), cmp.Or(o.StreamKeys, 3)
	o.Appenders, o.AppendEvery = cmp.Or(o.Appenders, len(o.Groups)), cmp.Or(o.AppendEvery, 100*time.Millisecond)
	o.CallEvery, o.CallTimeout = cmp.Or(o.CallEvery, 20*time.Millisecond), cmp.Or(o.CallTimeout, 500*time.Millisecond)
	o.OpTimeout = cmp.Or(o.OpTimeout, 3*time.Second)
	if o.Clock == nil {
		o.Clock = clock.Boot{}
	}
	if o.DialContext == nil {
		o.DialContext = (&net.Dialer{}).DialContext
	}
	if o.dial == nil {
		o.dial = func() (cluster, error) { return o.connect(o.Endpoints, o.DialOptions) }
	}
	if o.dialNode == nil {
		o.dialNode = func(endpoint string) (cluster, error) {
			// Whatever address it is told, of the leader say, it gets to that node.
			always := grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "tcp", endpoint)
			})
			return o.connect([]string{endpoint}, append(slices.Clone(o.DialOptions), always))
		}
	}
	return nil
}

// sessions is the part of *client.Sessions that the load uses.
type sessions interface {
	Put(ctx context.Context, req *pb.PutRequest) (*pb.SessionOpResult, error)
	Append(ctx context.Context, req *pb.AppendRequest) (*pb.SessionOpResult, error)
	Delete(ctx context.Context, req *pb.DeleteRequest) (*pb.SessionOpResult, error)
	Get(ctx context.Context, id string, level pb.ReadLevel) (*pb.Session, error)
	// List reads all sessions of the group, linearizably.
	List(ctx context.Context) ([]*pb.Session, error)
	Watch(ctx context.Context, prefix string, after uint64, on func(client.SessionChange) error) error
}

// cluster is the part of *client.Client that the load uses.
type cluster interface {
	Sessions(group string) sessions
	WatchGroups(ctx context.Context, groups []string, after uint64, on func(*pb.WatchResponse) error) error
	WatchPrimary(ctx context.Context, group string) (<-chan client.Primary, error)
	Close() error
}

func (o *Options) connect(endpoints []string, options []grpc.DialOption) (cluster, error) {
	c, err := client.Dial(client.Options{
		Endpoints: endpoints, DialOptions: options, AllowPlaintext: true, AttemptTimeout: attemptTimeout, Name: "chaos",
	})
	if err != nil {
		return nil, err
	}
	return remote{c}, nil
}

// remote is a real cluster.
type remote struct{ *client.Client }

func (r remote) Sessions(group string) sessions { return remoteSessions{r.Client.Sessions(group)} }

type remoteSessions struct{ *client.Sessions }

func (r remoteSessions) List(ctx context.Context) ([]*pb.Session, error) {
	var all []*pb.Session
	for s, err := range r.Sessions.List(ctx, client.ListOptions{PageSize: 200}) {
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}
