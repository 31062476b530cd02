// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/election"
	"github.com/hastate/hastate/instance"
	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/internal/holder"
	"github.com/hastate/hastate/internal/logstore"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/transport"
)

// Config is everything that a node needs to know. Durations come from Profile.
type Config struct {
	// NodeID is unique in the cluster and never changes for a data folder.
	NodeID string
	// DataDir holds the log, the state and the snapshots of this node alone.
	DataDir string
	// Listen is the address of the gRPC port; port 0 picks a free one.
	Listen string
	// Advertise is how the others reach Listen; empty: Listen as bound.
	Advertise string
	// HTTPListen is the address of the HTTP port; empty: none.
	HTTPListen string
	// BootstrapExpect is how many nodes found each other before a new cluster is
	// begun; 0: join an existing one, or go on with the data folder.
	BootstrapExpect int
	// Join are gRPC addresses of other nodes.
	Join []string
	// Replica joins without a vote.
	Replica bool
	// LogStore is how the log is kept; empty: as it is in the data folder, and
	// DefaultLogStore in a new one.
	LogStore logstore.Kind
	// Profile are the timeouts.
	Profile election.Profile
	// Instances are the model servers beside this node, at most one per group.
	Instances []InstanceConfig
	// Snapshot says when the log is compacted.
	Snapshot SnapshotPolicy
	// ServerTLS and ClientTLS secure the gRPC port and the connections to other
	// nodes; nil: plaintext, which is refused off loopback without AllowPlaintext.
	ServerTLS, ClientTLS credentials.TransportCredentials
	AllowPlaintext       bool
	// Version is reported to people and to other nodes.
	Version string
	Logger  *slog.Logger

	// Clock is CLOCK_BOOTTIME unless a test says otherwise.
	Clock clock.Clock
	// Faults are for tests only.
	Faults Faults
}

// Faults let a test break one thing at a time.
type Faults struct {
	Network transport.FaultHook
	Log     logstore.Fault
	// WatchdogOff disables the stall watchdog.
	WatchdogOff bool
	// Wall is the wall clock for stamps that people read; nil: time.Now.
	Wall func() time.Time
	// Entry is called with each encoded entry that was gathered for Raft, before Raft
	// gets it, and may block: then this node proposes nothing meanwhile. nil: nothing
	// is called.
	Entry func(entry []byte)
	// OnLease is told the changes of the leases held beside this node, in instants
	// of Clock: their beginning and renewals before anything is done under them,
	// their end before anybody else hears of it. It is called by a goroutine of each
	// group and must not block. nil: nobody is told.
	OnLease func(LeaseChange)
}

// LeaseChange is the beginning, a renewal or the end of a lease.
type LeaseChange = holder.LeaseChange

// InstanceConfig is one model server beside the node.
type InstanceConfig struct {
	// Group that it serves.
	Group string
	// Address for its clients.
	Address string
	Tags    *pb.InstanceTags
	// Attach says how it is watched and told of its role.
	Attach instance.Config
}

// SnapshotPolicy says when the Raft log is compacted.
type SnapshotPolicy struct {
	// Interval between looks at Threshold.
	Interval time.Duration
	// Threshold is how many entries make a snapshot worth while.
	Threshold uint64
	// Trailing entries are kept for followers that are a little behind.
	Trailing uint64
}

// DefaultSnapshotPolicy is used for zero fields.
var DefaultSnapshotPolicy = SnapshotPolicy{Interval: 30 * time.Second, Threshold: 8192, Trailing: 16384}

// DefaultLogStore is how the log of a new data folder is kept.
const DefaultLogStore = logstore.Bolt

// MaxInstances bounds the instances beside one node.
const MaxInstances = 64

// withDefaults fills what the caller left out.
func (c Config) withDefaults() Config {
	if c.Clock == nil {
		c.Clock = clock.Boot{}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Profile == (election.Profile{}) {
		c.Profile = election.Lan
	}
	if c.Snapshot.Interval == 0 {
		c.Snapshot.Interval = DefaultSnapshotPolicy.Interval
	}
	if c.Snapshot.Threshold == 0 {
		c.Snapshot.Threshold = DefaultSnapshotPolicy.Threshold
	}
	if c.Snapshot.Trailing == 0 {
		c.Snapshot.Trailing = DefaultSnapshotPolicy.Trailing
	}
	for i := range c.Instances {
		if c.Instances[i].Group == "" {
			c.Instances[i].Group = hastate.DefaultGroup
		}
	}
	return c
}

// Validate checks what can be checked without I/O; every error says what to do.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if err := validName("node id", c.NodeID); err != nil {
		errs = append(errs, err)
	}
	if c.DataDir == "" {
		add("data dir is missing: give the node a folder of its own")
	}
	errs = append(errs, c.validateAddresses()...)
	if c.BootstrapExpect < 0 || c.BootstrapExpect > 9 {
		add("bootstrap expect is %d: use 1, 3 or 5 (0 to join an existing cluster)", c.BootstrapExpect)
	}
	if c.BootstrapExpect > 0 && c.Replica {
		add("bootstrap expect is %d and replica is set: the nodes that begin a cluster are voters", c.BootstrapExpect)
	}
	if err := c.Profile.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("profile %s: %w", c.Profile.Name, err))
	}
	if c.LogStore != "" && !slices.Contains(logstore.Kinds, c.LogStore) {
		add("log store %q is not known: use one of %q, or leave it out", c.LogStore, logstore.Kinds)
	}
	if len(c.Instances) > MaxInstances {
		add("%d instances: at most %d can be beside one node", len(c.Instances), MaxInstances)
	}
	groups := map[string]bool{}
	for i, in := range c.Instances {
		if err := validName("group", in.Group); err != nil {
			errs = append(errs, fmt.Errorf("instance %d: %w", i, err))
		}
		if groups[in.Group] {
			add("instance %d: group %q has an instance beside this node already", i, in.Group)
		}
		groups[in.Group] = true
		if err := in.Attach.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("instance %d: %w", i, err))
		}
	}
	return errors.Join(errs...)
}

func (c Config) validateAddresses() []error {
	var errs []error
	check := func(what, addr string, portZero bool) {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s address %q: %w: use host:port", what, addr, err))
			return
		}
		if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 || n == 0 && !portZero {
			errs = append(errs, fmt.Errorf("%s address %q: the port is not a number from 1 to 65535", what, addr))
		}
		if len(host) > hastate.MaxURIBytes {
			errs = append(errs, fmt.Errorf("%s address is longer than %d bytes", what, hastate.MaxURIBytes))
		}
	}
	check("listen", c.Listen, true)
	if c.Advertise != "" {
		check("advertise", c.Advertise, false)
	}
	if c.HTTPListen != "" {
		check("http listen", c.HTTPListen, true)
	}
	for _, j := range c.Join {
		check("join", j, false)
	}
	if host, _, err := net.SplitHostPort(c.Listen); err == nil && c.ServerTLS == nil && !c.AllowPlaintext && !loopback(host) {
		errs = append(errs, fmt.Errorf("listen address %q is not loopback and there is no TLS: give certificates, or allow plaintext explicitly", c.Listen))
	}
	if host, _, err := net.SplitHostPort(c.Listen); err == nil && c.Advertise == "" && unspecified(host) {
		errs = append(errs, fmt.Errorf("listen address %q is every interface: say with advertise how the others reach this node", c.Listen))
	}
	return errs
}

func validName(what, s string) error {
	if s == "" {
		return fmt.Errorf("%s is missing: give it a name", what)
	}
	if len(s) > hastate.MaxNameBytes {
		return fmt.Errorf("%s is %d bytes, the limit is %d", what, len(s), hastate.MaxNameBytes)
	}
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_', r == '.':
		default:
			return fmt.Errorf("%s %q has %q: use letters, digits, '-', '_' and '.'", what, s, r)
		}
	}
	return nil
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

func unspecified(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}

// dialOptions are the credentials for calls to other nodes; none means that the
// transport decides (plaintext to loopback only, unless allowed).
func (c Config) dialOptions() []grpc.DialOption {
	if c.ClientTLS == nil {
		return nil
	}
	return []grpc.DialOption{grpc.WithTransportCredentials(c.ClientTLS)}
}
