// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate/fsm"
	"github.com/hastate/hastate/internal/logstore"
	"github.com/hastate/hastate/internal/wait"
)

// fakeFollower is a follower that tests change; it counts how often it was looked at.
type fakeFollower struct {
	mu     sync.Mutex
	leader raft.ServerID
	last   time.Time
	looks  int
}

func (f *fakeFollower) LeaderWithID() (raft.ServerAddress, raft.ServerID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looks++
	return raft.ServerAddress(f.leader), f.leader
}

func (f *fakeFollower) LastContact() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

func (f *fakeFollower) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// TestAwaitTimeout: a request waits for a node whose leader is silent, until it has
// given the leader up or has heard of it.
func TestAwaitTimeout(t *testing.T) {
	const heartbeat = time.Hour
	for name, end := range map[string]func(*fakeFollower, context.CancelFunc){
		"it gives its leader up": func(f *fakeFollower, _ context.CancelFunc) { f.set(func() { f.leader = "" }) },
		"its leader is there":    func(f *fakeFollower, _ context.CancelFunc) { f.set(func() { f.last = time.Now() }) },
		"the candidate is gone":  func(_ *fakeFollower, cancel context.CancelFunc) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakeFollower{leader: "n1", last: time.Now().Add(-heartbeat * 3 / 4)}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan struct{})
			go func() { defer close(done); awaitTimeout(ctx, f, heartbeat) }()
			wait.Until(t, 10*time.Second, func() error {
				select {
				case <-done:
					t.Fatal("it did not wait")
				default:
				}
				f.mu.Lock()
				defer f.mu.Unlock()
				if f.looks < 3 {
					return errors.New("it does not look")
				}
				return nil
			})
			end(f, cancel)
			<-done
		})
	}
	t.Run("at most half a timeout", func(*testing.T) {
		awaitTimeout(t.Context(), &fakeFollower{leader: "n1", last: time.Now().Add(-time.Minute)}, 20*time.Millisecond)
	})
	t.Run("not for a lively leader", func(t *testing.T) {
		f := &fakeFollower{leader: "n1", last: time.Now()}
		awaitTimeout(t.Context(), f, heartbeat)
		if f.looks != 0 {
			t.Error("it waited")
		}
	})
}

// TestIsBehind compares logs as Raft does.
func TestIsBehind(t *testing.T) {
	dir := t.TempDir()
	logs, err := logstore.Open(logstore.Options{Path: filepath.Join(dir, "raft.db")})
	if err != nil {
		t.Fatal(err)
	}
	machine, err := fsm.Open(fsm.Options{Path: filepath.Join(dir, "state.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(machine.Close(), logs.Close()); err != nil {
			t.Error(err)
		}
	}()
	n := &Node{logs: logs, machine: machine}
	if n.isBehind(0, 0) || !n.isBehind(1, 1) {
		t.Error("an empty log")
	}
	if err := logs.StoreLogs([]*raft.Log{{Index: 1, Term: 1}, {Index: 2, Term: 1}, {Index: 3, Term: 2}}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		term, index uint64
		want        bool
	}{{2, 4, true}, {3, 1, true}, {2, 3, false}, {2, 2, false}, {1, 9, false}} {
		if got := n.isBehind(c.term, c.index); got != c.want {
			t.Errorf("behind a log that ends with entry %d of term %d: %v", c.index, c.term, got)
		}
	}
}
