// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hastate/hastate/internal/wait"
)

// soon is a context for what must not get through.
func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func TestNetworkDirections(t *testing.T) {
	n := NewNetwork()
	blocked := func(f func(context.Context, raft.ServerID, raft.ServerID, string) error, from, to raft.ServerID) bool {
		return status.Code(f(soon(t), from, to, "x")) == codes.DeadlineExceeded
	}
	after := func(ctx context.Context, from, to raft.ServerID, kind string) error {
		return n.After(ctx, from, to, kind, nil)
	}
	check := func(what string, before12, after12, before21, after21 bool) {
		t.Helper()
		if got := [...]bool{blocked(n.Before, "n1", "n2"), blocked(after, "n1", "n2"), blocked(n.Before, "n2", "n1"), blocked(after, "n2", "n1")}; got != [...]bool{before12, after12, before21, after21} {
			t.Errorf("%s: blocked %v", what, got)
		}
	}
	check("in order", false, false, false, false)
	n.Cut("n1", "n2") // requests of n1, and responses to n2
	check("cut one way", true, false, false, true)
	n.HealLink("n2", "n1")
	check("healed", false, false, false, false)
	n.CutBoth("n1", "n2")
	check("cut", true, true, true, true)
	n.Heal()
	n.Isolate("n2")
	check("isolated", true, true, true, true)
	if blocked(n.Before, "n1", "n3") || blocked(n.Before, "n2", "n2") {
		t.Error("too much is isolated")
	}
	n.Rejoin("n2")
	check("rejoined", false, false, false, false)
	n.Refuse("n1", "n2")
	if err := n.Before(soon(t), "n1", "n2", "x"); status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
	n.Heal()
	// An error stays one.
	bad := errors.New("bad")
	if err := n.After(soon(t), "n1", "n2", "x", bad); !errors.Is(err, bad) {
		t.Error(err)
	}
}

// What waits at a cut link gets through when it is healed.
func TestNetworkHealReleases(t *testing.T) {
	n := NewNetwork()
	n.Cut("n1", "n2")
	ctx, cancel := context.WithTimeout(context.Background(), long)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- n.Before(ctx, "n1", "n2", "x") }()
	n.Delay("n2", "n1", time.Hour) // another link: it looks again, and waits on
	n.Heal()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n.Sent("n1", "n2", "x") != 1 || n.Sent("n2", "n1", "x") != 0 {
		t.Error("messages are not counted")
	}
}

func TestNetworkDelay(t *testing.T) {
	n := NewNetwork()
	n.Delay("n1", "n2", 30*time.Millisecond)
	began := time.Now()
	if err := n.Before(context.Background(), "n1", "n2", "x"); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 30*time.Millisecond {
		t.Errorf("it took %v", took)
	}
	if err := n.After(soon(t), "n1", "n2", "x", nil); err != nil {
		t.Errorf("the other direction: %v", err)
	}
	n.Delay("n1", "n2", time.Hour)
	if err := n.Before(soon(t), "n1", "n2", "x"); status.Code(err) != codes.DeadlineExceeded {
		t.Error(err)
	}
}

// A held response is delivered on release, through a link that is cut by then.
func TestNetworkHold(t *testing.T) {
	n := NewNetwork()
	h := n.HoldResponses("n1", "n2", "x", "y")
	ctx, cancel := context.WithTimeout(context.Background(), long)
	defer cancel()
	if err := n.After(ctx, "n1", "n2", "z", nil); err != nil || h.Count() != 0 {
		t.Fatalf("%v, %d held", err, h.Count())
	}
	if err := n.After(ctx, "n2", "n1", "x", nil); err != nil || h.Count() != 0 {
		t.Fatalf("%v, %d held", err, h.Count())
	}
	done := make(chan error, 2)
	go func() { done <- n.After(ctx, "n1", "n2", "x", nil) }()
	go func() { done <- n.After(ctx, "n1", "n2", "y", nil) }()
	wait.Until(t, long, func() error {
		if h.Count() != 2 {
			return errors.New("the responses are not held yet")
		}
		return nil
	})
	if err := n.After(soon(t), "n1", "n2", "x", nil); status.Code(err) != codes.DeadlineExceeded {
		t.Error(err)
	}
	n.CutBoth("n1", "n2")
	h.Release()
	h.Release()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if err := n.After(soon(t), "n1", "n2", "x", nil); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("the link is cut, but %v", err)
	}
}

// Streams are disturbed message by message.
func TestNetworkAndStreams(t *testing.T) {
	m, n := newMesh(), NewNetwork()
	a := m.add(t, "n1", func(o *Options) { o.Fault = n })
	b := m.add(t, "n2", nil)
	answer(t, b, accept)
	l := openPipeline(t, a)
	send := func(prev uint64) raft.AppendFuture {
		t.Helper()
		f, err := l.AppendEntries(appendOf("n1", 5, prev, 1), &raft.AppendEntriesResponse{})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	if err := send(0).Error(); err != nil {
		t.Fatal(err)
	}
	<-l.Consumer()
	h := n.HoldResponses("n1", "n2", KindPipeline)
	f := send(1)
	wait.Until(t, long, func() error {
		if h.Count() != 1 {
			return errors.New("the response is not held yet")
		}
		return nil
	})
	if len(l.Consumer()) != 0 {
		t.Error("a response that is held was delivered")
	}
	h.Release()
	if err := f.Error(); err != nil {
		t.Fatal(err)
	}
	<-l.Consumer()
	n.Refuse("n2", "n1") // responses are lost: the pipeline fails
	if _, err := l.AppendEntries(appendOf("n1", 5, 2, 1), &raft.AppendEntriesResponse{}); err != nil {
		t.Fatal(err)
	}
	if err := fail(t, l); status.Code(errors.Unwrap(errors.Unwrap(err))) != codes.Unavailable {
		t.Error(err)
	}
	if n.Sent("n1", "n2", KindPipeline) < 3 {
		t.Error("messages of the stream are not counted")
	}
}
