// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"testing"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"

	"github.com/hastate/hastate/internal/wait"
)

// follower is a dumb model of what a Raft node does with an append.
type follower struct {
	term   uint64
	log    []uint64 // terms; index 1 is log[0]
	commit uint64
	broken uint64 // an append that stores this index fails
	calls  int
}

func (f *follower) append(r *raft.AppendEntriesRequest) *raft.AppendEntriesResponse {
	f.calls++
	resp := &raft.AppendEntriesResponse{Term: f.term, LastLog: uint64(len(f.log))}
	if r.Term < f.term {
		return resp
	}
	f.term, resp.Term = r.Term, r.Term
	if p := r.PrevLogEntry; p > 0 && (p > uint64(len(f.log)) || f.log[p-1] != r.PrevLogTerm) {
		resp.NoRetryBackoff = true
		return resp
	}
	// Entries are stored in one transaction, or not at all.
	log := append([]uint64(nil), f.log...)
	for _, l := range r.Entries {
		if l.Index <= uint64(len(log)) {
			if log[l.Index-1] == l.Term {
				continue
			}
			log = log[:l.Index-1]
		}
		if l.Index == f.broken {
			return resp
		}
		log = append(log, l.Term)
	}
	f.log = log
	if r.LeaderCommitIndex > f.commit {
		f.commit = min(r.LeaderCommitIndex, uint64(len(f.log)))
	}
	resp.Success = true
	return resp
}

func (f *follower) clone() *follower {
	c := *f
	c.log = append([]uint64(nil), f.log...)
	return &c
}

// What comes out of the coalescer is what the same appends do one by one.
func TestCoalescingChangesNothing(t *testing.T) {
	tr := newMesh().add(t, "n1", func(o *Options) { o.CoalesceEntries, o.CoalesceBytes = 12, 600 })
	rapid.Check(t, func(rt *rapid.T) {
		start := &follower{term: rapid.Uint64Range(1, 3).Draw(rt, "term"), broken: rapid.Uint64Range(0, 12).Draw(rt, "broken")}
		for range rapid.IntRange(0, 6).Draw(rt, "log") {
			start.log = append(start.log, rapid.Uint64Range(1, 2).Draw(rt, "entry"))
		}
		requests := drawAppends(rt)

		one := start.clone()
		var want []*raft.AppendEntriesResponse
		for _, r := range requests {
			want = append(want, one.append(r))
		}

		merged := start.clone()
		got, err := coalesce(tr, merged, requests)
		if err != nil {
			rt.Fatal(err)
		}
		if len(got) != len(want) {
			rt.Fatalf("%d answers to %d appends", len(got), len(want))
		}
		for i := range got {
			// Where an answer is success, its LastLog is not read.
			if got[i].Success != want[i].Success || got[i].Term != want[i].Term ||
				(!got[i].Success && (got[i].LastLog != want[i].LastLog || got[i].NoRetryBackoff != want[i].NoRetryBackoff)) {
				rt.Fatalf("answer %d is %+v, want %+v", i, got[i], want[i])
			}
		}
		merged.calls, one.calls = 0, 0
		if !reflect.DeepEqual(merged, one) {
			rt.Fatalf("the follower is %+v, want %+v", merged, one)
		}
	})
}

// drawAppends draws the appends of a pipeline: mostly each begins where the one
// before ended, sometimes not.
func drawAppends(rt *rapid.T) []*raft.AppendEntriesRequest {
	var out []*raft.AppendEntriesRequest
	term := rapid.Uint64Range(1, 4).Draw(rt, "leader term")
	prev, prevTerm := rapid.Uint64Range(0, 4).Draw(rt, "prev"), uint64(1)
	for range rapid.IntRange(1, 8).Draw(rt, "appends") {
		switch rapid.IntRange(0, 9).Draw(rt, "jump") {
		case 0:
			prev = rapid.Uint64Range(0, 8).Draw(rt, "prev")
		case 1:
			term++
		case 2:
			prevTerm = rapid.Uint64Range(1, 2).Draw(rt, "prev term")
		}
		r := appendOf("n2", term, prev, rapid.IntRange(0, 4).Draw(rt, "entries"))
		r.PrevLogTerm = prevTerm
		if prev == 0 {
			r.PrevLogTerm = 0
		}
		for _, l := range r.Entries {
			l.Term = rapid.Uint64Range(1, 2).Draw(rt, "entry term")
		}
		// A leader has committed no more than it has sent, or will send.
		r.LeaderCommitIndex = rapid.Uint64Range(0, prev+uint64(len(r.Entries))).Draw(rt, "commit")
		out = append(out, r)
		if n := len(r.Entries); n > 0 {
			prev, prevTerm = r.Entries[n-1].Index, r.Entries[n-1].Term
		}
	}
	return out
}

// coalesce runs requests that have all arrived through a coalescer.
func coalesce(t *Transport, f *follower, requests []*raft.AppendEntriesRequest) (got []*raft.AppendEntriesResponse, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case rpc := <-t.Consumer():
				rpc.Respond(f.append(rpc.Command.(*raft.AppendEntriesRequest)), nil)
			case <-ctx.Done():
				return
			}
		}
	}()
	in := make(chan arrival, len(requests)+1)
	for _, r := range requests {
		in <- arrival{request: r}
	}
	in <- arrival{err: io.EOF}
	c := &coalescer{t: t, in: in, answer: func(r *raft.AppendEntriesResponse) error {
		got = append(got, r)
		return nil
	}}
	err = c.run(ctx)
	cancel()
	<-done
	return got, err
}

func TestCoalescingMergesContiguous(t *testing.T) {
	tr := newMesh().add(t, "n1", nil)
	f := &follower{}
	var requests []*raft.AppendEntriesRequest
	for i := range 10 {
		r := appendOf("n2", 1, uint64(3*i), 3)
		requests = append(requests, r)
	}
	got, err := coalesce(tr, f, requests)
	if err != nil || len(got) != 10 || len(f.log) != 30 {
		t.Fatalf("%d answers, %d entries, %v", len(got), len(f.log), err)
	}
	if f.calls != 1 {
		t.Errorf("Raft was called %d times for what fits one call", f.calls)
	}
	for i, r := range requests {
		if len(r.Entries) != 3 || r.PrevLogEntry != uint64(3*i) {
			t.Errorf("request %d was changed: %+v", i, r)
		}
	}
}

func TestCoalescingIsBounded(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"entries": func(o *Options) { o.CoalesceEntries = 6 },
		"bytes":   func(o *Options) { o.CoalesceBytes = 6 * (48 + 4) },
		"off":     func(o *Options) { o.CoalesceEntries = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			tr := newMesh().add(t, "n1", change)
			f := &follower{}
			var requests []*raft.AppendEntriesRequest
			for i := range 6 {
				requests = append(requests, appendOf("n2", 1, uint64(3*i), 3))
			}
			want := map[string]int{"entries": 3, "bytes": 3, "off": 6}[name]
			if _, err := coalesce(tr, f, requests); err != nil || f.calls != want {
				t.Fatalf("%d calls, want %d; %v", f.calls, want, err)
			}
		})
	}
}

// While the Raft node is busy with one append, those that arrive become one.
func TestCoalescingOverThePipeline(t *testing.T) {
	m := newMesh()
	a := m.add(t, "n1", nil)
	b := m.add(t, "n2", nil)
	busy, calls := make(chan struct{}), make(chan int, 100)
	answer(t, b, func(rpc raft.RPC) {
		r := rpc.Command.(*raft.AppendEntriesRequest)
		if r.PrevLogEntry == 0 {
			<-busy
		}
		calls <- len(r.Entries)
		accept(rpc)
	})
	l, err := a.AppendEntriesPipeline("n2", "n2")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	const n = 6
	for i := range n {
		if _, err := l.AppendEntries(appendOf("n1", 1, uint64(i), 1), &raft.AppendEntriesResponse{}); err != nil {
			t.Fatal(err)
		}
	}
	// All have left; give the receiver the time to take them in, if it will.
	p := l.(*pipeline)
	wait.Until(t, long, func() error {
		if len(p.slots) != n {
			return fmt.Errorf("%d in flight", len(p.slots))
		}
		return nil
	})
	close(busy)
	entries := 0
	for i := range n {
		f := <-l.Consumer()
		if want := uint64(i); f.Request().PrevLogEntry != want || !f.Response().Success || f.Error() != nil {
			t.Fatalf("answer %d is to the append after %d: %+v, %v", i, f.Request().PrevLogEntry, f.Response(), f.Error())
		}
	}
	for entries < n {
		entries += <-calls
	}
	if entries != n || len(calls) != 0 {
		t.Errorf("Raft got %d entries, want %d", entries, n)
	}
}

// An error of the Raft node ends the stream at the append that it concerns.
func TestCoalescingEndsOnError(t *testing.T) {
	tr := newMesh().add(t, "n1", nil)
	answer(t, tr, func(rpc raft.RPC) {
		if r := rpc.Command.(*raft.AppendEntriesRequest); r.PrevLogEntry+uint64(len(r.Entries)) > 2 {
			rpc.Respond(nil, errors.New("disk on fire"))
			return
		}
		accept(rpc)
	})
	in := make(chan arrival, 4)
	for i := range 4 {
		in <- arrival{request: appendOf("n2", 1, uint64(i), 1)}
	}
	answered := 0
	c := &coalescer{t: tr, in: in, answer: func(r *raft.AppendEntriesResponse) error {
		answered++
		return nil
	}}
	if err := c.run(context.Background()); err == nil || answered != 2 {
		t.Fatalf("%d answers, %v", answered, err)
	}
}
