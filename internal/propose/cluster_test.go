// SPDX-License-Identifier: Apache-2.0

package propose

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// countingFSM counts how often each named command was applied.
type countingFSM struct {
	mu      sync.Mutex // guards applied
	applied map[string]int
}

func (f *countingFSM) Apply(l *raft.Log) any {
	e := &pb.Entry{}
	if err := proto.Unmarshal(l.Data, e); err != nil {
		panic(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*pb.Result
	for _, c := range e.GetCommands() {
		f.applied[c.GetOpenClient().GetName()]++
		out = append(out, &pb.Result{Code: pb.ResultCode_RESULT_CODE_OK, Message: c.GetOpenClient().GetName(), Index: l.Index})
	}
	return out
}

func (f *countingFSM) count(name string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.applied[name]
}

func (f *countingFSM) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("no snapshots") }
func (f *countingFSM) Restore(io.ReadCloser) error         { return errors.New("no snapshots") }

type raftNode struct {
	raft *raft.Raft
	fsm  *countingFSM
	node *Node
}

// startRafts makes n real Raft nodes over an in-memory transport.
func startRafts(t *testing.T, n int) []*raftNode {
	t.Helper()
	var (
		nodes  []*raftNode
		conf   raft.Configuration
		transs []*raft.InmemTransport
		peers  fakePeers
	)
	for i := range n {
		id := fmt.Sprintf("n%d", i+1)
		conf.Servers = append(conf.Servers, raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(id)})
		_, tr := raft.NewInmemTransport(raft.ServerAddress(id))
		transs = append(transs, tr)
	}
	for i, a := range transs {
		for j, b := range transs {
			if i != j {
				a.Connect(b.LocalAddr(), b)
			}
		}
	}
	for i, s := range conf.Servers {
		rc := raft.DefaultConfig()
		rc.LocalID = s.ID
		rc.HeartbeatTimeout, rc.ElectionTimeout, rc.LeaderLeaseTimeout = 150*time.Millisecond, 150*time.Millisecond, 100*time.Millisecond
		rc.CommitTimeout = 5 * time.Millisecond
		rc.Logger = hclog.NewNullLogger()
		store := raft.NewInmemStore()
		snaps := raft.NewInmemSnapshotStore()
		if err := raft.BootstrapCluster(rc, store, store, snaps, transs[i], conf); err != nil {
			t.Fatal(err)
		}
		fsm := &countingFSM{applied: map[string]int{}}
		r, err := raft.NewRaft(rc, fsm, store, store, snaps, transs[i])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Shutdown().Error() })
		nodes = append(nodes, &raftNode{raft: r, fsm: fsm})
	}
	for i, s := range conf.Servers {
		r := nodes[i].raft
		local, err := NewBatcher(BatcherConfig{Raft: r})
		if err != nil {
			t.Fatal(err)
		}
		nodes[i].node, err = New(NodeConfig{ID: s.ID, Raft: r, Peers: &peers, Local: local})
		if err != nil {
			t.Fatal(err)
		}
		runUntilCleanup(t, nodes[i].node.Run)
		peers.serve(t, s.ID, &peerServer{node: nodes[i].node})
	}
	return nodes
}

// said is what a proposer was told about one command.
type said struct {
	name string
	err  error
}

// load proposes from all nodes until stop is closed.
func load(ctx context.Context, t *testing.T, nodes []*raftNode, stop <-chan struct{}) (wait func() []said) {
	t.Helper()
	var (
		mu  sync.Mutex
		all []said
		wg  sync.WaitGroup
	)
	for w := range 9 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				name := fmt.Sprintf("%d-%d", w, i)
				pctx, cancel := context.WithTimeout(ctx, time.Second)
				res, err := nodes[w%3].node.ProposeOnce(pctx, named(name))
				cancel()
				if err == nil && res.GetMessage() != name {
					t.Errorf("result of %q for %q", res.GetMessage(), name)
				}
				mu.Lock()
				all = append(all, said{name, err})
				mu.Unlock()
			}
		})
	}
	return func() []said {
		wg.Wait()
		return all
	}
}

// compare checks what was said against what each node has applied.
func compare(t *testing.T, nodes []*raftNode, all []said) {
	t.Helper()
	var ok, refused, open int
	for _, s := range all {
		for i, n := range nodes {
			switch times := n.fsm.count(s.name); {
			case times > 1:
				t.Errorf("node %d applied %q %d times", i, s.name, times)
			case s.err == nil && times != 1:
				t.Errorf("%q was acknowledged and node %d did not apply it", s.name, i)
			case s.err != nil && !IsUnknown(s.err) && times != 0:
				t.Errorf("%q was said not to be applied (%v) and node %d applied it", s.name, s.err, i)
			}
		}
		switch {
		case s.err == nil:
			ok++
		case IsUnknown(s.err):
			open++
		default:
			refused++
		}
	}
	t.Logf("%d applied, %d certainly not, %d unknown", ok, refused, open)
	if ok == 0 {
		t.Error("nothing was acknowledged")
	}
}

// TestNode_WhatIsSaidIsTrue moves leadership about under load and then compares
// what each proposer was told with what was applied.
func TestNode_WhatIsSaidIsTrue(t *testing.T) {
	nodes := startRafts(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := nodes[0].node.Propose(ctx, named("first")); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	finish := load(ctx, t, nodes, stop)
	moved := 0
	for range 8 {
		for _, n := range nodes {
			if n.raft.State() == raft.Leader && n.raft.LeadershipTransfer().Error() == nil {
				moved++
			}
		}
		// Some traffic under the new leader before the next move.
		if _, err := nodes[0].node.Propose(ctx, &pb.Command{Request: &pb.RequestId{Client: 1}, Op: named("step").GetOp()}); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	all := finish()
	if moved == 0 {
		t.Fatal("leadership never moved")
	}
	wait.Until(t, 10*time.Second, func() error {
		_, err := nodes[0].node.ProposeOnce(ctx, named("last"))
		return err
	})
	for i, n := range nodes {
		wait.Until(t, 10*time.Second, func() error {
			if n.fsm.count("last") == 0 {
				return fmt.Errorf("node %d has not applied the last command", i)
			}
			return nil
		})
	}
	compare(t, nodes, all)
}
