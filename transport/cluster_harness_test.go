// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"github.com/hastate/hastate/internal/wait"
)

// Real Raft nodes over real gRPC on 127.0.0.1.

// counter is a state machine: the sum of all commands, and their number.
type counter struct {
	mu       sync.Mutex
	sum, num uint64 // guarded by mu
	restored int    // guarded by mu
}

func (c *counter) Apply(l *raft.Log) any {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sum = c.sum*31 + binary.BigEndian.Uint64(l.Data)
	c.num++
	return c.num
}

func (c *counter) get() (sum, num uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sum, c.num
}

// snapshotSize is more than one chunk.
const snapshotSize = 2*MaxChunkBytes + 100

func (c *counter) Snapshot() (raft.FSMSnapshot, error) {
	sum, num := c.get()
	b := make([]byte, snapshotSize)
	binary.BigEndian.PutUint64(b[snapshotSize-16:], sum)
	binary.BigEndian.PutUint64(b[snapshotSize-8:], num)
	return image(b), nil
}

func (c *counter) Restore(r io.ReadCloser) error {
	b, err := io.ReadAll(r)
	if err != nil || len(b) != snapshotSize {
		return fmt.Errorf("snapshot of %d bytes: %w", len(b), err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sum, c.num = binary.BigEndian.Uint64(b[snapshotSize-16:]), binary.BigEndian.Uint64(b[snapshotSize-8:])
	c.restored++
	return nil
}

type image []byte

func (i image) Persist(s raft.SnapshotSink) error {
	if _, err := io.Copy(s, bytes.NewReader(i)); err != nil {
		return errors.Join(err, s.Cancel())
	}
	return s.Close()
}
func (image) Release() {}

// store is a log that can be told to fail.
type store struct {
	*raft.InmemStore
	broken atomic.Bool
	failed atomic.Int32
}

func (s *store) StoreLogs(logs []*raft.Log) error {
	if s.broken.Load() {
		s.failed.Add(1)
		return errors.New("EIO")
	}
	return s.InmemStore.StoreLogs(logs)
}

type raftNode struct {
	*raft.Raft
	id        raft.ServerID
	transport *Transport
	fsm       *counter
	log       *store
	stalled   atomic.Bool
}

type cluster struct {
	tb    testing.TB
	net   *Network
	nodes []*raftNode
}

func newCluster(tb testing.TB, n int) *cluster {
	tb.Helper()
	c := &cluster{tb: tb, net: NewNetwork()}
	addresses := make(map[raft.ServerID]string)
	var servers []raft.Server
	var listeners []net.Listener
	for i := range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			tb.Fatal(err)
		}
		id := raft.ServerID(fmt.Sprintf("n%d", i+1))
		addresses[id] = l.Addr().String()
		listeners = append(listeners, l)
		servers = append(servers, raft.Server{ID: id, Address: raft.ServerAddress(id)})
	}
	for i, l := range listeners {
		c.nodes = append(c.nodes, c.start(servers[i].ID, l, addresses, servers))
	}
	return c
}

func (c *cluster) start(id raft.ServerID, l net.Listener, addresses map[raft.ServerID]string, servers []raft.Server) *raftNode {
	c.tb.Helper()
	const heartbeat = 300 * time.Millisecond
	node := &raftNode{id: id, fsm: &counter{}, log: &store{InmemStore: raft.NewInmemStore()}}
	t, err := New(Options{
		ID: id, Heartbeat: heartbeat, Fault: c.net, AppendTimeout: 2 * time.Second,
		Resolve:   func(id raft.ServerID) (string, error) { return addresses[id], nil },
		ClusterID: func() string { return "test" },
		Serving:   func() bool { return !node.stalled.Load() },
	})
	if err != nil {
		c.tb.Fatal(err)
	}
	s := grpc.NewServer(ServerOptions()...)
	t.Register(s)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()

	conf := raft.DefaultConfig()
	conf.LocalID = id
	conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = heartbeat, heartbeat, heartbeat
	conf.CommitTimeout, conf.TrailingLogs, conf.SnapshotThreshold = 5*time.Millisecond, 1, 1<<40
	conf.Logger, conf.NoLegacyTelemetry = hclog.NewNullLogger(), true
	node.transport = t
	snapshots := raft.NewInmemSnapshotStore()
	if err := raft.BootstrapCluster(conf, node.log, node.log, snapshots, t, raft.Configuration{Servers: servers}); err != nil {
		c.tb.Fatal(err)
	}
	if node.Raft, err = raft.NewRaft(conf, node.fsm, node.log, node.log, snapshots, t); err != nil {
		c.tb.Fatal(err)
	}
	t.Bind(node.Raft)
	c.tb.Cleanup(func() {
		// Closes the transport too. It must not wait for peers that are away.
		if err := node.Shutdown().Error(); err != nil {
			c.tb.Error(err)
		}
		s.Stop()
		if err := <-served; err != nil {
			c.tb.Error(err)
		}
	})
	return node
}

// leader waits for a leader among the nodes that can commit.
func (c *cluster) leader(except ...*raftNode) *raftNode {
	c.tb.Helper()
	var leader *raftNode
	wait.Until(c.tb, 2*long, func() error {
	next:
		for _, n := range c.nodes {
			for _, e := range except {
				if n == e {
					continue next
				}
			}
			if n.State() == raft.Leader && n.Barrier(time.Second).Error() == nil {
				leader = n
				return nil
			}
		}
		return errors.New("no leader")
	})
	return leader
}

func (c *cluster) followers(leader *raftNode) []*raftNode {
	var out []*raftNode
	for _, n := range c.nodes {
		if n != leader {
			out = append(out, n)
		}
	}
	return out
}

// apply applies n commands, many at a time, on the leader. If the leader changes
// meanwhile it begins again: some may be applied twice.
func (c *cluster) apply(n int, except ...*raftNode) {
	c.tb.Helper()
	wait.Until(c.tb, 3*long, func() error {
		leader := c.leader(except...)
		futures := make([]raft.ApplyFuture, n)
		for i := range futures {
			futures[i] = leader.Apply(binary.BigEndian.AppendUint64(nil, uint64(i)), long)
		}
		var err error
		for _, f := range futures {
			err = errors.Join(err, f.Error())
		}
		return err
	})
}

// equal waits until all state machines are the same.
func (c *cluster) equal() {
	c.tb.Helper()
	wait.Until(c.tb, 2*long, func() error {
		sum, num := c.nodes[0].fsm.get()
		for _, n := range c.nodes[1:] {
			if s, m := n.fsm.get(); s != sum || m != num {
				return fmt.Errorf("%s has %d commands, %s has %d", n.id, m, c.nodes[0].id, num)
			}
		}
		return nil
	})
}

func (c *cluster) voters() []raft.ServerID {
	var ids []raft.ServerID
	for _, n := range c.nodes {
		ids = append(ids, n.id)
	}
	return ids
}
