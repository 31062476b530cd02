// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/hastate/hastate/internal/wait"
)

// deadline of what a test waits for; nothing here takes as long.
const patience = 30 * time.Second

// wires are the byte streams that a transport has dialled, in order.
type wires struct {
	mu  sync.Mutex
	all []*wire // guarded by mu
}

// wire is a byte stream that can go dead: what is written vanishes, and nothing comes.
type wire struct {
	net.Conn
	dead, closed chan struct{}
	once, end    sync.Once
}

func (w *wires) dial(m *mesh) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, address string) (net.Conn, error) {
		c, err := m.dial(ctx, address)
		if err != nil {
			return nil, err
		}
		made := &wire{Conn: c, dead: make(chan struct{}), closed: make(chan struct{})}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.all = append(w.all, made)
		return made, nil
	}
}

func (w *wires) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.all)
}

// die takes all wires that there are.
func (w *wires) die() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.all {
		c.once.Do(func() { close(c.dead) })
	}
}

func (w *wire) isDead() bool {
	select {
	case <-w.dead:
		return true
	default:
		return false
	}
}

func (w *wire) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if w.isDead() {
		<-w.closed
		return 0, net.ErrClosed
	}
	return n, err
}

func (w *wire) Write(b []byte) (int, error) {
	if w.isDead() {
		return len(b), nil
	}
	return w.Conn.Write(b)
}

func (w *wire) Close() error {
	w.end.Do(func() { close(w.closed) })
	return w.Conn.Close()
}

// TestOverdue_DeadConnection: the connection for appends is dead and says so to nobody,
// while the peer answers over another one. It is made anew long before AppendTimeout.
func TestOverdue_DeadConnection(t *testing.T) {
	for name, depth := range map[string]int{"pipeline": 8, "single": 1} {
		t.Run(name, func(t *testing.T) {
			m, w := newMesh(), &wires{}
			a := m.add(t, "n1", func(o *Options) {
				o.DialContext, o.Heartbeat, o.AppendTimeout, o.PipelineDepth = w.dial(m), 100*time.Millisecond, time.Hour, depth
				o.Dial = []grpc.DialOption{grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: time.Hour})} // it would do, much later
			})
			answer(t, m.add(t, "n2", nil), accept)
			send := sender(t, a, "n2")
			send(1)
			w.die()
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				send(2)
			}()
			// Heartbeats go over a connection of their own, which is made anew at once.
			a.peers["n2"].mu.Lock()
			control := a.peers["n2"].streams[controlConn].conn
			a.peers["n2"].mu.Unlock()
			if control != nil {
				_ = control.Close()
			}
			wait.Until(t, patience, func() error {
				_ = a.AppendEntries("n2", "n2", &raft.AppendEntriesRequest{RPCHeader: header("n1"), Term: 1}, &raft.AppendEntriesResponse{})
				select {
				case <-sent:
					return nil
				default:
					return errors.New("no append gets through")
				}
			})
		})
	}
}

// TestOverdue_SlowPeer: a peer that takes its time over an append, and answers
// heartbeats, keeps its connection.
func TestOverdue_SlowPeer(t *testing.T) {
	m, w := newMesh(), &wires{}
	a := m.add(t, "n1", func(o *Options) {
		o.DialContext, o.Heartbeat, o.AppendTimeout = w.dial(m), 50*time.Millisecond, time.Hour
	})
	asked := make(chan struct{}, 100)
	var waiting raft.RPC
	slow := atomic.Bool{}
	answer(t, m.add(t, "n2", nil), func(rpc raft.RPC) {
		if r, ok := rpc.Command.(*raft.AppendEntriesRequest); ok && !isHeartbeat(r) && slow.Load() {
			waiting = rpc
			return
		}
		accept(rpc)
		if waiting.Command == nil {
			return
		}
		select {
		case asked <- struct{}{}:
		default:
		}
		if len(asked) == 3 { // by now the connection has been asked over
			slow.Store(false)
			accept(waiting)
		}
	})
	send := sender(t, a, "n2")
	send(1)
	made := w.count()
	slow.Store(true)
	send(2)
	if now := w.count(); now > made {
		t.Errorf("%d connections were made anew", now-made)
	}
}

// sender sends appends in a pipeline if there is one, and waits for the answer.
func sender(t *testing.T, a *Transport, to raft.ServerID) func(index uint64) {
	t.Helper()
	return func(index uint64) {
		args := &raft.AppendEntriesRequest{
			RPCHeader: header(a.opts.ID), Term: 1, PrevLogEntry: index, PrevLogTerm: 1,
			Entries: []*raft.Log{{Index: index + 1, Term: 1, Data: []byte("x")}},
		}
		for begun := time.Now(); time.Since(begun) < 2*patience; {
			p, err := a.AppendEntriesPipeline(to, raft.ServerAddress(to))
			if errors.Is(err, raft.ErrPipelineReplicationNotSupported) {
				if err := a.AppendEntries(to, raft.ServerAddress(to), args, &raft.AppendEntriesResponse{}); err == nil {
					return
				}
				continue
			}
			if err != nil {
				continue
			}
			f, err := p.AppendEntries(args, &raft.AppendEntriesResponse{})
			if err == nil {
				err = f.Error()
			}
			_ = p.Close()
			if err == nil {
				return
			}
		}
	}
}
