// SPDX-License-Identifier: Apache-2.0

package testcluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
	"github.com/hastate/hastate/election"
	"github.com/hastate/hastate/instance"
	"github.com/hastate/hastate/internal/logstore"
	"github.com/hastate/hastate/node"
	"github.com/hastate/hastate/transport"
)

// Patience is how long Wait functions wait: far longer than a busy machine with
// the race detector needs, since it costs nothing when all is well.
const Patience = 60 * time.Second

// Options shape a cluster; the zero value is three nodes with an instance each.
type Options struct {
	// Nodes is how many begin the cluster; 0: 3.
	Nodes int
	// Prefix of the ids of the nodes; empty: n.
	Prefix string
	// NoInstances leaves out the model servers.
	NoInstances bool
	// Profile of timeouts; zero: Calm.
	Profile election.Profile
	// Configure may change each node's configuration.
	Configure func(*node.Config)
}

// Calm is the profile of tests that are not about time: slow enough that a busy
// machine with the race detector makes no false elections.
var Calm = election.Profile{
	Name: "calm", Heartbeat: 500 * time.Millisecond, LeaderLease: 500 * time.Millisecond,
	Commit: 10 * time.Millisecond, Lease: 2 * time.Second, Renew: 200 * time.Millisecond,
	FenceMargin: 300 * time.Millisecond, Stall: 5 * time.Second, GrantSlack: 5 * time.Millisecond,
}

// Cluster is a running cluster.
type Cluster struct {
	tb      testing.TB
	options Options
	dir     string
	// Network is what the nodes talk over.
	Network *transport.Network
	Members []*Member
	monitor *monitor
}

// Member is one node and the instance beside it.
type Member struct {
	ID       string
	Log      *LogFault
	Instance *Instance

	cluster *Cluster
	config  node.Config
	node    *node.Node
	cancel  context.CancelFunc
	done    chan error
	// waited: the test has seen how Run ended.
	waited bool
}

// New starts a cluster and registers the checks for when the test has ended.
func New(tb testing.TB, o Options) *Cluster {
	tb.Helper()
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.Profile == (election.Profile{}) {
		o.Profile = Calm
	}
	c := &Cluster{tb: tb, options: o, dir: memoryDir(tb), Network: transport.NewNetwork()}
	var join []string
	for range o.Nodes {
		join = append(join, newAddress(tb))
	}
	for i := range o.Nodes {
		m := c.newMember(fmt.Sprintf("%s%d", cmp.Or(o.Prefix, "n"), i+1), "", join[i])
		m.config.BootstrapExpect, m.config.Join = o.Nodes, join
	}
	c.monitor = startMonitor(c)
	tb.Cleanup(c.finish)
	for _, m := range c.Members {
		m.Start()
	}
	return c
}

// newMember prepares a node without starting it. Its folder is named after it
// unless it is a second one of that id.
func (c *Cluster) newMember(id, folder, listen string) *Member {
	c.tb.Helper()
	if folder == "" {
		folder = id
	}
	m := &Member{ID: id, cluster: c, Log: newLogFault()}
	m.config = node.Config{
		NodeID: id, DataDir: filepath.Join(c.dir, folder), Listen: listen, Profile: c.options.Profile, Version: "test",
		LogStore: logstore.Kinds[len(c.Members)%len(logstore.Kinds)], // all kinds together are one cluster
		Faults:   node.Faults{Network: c.Network, Log: m.Log}, Logger: testLogger(c.tb, id),
	}
	if !c.options.NoInstances {
		m.Instance = newInstance(c.tb)
		m.config.Instances = []node.InstanceConfig{{
			Group: hastate.DefaultGroup, Address: m.Instance.Address(),
			Attach: instance.Config{Kind: "grpc", Target: m.Instance.Address(), Interval: 400 * time.Millisecond, Timeout: 2 * time.Second},
		}}
	}
	if c.options.Configure != nil {
		c.options.Configure(&m.config)
	}
	c.Members = append(c.Members, m)
	return m
}

// Join starts one more node, which asks the cluster to take it in.
func (c *Cluster) Join(id string, replica bool) *Member {
	c.tb.Helper()
	m := c.Prepare(id, "")
	m.config.Replica = replica
	m.Start()
	return m
}

// Prepare makes one more node that would join, without starting it. folder is
// the name of its data folder, empty: its id.
func (c *Cluster) Prepare(id, folder string) *Member {
	c.tb.Helper()
	join := c.Endpoints()
	m := c.newMember(id, folder, newAddress(c.tb))
	m.config.Join = join
	return m
}

// Start starts a member, for the first time or again.
func (m *Member) Start() {
	m.cluster.tb.Helper()
	if err := m.TryStart(); err != nil {
		m.cluster.tb.Fatalf("start %s: %v", m.ID, err)
	}
}

// TryStart is Start for nodes that are expected not to start.
func (m *Member) TryStart() error {
	n, err := node.Open(m.config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.cluster.monitor.set(m, n)
	m.node, m.cancel, m.done = n, cancel, make(chan error, 1)
	go func() {
		err := n.Run(ctx)
		if err != nil && !errors.Is(err, errCrash) {
			m.config.Logger.Error("the node has ended", "err", err)
		}
		m.done <- err
	}()
	return nil
}

// Config may be changed while the member does not run.
func (m *Member) Config() *node.Config { return &m.config }

// Node is the running node, nil if it does not run.
func (m *Member) Node() *node.Node { return m.node }

// Stop ends a member in an orderly way.
func (m *Member) Stop() {
	m.cluster.tb.Helper()
	if m.node == nil {
		return
	}
	m.cancel()
	if err := m.end(); err != nil {
		m.cluster.tb.Errorf("stop %s: %v", m.ID, err)
	}
}

// Crash ends a member as the loss of its process would, as far as one process
// can: it is cut off first, so that it hands over nothing.
func (m *Member) Crash() {
	m.cluster.tb.Helper()
	if m.node == nil {
		return
	}
	m.cluster.Network.Isolate(raft.ServerID(m.ID))
	m.node.Abort(errCrash)
	if err := m.end(); err != nil && !errors.Is(err, errCrash) {
		m.cluster.tb.Errorf("crash %s: %v", m.ID, err)
	}
	m.cancel()
	m.cluster.Network.Rejoin(raft.ServerID(m.ID))
}

var errCrash = errors.New("crashed by the test")

// Wipe empties the data folder of a member that does not run, as a new disk
// does.
func (m *Member) Wipe() {
	m.cluster.tb.Helper()
	if m.node != nil {
		m.cluster.tb.Fatalf("wipe %s: it runs", m.ID)
	}
	if err := os.RemoveAll(m.config.DataDir); err != nil {
		m.cluster.tb.Fatal(err)
	}
	m.cluster.monitor.forget(m)
}

// Reap takes leave of a member whose Run has ended by itself and returns how.
func (m *Member) Reap() error {
	m.cluster.tb.Helper()
	err := m.Wait()
	if closeErr := m.end(); closeErr != nil {
		m.cluster.tb.Errorf("close %s: %v", m.ID, closeErr)
	}
	m.cancel()
	return err
}

// Wait returns how Run ended; the test is then answerable for its error.
func (m *Member) Wait() error {
	m.cluster.tb.Helper()
	m.waited = true
	return m.wait()
}

func (m *Member) wait() error {
	m.cluster.tb.Helper()
	select {
	case err := <-m.done:
		m.done <- err
		return err
	case <-time.After(Patience):
		m.cluster.tb.Fatalf("%s still runs", m.ID)
		return nil
	}
}

func (m *Member) end() error {
	err := m.wait()
	if m.waited {
		err, m.waited = nil, false
	}
	m.cluster.monitor.set(m, nil)
	err = errors.Join(err, m.node.Close())
	m.node = nil
	return err
}

// Running are the members that run.
func (c *Cluster) Running() []*Member {
	var up []*Member
	for _, m := range c.Members {
		if m.node != nil {
			up = append(up, m)
		}
	}
	return up
}

// Member finds one by id.
func (c *Cluster) Member(id string) *Member {
	c.tb.Helper()
	i := slices.IndexFunc(c.Members, func(m *Member) bool { return m.ID == id })
	if i < 0 {
		c.tb.Fatalf("no member %q", id)
	}
	return c.Members[i]
}

// Others are the running members but these.
func (c *Cluster) Others(but ...*Member) []*Member {
	return slices.DeleteFunc(c.Running(), func(m *Member) bool { return slices.Contains(but, m) })
}

// Endpoints are the gRPC addresses of all members.
func (c *Cluster) Endpoints() []string {
	var all []string
	for _, m := range c.Members {
		all = append(all, m.config.Listen)
	}
	return all
}

// Client is a client of the whole cluster, closed with the test.
func (c *Cluster) Client() *client.Client {
	c.tb.Helper()
	cl, err := client.Dial(client.Options{Endpoints: c.Endpoints(), AttemptTimeout: 2 * time.Second, Name: "test"})
	if err != nil {
		c.tb.Fatal(err)
	}
	c.tb.Cleanup(func() {
		if err := cl.Close(); err != nil {
			c.tb.Errorf("close client: %v", err)
		}
	})
	return cl
}

// memoryDir is a folder in memory where there is one: these tests are not about
// the disk, and a busy disk makes leaders step down.
func memoryDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "hastate-test-") //nolint:usetesting // not on the disk
	if err != nil {
		return tb.TempDir()
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Errorf("remove %s: %v", dir, err)
		}
	})
	return dir
}

// testLogger writes a node's log into the test's when HASTATE_TEST_LOG is set.
func testLogger(tb testing.TB, id string) *slog.Logger {
	tb.Helper()
	if os.Getenv("HASTATE_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", id, "test", tb.Name())
}
