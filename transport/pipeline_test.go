// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate/internal/wait"
)

func openPipeline(t *testing.T, a *Transport) raft.AppendPipeline {
	t.Helper()
	l, err := a.AppendEntriesPipeline("n2", "n2")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// fail sends until the pipeline refuses.
func fail(t *testing.T, l raft.AppendPipeline) error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		for i := range uint64(1000) {
			if _, err := l.AppendEntries(appendOf("n1", 5, 1000+i, 1), &raft.AppendEntriesResponse{}); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	select {
	case err := <-done:
		if err == nil {
			t.Fatal("the pipeline takes appends for ever")
		}
		return err
	case <-time.After(long):
		t.Fatal("the sender hangs")
		return nil
	}
}

// The first rejection is delivered, nothing after it is, and the sender, which
// Raft leaves alone with a full pipeline, gets an error (raft#612).
func TestPipelineEndsAtRejection(t *testing.T) {
	for name, reject := range map[string]func(*raft.AppendEntriesResponse){
		"log":         func(r *raft.AppendEntriesResponse) { r.Success = false },
		"higher term": func(r *raft.AppendEntriesResponse) { r.Success, r.Term = false, r.Term+1 },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMesh()
			a := m.add(t, "n1", func(o *Options) { o.PipelineDepth = 4 })
			b := m.add(t, "n2", func(o *Options) { o.CoalesceEntries = 1 })
			answer(t, b, func(rpc raft.RPC) {
				r := rpc.Command.(*raft.AppendEntriesRequest)
				resp := &raft.AppendEntriesResponse{RPCHeader: header("n2"), Term: r.Term, Success: true}
				if r.PrevLogEntry == 2 {
					reject(resp)
				}
				rpc.Respond(resp, nil)
			})
			l := openPipeline(t, a)
			for i := range uint64(3) {
				if _, err := l.AppendEntries(appendOf("n1", 5, i, 1), &raft.AppendEntriesResponse{}); err != nil {
					t.Fatal(err)
				}
			}
			// Like Raft: nobody reads the answers while more is sent.
			if err := fail(t, l); !errors.Is(err, errRejected) {
				t.Errorf("the reason is %v", err)
			}
			for i := range uint64(3) {
				f := <-l.Consumer()
				if f.Request().PrevLogEntry != i || f.Response().Success != (i < 2) || f.Error() != nil {
					t.Fatalf("answer %d: %+v, %v", i, f.Response(), f.Error())
				}
			}
			select {
			case f := <-l.Consumer():
				t.Fatalf("after the rejection came %+v", f.Response())
			default:
			}
		})
	}
}

// A failed call gives no future; it ends the pipeline.
func TestPipelineDeliversNoError(t *testing.T) {
	m := newMesh()
	a := m.add(t, "n1", nil)
	b := m.add(t, "n2", func(o *Options) { o.CoalesceEntries = 1 })
	answer(t, b, func(rpc raft.RPC) {
		if rpc.Command.(*raft.AppendEntriesRequest).PrevLogEntry == 1 {
			rpc.Respond(nil, errors.New("disk on fire"))
			return
		}
		accept(rpc)
	})
	l := openPipeline(t, a)
	var futures []raft.AppendFuture
	for i := range uint64(3) {
		f, err := l.AppendEntries(appendOf("n1", 5, i, 1), &raft.AppendEntriesResponse{})
		if err != nil {
			break // it has ended already
		}
		futures = append(futures, f)
	}
	if f := <-l.Consumer(); f.Request().PrevLogEntry != 0 || !f.Response().Success {
		t.Fatalf("%+v", f.Response())
	}
	if err := fail(t, l); !strings.Contains(err.Error(), "disk on fire") {
		t.Errorf("the reason is %v", err)
	}
	for i, f := range futures {
		if err := f.Error(); (err == nil) != (i == 0) {
			t.Errorf("future %d: %v", i, err)
		}
	}
	select {
	case f := <-l.Consumer():
		t.Fatalf("a failed append was delivered: %+v", f.Response())
	default:
	}
}

func TestPipelineIsBounded(t *testing.T) {
	m := newMesh()
	a := m.add(t, "n1", func(o *Options) { o.PipelineDepth = 3 })
	m.add(t, "n2", nil) // nobody answers
	l := openPipeline(t, a)
	sent := make(chan uint64, 100)
	done := make(chan error, 1)
	go func() {
		for i := uint64(0); ; i++ {
			if _, err := l.AppendEntries(appendOf("n1", 5, i, 1), &raft.AppendEntriesResponse{}); err != nil {
				done <- err
				return
			}
			sent <- i
		}
	}()
	wait.Until(t, long, func() error {
		if len(sent) != 3 {
			return fmt.Errorf("%d appends are unanswered", len(sent))
		}
		return nil
	})
	select {
	case err := <-done:
		t.Fatal(err)
	case <-time.After(20 * time.Millisecond): // it could send more only by a bug
	}
	if len(sent) != 3 {
		t.Fatalf("%d appends are unanswered", len(sent))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, raft.ErrPipelineShutdown) {
		t.Errorf("the blocked sender got %v", err)
	}
}

// Whatever ends a pipeline frees a sender that waits in it.
func TestPipelineFreesTheSender(t *testing.T) {
	cases := map[string]struct {
		change func(*Options)
		end    func(a *Transport, r *fakeRaft, stopPeer func())
		want   error
	}{
		"no answer":      {change: func(o *Options) { o.AppendTimeout = 50 * time.Millisecond }, want: errNoProgress},
		"new term":       {end: func(_ *Transport, r *fakeRaft, _ func()) { r.set(raft.Leader, 6) }, want: errNotLeading},
		"stepped down":   {end: func(_ *Transport, r *fakeRaft, _ func()) { r.set(raft.Follower, 5) }, want: errNotLeading},
		"shutdown":       {end: func(_ *Transport, r *fakeRaft, _ func()) { r.set(raft.Shutdown, 5) }, want: errNotLeading},
		"closed":         {end: func(a *Transport, _ *fakeRaft, _ func()) { _ = a.Close() }, want: errClosed},
		"disconnected":   {end: func(a *Transport, _ *fakeRaft, _ func()) { a.Disconnect("n2") }},
		"peer went away": {end: func(_ *Transport, _ *fakeRaft, stop func()) { stop() }},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			m := newMesh()
			a := m.add(t, "n1", func(o *Options) {
				o.PipelineDepth = 2
				if c.change != nil {
					c.change(o)
				}
			})
			b := m.add(t, "n2", nil)
			stopPeer := m.listen(t, "elsewhere", b)
			m.move("n2", "elsewhere")
			r := &fakeRaft{state: raft.Leader, term: 5}
			a.Bind(r)
			l := openPipeline(t, a)
			for i := range uint64(2) {
				if _, err := l.AppendEntries(appendOf("n1", 5, i, 1), &raft.AppendEntriesResponse{}); err != nil {
					t.Fatal(err)
				}
			}
			if c.end != nil {
				go c.end(a, r, stopPeer)
			}
			if err := fail(t, l); c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestPipelineOff(t *testing.T) {
	a := newMesh().add(t, "n1", func(o *Options) { o.PipelineDepth = 1 })
	if _, err := a.AppendEntriesPipeline("n2", "n2"); !errors.Is(err, raft.ErrPipelineReplicationNotSupported) {
		t.Fatal(err)
	}
}

// An append that is too large for one message has one answer all the same.
func TestLargeAppendsAreSplit(t *testing.T) {
	for _, kind := range []string{KindAppend, KindPipeline} {
		t.Run(kind, func(t *testing.T) {
			m, net := newMesh(), NewNetwork()
			a := m.add(t, "n1", func(o *Options) { o.Fault, o.SplitBytes = net, 2*(48+4) })
			b := m.add(t, "n2", nil)
			f := &follower{}
			answer(t, b, func(rpc raft.RPC) { rpc.Respond(f.append(rpc.Command.(*raft.AppendEntriesRequest)), nil) })
			whole := appendOf("n1", 5, 0, 7)
			whole.LeaderCommitIndex = 6
			var resp raft.AppendEntriesResponse
			if kind == KindAppend {
				if err := a.AppendEntries("n2", "n2", whole, &resp); err != nil {
					t.Fatal(err)
				}
			} else {
				l := openPipeline(t, a)
				if _, err := l.AppendEntries(whole, &resp); err != nil {
					t.Fatal(err)
				}
				if got := <-l.Consumer(); got.Request() != whole || got.Response() != &resp {
					t.Fatalf("got the future of %+v", got.Request())
				}
				if len(l.Consumer()) != 0 {
					t.Error("an append has more than one answer")
				}
			}
			if !resp.Success || len(f.log) != 7 || f.commit != 6 {
				t.Errorf("%+v, follower %+v", resp, f)
			}
			if sent := net.Sent("n1", "n2", kind); sent != 4 {
				t.Errorf("%d messages, want 4", sent)
			}
		})
	}
}

func TestSplit(t *testing.T) {
	const entry = 48 + 4
	whole := appendOf("n1", 5, 10, 5)
	whole.LeaderCommitIndex = 13
	for _, size := range []int{1, entry, 2 * entry, 3*entry + 1, 5 * entry} {
		prev, n := whole.PrevLogEntry, 0
		parts := split(whole, size)
		for i, p := range parts {
			if p.PrevLogEntry != prev || p.PrevLogTerm != 5 || len(p.Entries) == 0 {
				t.Fatalf("size %d: part %d is %+v", size, i, p)
			}
			prev += uint64(len(p.Entries))
			n += len(p.Entries)
			last := i == len(parts)-1
			if (!last && p.LeaderCommitIndex > prev) || (last && p.LeaderCommitIndex != 13) {
				t.Errorf("size %d: part %d that ends at %d says that %d is committed", size, i, prev, p.LeaderCommitIndex)
			}
			if logBytes(p.Entries...) > size && len(p.Entries) > 1 {
				t.Errorf("size %d: part %d has %d bytes", size, i, logBytes(p.Entries...))
			}
		}
		if n != 5 {
			t.Errorf("size %d: %d entries", size, n)
		}
	}
	if len(whole.Entries) != 5 || whole.PrevLogEntry != 10 {
		t.Error("the append was changed")
	}
}
