// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/hastate/hastate/internal/wait"
)

// TestAskTwice_DeadConnection: the control connection is dead and says so to nobody, as
// after a cut that has healed. Votes are answered all the same, within their own time,
// and the connection is made anew.
func TestAskTwice_DeadConnection(t *testing.T) {
	m, w := newMesh(), &wires{}
	a := m.add(t, "n1", func(o *Options) {
		o.DialContext, o.Heartbeat = w.dial(m), 2*time.Second
		o.Dial = []grpc.DialOption{grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: time.Hour})} // it would do, much later
	})
	answer(t, m.add(t, "n2", nil), func(rpc raft.RPC) {
		switch rpc.Command.(type) {
		case *raft.RequestVoteRequest:
			rpc.Respond(&raft.RequestVoteResponse{RPCHeader: header("n2"), Term: 7, Granted: true}, nil)
		case *raft.RequestPreVoteRequest:
			rpc.Respond(&raft.RequestPreVoteResponse{RPCHeader: header("n2"), Term: 7, Granted: true}, nil)
		default:
			accept(rpc)
		}
	})
	vote := func() error {
		var r raft.RequestVoteResponse
		err := a.RequestVote("n2", "n2", &raft.RequestVoteRequest{RPCHeader: header("n1"), Term: 7}, &r)
		if err == nil && !r.Granted {
			return errors.New("refused")
		}
		return err
	}
	preVote := func() error {
		var r raft.RequestPreVoteResponse
		err := a.RequestPreVote("n2", "n2", &raft.RequestPreVoteRequest{RPCHeader: header("n1"), Term: 7}, &r)
		if err == nil && !r.Granted {
			return errors.New("refused")
		}
		return err
	}
	for name, ask := range map[string]func() error{"vote": vote, "pre-vote": preVote} {
		if err := ask(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		p := a.peers["n2"]
		control := p.dialledNow(controlConn)
		w.mu.Lock()
		for _, c := range w.all {
			if c == control {
				c.once.Do(func() { close(c.dead) })
			}
		}
		w.mu.Unlock()
		if err := ask(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		wait.Until(t, patience, func() error {
			if p.dialledNow(controlConn) == control {
				return errors.New("the dead connection is kept")
			}
			return a.AppendEntries("n2", "n2", &raft.AppendEntriesRequest{RPCHeader: header("n1"), Term: 1}, &raft.AppendEntriesResponse{}) // a heartbeat
		})
	}
}

// TestAskTwice_SlowPeer: a peer that takes its time for its answer keeps its connection,
// and the answer counts.
func TestAskTwice_SlowPeer(t *testing.T) {
	m, w := newMesh(), &wires{}
	a := m.add(t, "n1", func(o *Options) { o.DialContext, o.Heartbeat = w.dial(m), time.Second })
	waiting := make(chan raft.RPC, 2)
	answer(t, m.add(t, "n2", nil), func(rpc raft.RPC) {
		if waiting <- rpc; len(waiting) == 2 { // it was asked again: both are answered
			for range 2 {
				held := <-waiting
				held.Respond(&raft.RequestVoteResponse{RPCHeader: header("n2"), Term: 7, Granted: true}, nil)
			}
		}
	})
	var r raft.RequestVoteResponse
	if err := a.RequestVote("n2", "n2", &raft.RequestVoteRequest{RPCHeader: header("n1"), Term: 7}, &r); err != nil || !r.Granted {
		t.Fatalf("%+v, %v", r, err)
	}
	if n := w.count(); n > connCount {
		t.Errorf("%d connections were made", n)
	}
}
