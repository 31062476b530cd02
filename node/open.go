// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/reflection"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/fsm"
	"github.com/hastate/hastate/instance"
	"github.com/hastate/hastate/internal/api"
	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/internal/holder"
	"github.com/hastate/hastate/internal/logstore"
	"github.com/hastate/hastate/internal/member"
	"github.com/hastate/hastate/internal/propose"
	"github.com/hastate/hastate/internal/readindex"
	"github.com/hastate/hastate/snapshot"
	"github.com/hastate/hastate/transport"
)

// stateFile is the name of the state file in a data folder.
const stateFile = "state.db"

// openData takes the data folder: lock, identity, log, state, snapshots.
func (n *Node) openData() error {
	var err error
	dir := n.cfg.DataDir
	if n.lock, err = lockDir(dir); err != nil {
		return err
	}
	if n.identity, err = openIdentity(dir, n.cfg.NodeID); err != nil {
		return err
	}
	if err := n.openLog(); err != nil {
		return err
	}
	if n.machine, err = fsm.Open(fsm.Options{
		Path: filepath.Join(dir, stateFile), Clock: n.cfg.Clock, Logger: n.log, Halt: n.fail,
	}); err != nil {
		return err
	}
	n.expiry = fsm.NewExpiry(n.machine, n.cfg.Clock)
	if n.snapshots, err = snapshot.Open(snapshot.Options{
		Dir: filepath.Join(dir, "snapshots"), Source: snapshot.SourceFunc(n.beginStream), Logger: n.log, Version: n.cfg.Version,
		OnReceived: n.logs.ForgetDivergent,
		OnInstalled: func(index, term, stateIndex uint64) {
			n.logs.SnapshotInstalled(stateIndex)
			n.logs.Base(index, term)
		},
	}); err != nil {
		return err
	}
	if err := n.finishRestore(); err != nil {
		return err
	}
	return n.checkData()
}

// openLog opens the log that the folder has, or makes one of the kind that is wanted.
func (n *Node) openLog() error {
	dir, wanted := n.cfg.DataDir, n.cfg.LogStore
	kind, err := logstore.Find(dir)
	switch {
	case err != nil:
		return err
	case kind == "":
		// The log is made before the state. To make another one here would be in the
		// way of the old one when it is put back.
		if _, err := os.Stat(filepath.Join(dir, stateFile)); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: data folder %s: there is a state file %s, but neither %s nor %s: the log is missing, and with it what this node has voted: %s",
				hastate.ErrPrecondition, dir, stateFile, filepath.Base(logstore.PathIn(dir, logstore.Bolt)), filepath.Base(logstore.PathIn(dir, logstore.Segments)), adviceLost)
		}
		kind = cmp.Or(wanted, DefaultLogStore)
	case wanted != "" && wanted != kind:
		return fmt.Errorf("%w: the data folder %s has a log of the kind %q, and the configuration says %q: run hanode migrate-log --data-dir %s --to %s first, or leave the kind out", hastate.ErrPrecondition, dir, kind, wanted, dir, wanted)
	}
	n.logs, err = logstore.Open(logstore.Options{
		Path: logstore.PathIn(dir, kind), Kind: kind, Clock: n.cfg.Clock, Logger: n.log, Fault: n.cfg.Faults.Log, Halt: n.fail,
	})
	return err
}

// openRaft starts Raft over the transport. Nothing is served yet.
func (n *Node) openRaft() error {
	var err error
	p := n.cfg.Profile
	if n.transport, err = transport.New(transport.Options{
		ID: raft.ServerID(n.cfg.NodeID), Resolve: n.resolve, Dial: n.cfg.dialOptions(), AllowPlaintext: n.cfg.AllowPlaintext,
		Heartbeat: p.Heartbeat, Election: p.Heartbeat, ClusterID: n.identity.ClusterID, OnClusterID: n.identity.Pin,
		Serving: n.serving, BeforePreVote: n.awaitTimeout, Fault: n.cfg.Faults.Network, Logger: n.log, Clock: n.cfg.Clock,
	}); err != nil {
		return err
	}
	n.applier = &applier{Machine: n.machine, snapshots: n.snapshots, clock: n.cfg.Clock}
	if n.hadState, err = raft.HasExistingState(n.logs, n.logs, n.snapshots); err != nil {
		return fmt.Errorf("look for earlier state: %w", err)
	}
	if n.hadState || n.identity.Admitted() {
		n.admission.admit()
	}
	if err = n.startRaft(); err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	n.transport.Bind(n.raft)
	return nil
}

// raftConfig derives raft's configuration from the profile.
func (n *Node) raftConfig() *raft.Config {
	p, c := n.cfg.Profile, raft.DefaultConfig()
	c.LocalID = raft.ServerID(n.cfg.NodeID)
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = p.Heartbeat, p.Heartbeat, p.LeaderLease
	c.CommitTimeout = p.Commit
	c.MaxAppendEntries = maxAppendEntries
	c.SnapshotInterval, c.SnapshotThreshold, c.TrailingLogs = n.cfg.Snapshot.Interval, n.cfg.Snapshot.Threshold, n.cfg.Snapshot.Trailing
	c.NotifyCh = n.notify
	c.NoSnapshotRestoreOnStart = true // the state file is never behind a snapshot: see fsm and snapshot
	c.NoLegacyTelemetry = true
	c.Logger = newRaftLogger(n.log)
	return c
}

// maxStreams bounds the calls under way on one client connection.
const maxStreams = 4096

// maxAppendEntries bounds one AppendEntries; the transport bounds its bytes.
const maxAppendEntries = 256

// openServices assembles what is above Raft, and the servers of both ports.
func (n *Node) openServices() error {
	n.peers = &peers{n}
	if err := n.openProposals(); err != nil {
		return err
	}
	if err := n.openHolders(); err != nil {
		return err
	}
	var err error
	if n.services, err = api.New(api.Config{
		NodeID: n.cfg.NodeID, Version: n.cfg.Version, Profile: n.cfg.Profile, State: state{n.machine}, Proposer: n.proposer,
		Reader: n.reads, Raft: n.raft, Log: n.logs, Peers: n.transport, Groups: groups{n}, Membership: n.members,
		Snapshots: archives{n}, Greeter: n, Holders: holders{n}, Clock: n.cfg.Clock, Address: n.addressOf,
		InTouch: n.inTouch, Problems: n.Problems, ClientIdle: fsm.ClientIdle, Logger: n.log,
	}); err != nil {
		return err
	}
	opts := append(transport.ServerOptions(),
		grpc.MaxConcurrentStreams(maxStreams), grpc.WaitForHandlers(true),
		grpc.ChainUnaryInterceptor(n.admitUnary, n.transport.UnaryServerInterceptor(), n.services.UnaryInterceptor()),
		grpc.ChainStreamInterceptor(n.admitStream, n.transport.StreamServerInterceptor(), n.services.StreamInterceptor()))
	if n.cfg.ServerTLS != nil {
		opts = append(opts, grpc.Creds(n.cfg.ServerTLS))
	}
	n.grpcServer = grpc.NewServer(opts...)
	n.transport.Register(n.grpcServer)
	n.services.Register(n.grpcServer)
	reflection.Register(n.grpcServer)
	n.metrics = newMetrics(n)
	n.httpServer = newHTTPServer(n.handler())
	return nil
}

func (n *Node) openProposals() error {
	var err error
	n.batcher, err = propose.NewBatcher(propose.BatcherConfig{Raft: entries{n.raft, n.cfg.Faults.Entry}, Check: fsm.CheckCommand, Wall: n.cfg.Faults.Wall, Leader: n.leaderHint, Logger: n.log})
	if err != nil {
		return err
	}
	if n.proposer, err = propose.New(propose.NodeConfig{
		ID: raft.ServerID(n.cfg.NodeID), Raft: n.raft, Peers: n.transport, Local: n.batcher, Address: n.addressOf, Logger: n.log,
	}); err != nil {
		return err
	}
	leader, err := readindex.NewLeader(readindex.LeaderConfig{
		Raft: n.raft, Evidence: n.transport, Log: n.logs, Barrier: n.barrier, Clock: n.cfg.Clock, Hint: n.leaderHint,
	})
	if err != nil {
		return err
	}
	if n.reads, err = readindex.New(readindex.NodeConfig{Raft: n.raft, Peers: n.transport, Leader: leader, State: n.machine, Address: n.addressOf}); err != nil {
		return err
	}
	n.members, err = member.New(member.Config{
		ID: raft.ServerID(n.cfg.NodeID), Version: n.cfg.Version, Raft: n.raft, State: n.machine, Proposer: n.proposer,
		Reach: n.transport, Barrier: n.barrier, Seen: n.seen, Greet: n.helloTo, Address: n.addressOf, Clock: n.cfg.Clock,
		Heartbeat: n.cfg.Profile.Heartbeat, Logger: n.log,
	})
	return err
}

// applier is the state machine as raft has it: one whose running call shows, for
// the watchdog, and that keeps no file of a snapshot that it has taken over.
type applier struct {
	*fsm.Machine
	snapshots *snapshot.Store
	clock     clock.Clock
	// since is when the running ApplyBatch began, 0 if none runs.
	since atomic.Int64
}

// ApplyBatch applies log entries.
func (m *applier) ApplyBatch(logs []*raft.Log) []any {
	m.since.Store(int64(m.clock.Now()))
	defer m.since.Store(0)
	return m.Machine.ApplyBatch(logs)
}

// stalled is how long the running ApplyBatch has taken, 0 if none runs.
func (m *applier) stalled(now clock.Instant) time.Duration {
	since := clock.Instant(m.since.Load())
	if since == 0 {
		return 0
	}
	return now.Sub(since)
}

// Restore takes over a snapshot.
func (m *applier) Restore(rc io.ReadCloser) error {
	if err := m.Machine.Restore(rc); err != nil {
		return err
	}
	return m.snapshots.Restored(m.Flushed())
}

// openHolders attaches the model servers.
func (n *Node) openHolders() error {
	for _, in := range n.cfg.Instances {
		attached, err := instance.Open(in.Attach)
		if err != nil {
			return fmt.Errorf("attach the instance of group %s: %w", in.Group, err)
		}
		n.instances = append(n.instances, attached)
		h, err := holder.New(holder.Config{
			NodeID: n.cfg.NodeID, Group: in.Group, Instance: attached, Address: in.Address, Tags: in.Tags,
			Profile: n.cfg.Profile, Clock: n.cfg.Clock, State: n.machine, Proposer: n.proposer, Logger: n.log,
			OnLease: n.cfg.Faults.OnLease,
		})
		if err != nil {
			return err
		}
		n.holders[in.Group] = h
	}
	return nil
}

// barrier tells readindex which term's barrier has been applied.
func (n *Node) barrier() (uint64, bool) {
	term := n.leadership.barrier.Load()
	return term, term != 0
}

// leaderHint is for NotLeaderError.
func (n *Node) leaderHint() (id, address string) {
	address, id = n.Leader()
	return id, address
}

func (n *Node) addressOf(id raft.ServerID) string {
	if string(id) == n.cfg.NodeID {
		return n.advertise
	}
	address, err := n.resolve(id)
	if err != nil {
		return ""
	}
	return address
}

// Close releases what Open took, in the reverse order, and waits. It is called
// after Run has returned; a node that never ran is closed too.
func (n *Node) Close() error {
	n.closed.Do(func() {
		var errs []error
		if n.grpcServer != nil {
			n.grpcServer.Stop() // streams of peers never end by themselves
		}
		for _, l := range []interface{ Close() error }{n.listener, n.httpListener} {
			if l != nil {
				_ = l.Close() // a served listener is closed already
			}
		}
		if n.raft != nil {
			errs = append(errs, n.raft.Shutdown().Error())
		}
		if n.transport != nil {
			errs = append(errs, n.transport.Close())
		}
		for _, in := range n.instances {
			errs = append(errs, in.Close())
		}
		// The state after raft, which applies to it; the log last.
		if n.machine != nil {
			errs = append(errs, n.machine.Close())
		}
		if n.logs != nil {
			errs = append(errs, n.logs.Close())
		}
		if n.lock != nil {
			errs = append(errs, n.lock.Close())
		}
		n.closeErr = errors.Join(errs...)
	})
	return n.closeErr
}
