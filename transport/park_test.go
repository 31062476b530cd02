// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate/internal/wait"
)

// An append to a peer that is away waits, and goes on when the peer is back.
func TestAppendWaitsForThePeer(t *testing.T) {
	for _, kind := range []string{"the peer answers a heartbeat", "the peer calls", "nothing else"} {
		t.Run(kind, func(t *testing.T) {
			m := newMesh()
			m.move("n2", "down")
			a := m.add(t, "n1", func(o *Options) {
				o.Heartbeat = time.Minute // its own tries do not help in time
				if kind == "nothing else" {
					o.Heartbeat = 20 * time.Millisecond
				}
			})
			b := m.add(t, "n2", nil)
			answer(t, a, accept)
			answer(t, b, accept)
			done := make(chan error, 1)
			go func() { done <- a.AppendEntries("n2", "n2", appendOf("n1", 5, 1, 1), &raft.AppendEntriesResponse{}) }()
			waitParked(t, a, done)

			m.move("n2", "n2")
			switch kind {
			case "the peer answers a heartbeat":
				wait.Until(t, long, func() error {
					return a.AppendEntries("n2", "n2", heartbeatOf("n1", 5), &raft.AppendEntriesResponse{})
				})
			case "the peer calls":
				// Each call makes the append try once; the connection may need more.
				wait.Until(t, long, func() error {
					if err := b.AppendEntries("n1", "n1", heartbeatOf("n2", 5), &raft.AppendEntriesResponse{}); err != nil {
						return err
					}
					if len(done) == 0 {
						return errors.New("the append still waits")
					}
					return nil
				})
			}
			select {
			case err := <-done:
				if err != nil {
					t.Fatal(err)
				}
			case <-time.After(long):
				t.Fatal("the append still waits")
			}
		})
	}
}

func waitParked(t *testing.T, a *Transport, done <-chan error) {
	t.Helper()
	p, err := a.peer("n2")
	if err != nil {
		t.Fatal(err)
	}
	wait.Until(t, long, func() error {
		select {
		case err := <-done:
			t.Fatalf("the append did not wait: %v", err)
		default:
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if !p.unreachable {
			return errors.New("the append has not failed yet")
		}
		return nil
	})
}

func TestParkingEnds(t *testing.T) {
	cases := map[string]struct {
		change func(*Options)
		end    func(a *Transport, r *fakeRaft)
		want   error
	}{
		"time is up":   {change: func(o *Options) { o.ParkLimit = 100 * time.Millisecond }},
		"new term":     {end: func(_ *Transport, r *fakeRaft) { r.set(raft.Leader, 6) }, want: errNotLeading},
		"stepped down": {end: func(_ *Transport, r *fakeRaft) { r.set(raft.Follower, 5) }, want: errNotLeading},
		"shutdown":     {end: func(_ *Transport, r *fakeRaft) { r.set(raft.Shutdown, 5) }, want: errNotLeading},
		"closed":       {end: func(a *Transport, _ *fakeRaft) { _ = a.Close() }, want: errClosed},
		"disconnected": {end: func(a *Transport, _ *fakeRaft) { a.Disconnect("n2") }, want: errClosed},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			m := newMesh()
			a := m.add(t, "n1", func(o *Options) {
				o.Heartbeat = time.Minute
				if c.change != nil {
					c.change(o)
				}
			})
			r := &fakeRaft{state: raft.Leader, term: 5}
			a.Bind(r)
			done := make(chan error, 1)
			go func() { done <- a.AppendEntries("n2", "n2", appendOf("n1", 5, 1, 1), &raft.AppendEntriesResponse{}) }()
			if c.end != nil {
				waitParked(t, a, done)
				c.end(a, r)
			}
			select {
			case err := <-done:
				if err == nil || (c.want != nil && !errors.Is(err, c.want)) {
					t.Errorf("got %v, want %v", err, c.want)
				}
			case <-time.After(long):
				t.Fatal("the append still waits")
			}
		})
	}
}

// An append of a term in which this node does not lead is not sent.
func TestOldTermIsNotSent(t *testing.T) {
	m, net := newMesh(), NewNetwork()
	a := m.add(t, "n1", func(o *Options) { o.Fault = net })
	answer(t, m.add(t, "n2", nil), accept)
	a.Bind(&fakeRaft{state: raft.Leader, term: 6})
	if err := a.AppendEntries("n2", "n2", appendOf("n1", 5, 1, 1), &raft.AppendEntriesResponse{}); !errors.Is(err, errNotLeading) {
		t.Error(err)
	}
	if n := net.Sent("n1", "n2", KindAppend); n != 0 {
		t.Errorf("%d were sent", n)
	}
}
