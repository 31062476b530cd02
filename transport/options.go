// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/hastate/hastate/internal/clock"
)

// Limits that are part of the protocol between nodes.
const (
	// MaxMessageBytes bounds one message between nodes.
	MaxMessageBytes = 64 << 20
	// MaxChunkBytes bounds one message of a snapshot.
	MaxChunkBytes = 256 << 10
	// MaxPeers bounds the peers that a node has connections to.
	MaxPeers = 256
)

// Options configures a Transport. ID and Resolve must be set; every other field
// has a default.
type Options struct {
	// ID is the id of this node, and its server address in Raft.
	ID raft.ServerID
	// Resolve tells the host:port of a node. It is called at every dial and
	// after failures, and must not block.
	Resolve func(raft.ServerID) (string, error)
	// Dial is added to the options of each connection: credentials, mostly. A
	// TLS server name is the id of the node unless the credentials set one.
	// Without credentials here a connection is in plaintext, and made only to
	// a loopback address.
	Dial []grpc.DialOption
	// AllowPlaintext permits plaintext to any address.
	AllowPlaintext bool
	// DialContext opens the byte stream to an address; default: TCP.
	DialContext func(ctx context.Context, address string) (net.Conn, error)

	// Heartbeat is Raft's HeartbeatTimeout; default 300 ms. Half of it is the
	// deadline of a heartbeat, all of it that of a vote.
	Heartbeat time.Duration
	// Election is Raft's ElectionTimeout; default Heartbeat. It is the time
	// after which a TimeoutNow is dropped.
	Election time.Duration
	// AppendTimeout bounds the wait for the answer to one append; default 10 s.
	AppendTimeout time.Duration
	// ParkLimit bounds how long an append waits for a peer that cannot be
	// reached; default 10 min. Each time it is reached Raft backs off longer
	// from the peer, up to 10 s.
	ParkLimit time.Duration
	// SnapshotIdle bounds the time between two parts of a snapshot, on both
	// sides; default 10 s.
	SnapshotIdle time.Duration
	// SnapshotRestore bounds the wait for a peer to restore a snapshot that it
	// has received; default 10 min.
	SnapshotRestore time.Duration

	// PipelineDepth bounds the unanswered messages of a pipeline; default 8.
	// Below 2 there is no pipelining.
	PipelineDepth int
	// SplitBytes bounds the entries of one message; default 1 MiB. A larger
	// append is sent as several. One entry is never split.
	SplitBytes int
	// CoalesceEntries and CoalesceBytes bound what is handed to Raft as one
	// append; defaults 2048 and 4 MiB. CoalesceEntries of 1 turns it off.
	CoalesceEntries int
	CoalesceBytes   int

	// ClusterID tells the cluster of this node, "" while that is not known. It
	// is sent with every RPC and checked by the receiver.
	ClusterID func() string
	// OnClusterID is called with the cluster id of a leader that calls while
	// ClusterID returns "". An error refuses the call.
	OnClusterID func(string) error
	// Serving tells whether this node may act as leader or candidate. While it
	// is false, heartbeats, appends, snapshots and vote requests stay here, so
	// that another node takes over (a stalled disk). A TimeoutNow goes out.
	Serving func() bool
	// BeforePreVote is called with the end of a candidate's log before its pre-vote
	// request goes to Raft, and may wait, not beyond ctx; nil: nothing is called.
	BeforePreVote func(ctx context.Context, lastTerm, lastIndex uint64)
	// Fault is for tests: see FaultHook.
	Fault  FaultHook
	Logger *slog.Logger
	Clock  clock.Clock
}

func (o Options) withDefaults() Options {
	duration := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	number := func(n *int, value int) {
		if *n == 0 {
			*n = value
		}
	}
	duration(&o.Heartbeat, 300*time.Millisecond)
	duration(&o.Election, o.Heartbeat)
	duration(&o.AppendTimeout, 10*time.Second)
	duration(&o.ParkLimit, 10*time.Minute)
	duration(&o.SnapshotIdle, 10*time.Second)
	duration(&o.SnapshotRestore, 10*time.Minute)
	number(&o.PipelineDepth, 8)
	number(&o.SplitBytes, 1<<20)
	number(&o.CoalesceEntries, 2048)
	number(&o.CoalesceBytes, 4<<20)
	if o.ClusterID == nil {
		o.ClusterID = func() string { return "" }
	}
	if o.OnClusterID == nil {
		o.OnClusterID = func(string) error { return nil }
	}
	if o.Serving == nil {
		o.Serving = func() bool { return true }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = clock.Boot{}
	}
	if o.DialContext == nil {
		var d net.Dialer
		o.DialContext = func(ctx context.Context, address string) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", address)
		}
	}
	return o
}

func (o Options) validate() error {
	var errs []error
	if o.ID == "" {
		errs = append(errs, errors.New("ID is empty: set the id of this node"))
	}
	if o.Resolve == nil {
		errs = append(errs, errors.New("option Resolve is not set: it must tell the address of a node"))
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"Heartbeat", o.Heartbeat},
		{"Election", o.Election},
		{"AppendTimeout", o.AppendTimeout},
		{"ParkLimit", o.ParkLimit},
		{"SnapshotIdle", o.SnapshotIdle},
		{"SnapshotRestore", o.SnapshotRestore},
	} {
		if d.value < time.Millisecond {
			errs = append(errs, fmt.Errorf("%s is %v: it must be at least 1ms", d.name, d.value))
		}
	}
	for _, n := range []struct {
		name       string
		value, max int
	}{
		{"PipelineDepth", o.PipelineDepth, 1024},
		{"SplitBytes", o.SplitBytes, MaxMessageBytes / 2},
		{"CoalesceEntries", o.CoalesceEntries, 1 << 20},
		{"CoalesceBytes", o.CoalesceBytes, 1 << 30},
	} {
		if n.value < 1 || n.value > n.max {
			errs = append(errs, fmt.Errorf("%s is %d: it must be from 1 to %d", n.name, n.value, n.max))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("transport options: %w", err)
	}
	return nil
}

// Keepalive between nodes cleans up after a peer that vanished without a word;
// the deadlines of heartbeats are what detects failures. gRPC also sets
// TCP_USER_TIMEOUT to keepaliveTimeout: a connection whose bytes the peer's
// kernel does not confirm for that long is closed and dialled afresh, so that
// it need not wait out TCP's own retransmission after a partition has healed.
const (
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 3 * time.Second
)

// ServerOptions are what a gRPC server needs on which a Transport is registered:
// the message limit of peers, leave for their keepalive, and windows that keep
// an append or a snapshot flowing.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(MaxMessageBytes),
		grpc.MaxSendMsgSize(MaxMessageBytes),
		grpc.InitialWindowSize(4 << 20),
		grpc.InitialConnWindowSize(8 << 20),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime:             keepaliveTime / 2,
			PermitWithoutStream: true,
		}),
	}
}
