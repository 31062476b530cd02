// SPDX-License-Identifier: Apache-2.0

package propose

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func newBatcher(t *testing.T, r Applier, change ...func(*BatcherConfig)) *Batcher {
	t.Helper()
	cfg := BatcherConfig{
		Raft:   r,
		Leader: func() (string, string) { return "n9", "addr9" },
		Wall:   func() time.Time { return time.UnixMilli(4711) },
		Drain:  100 * time.Millisecond,
	}
	for _, c := range change {
		c(&cfg)
	}
	b, err := NewBatcher(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type outcome struct {
	res *pb.Result
	err error
}

func TestBatcher_GathersWhileInFlight(t *testing.T) {
	r := newFakeRaft(t)
	b := newBatcher(t, r)
	runUntilCleanup(t, b.Run)

	const n = 100
	got := make(chan outcome, n)
	propose := func(i int) {
		b.ProposeAsync(named(fmt.Sprint(i)), func(res *pb.Result, err error) { got <- outcome{res, err} })
	}
	propose(0)
	first := r.next()
	propose(1)
	second := r.next()
	for i := 2; i < n; i++ {
		propose(i)
	}
	if len(r.futures) != 0 {
		t.Fatalf("more than %d entries in flight", MaxInFlight)
	}
	first.ok()
	third := r.next()
	if len(third.entry.GetCommands()) != n-2 {
		t.Fatalf("third entry has %d commands, want all %d that waited", len(third.entry.GetCommands()), n-2)
	}
	if third.entry.GetWallUnixMs() != 4711 {
		t.Fatalf("wall stamp %d", third.entry.GetWallUnixMs())
	}
	second.ok()
	third.ok()
	seen := map[string]bool{}
	for range n {
		o := <-got
		if o.err != nil {
			t.Fatal(o.err)
		}
		seen[o.res.GetMessage()] = true
	}
	if len(seen) != n {
		t.Fatalf("%d different results, want %d: results were mixed up", len(seen), n)
	}
}

func TestBatcher_EntryBounds(t *testing.T) {
	r := newFakeRaft(t)
	r.answerAll(t)
	b := newBatcher(t, r)
	big := strings.Repeat("x", hastate.MaxEntryBytes/3)
	var wg sync.WaitGroup
	var mu sync.Mutex
	entries := map[uint64]int{}
	for range 10 {
		wg.Add(1)
		b.ProposeAsync(named(big), func(res *pb.Result, err error) {
			defer wg.Done()
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			entries[res.GetIndex()]++
		})
	}
	runUntilCleanup(t, b.Run)
	wg.Wait()
	for index, n := range entries {
		if n > 2 {
			t.Errorf("entry %d carries %d commands of a third of the limit each", index, n)
		}
	}
	_, err := b.Propose(t.Context(), named(strings.Repeat("x", hastate.MaxEntryBytes)))
	wantIs(t, err, hastate.ErrLimit)
	_, err = b.Propose(t.Context(), named("\xff"))
	wantIs(t, err, hastate.ErrInvalid)
}

func TestBatcher_QueueFull(t *testing.T) {
	r := newFakeRaft(t)
	b := newBatcher(t, r, func(c *BatcherConfig) { c.QueueCommands, c.QueueBytes = 3, 1<<20 })
	for range 3 {
		b.ProposeAsync(named("a"), func(*pb.Result, error) {})
	}
	_, err := b.Propose(t.Context(), named("b"))
	wantIs(t, err, hastate.ErrLimit)

	b = newBatcher(t, r, func(c *BatcherConfig) { c.QueueBytes = 100 })
	b.ProposeAsync(named(strings.Repeat("x", 80)), func(*pb.Result, error) {})
	_, err = b.Propose(t.Context(), named(strings.Repeat("x", 80)))
	wantIs(t, err, hastate.ErrLimit)
}

// TestBatcher_ErroredFutureIsRefused: whatever response a future carries, an
// error of it decides.
func TestBatcher_ErroredFutureIsRefused(t *testing.T) {
	cases := []struct {
		err  error
		want error
	}{
		{raft.ErrNotLeader, hastate.ErrNotLeader},
		{raft.ErrLeadershipTransferInProgress, hastate.ErrNotLeader},
		{raft.ErrEnqueueTimeout, hastate.ErrNotLeader},
		{raft.ErrLeadershipLost, hastate.ErrOutcomeUnknown},
		{raft.ErrAbortedByRestore, hastate.ErrOutcomeUnknown},
		{raft.ErrRaftShutdown, hastate.ErrOutcomeUnknown},
		{errors.New("write log: input/output error"), hastate.ErrOutcomeUnknown},
	}
	r := newFakeRaft(t)
	b := newBatcher(t, r)
	runUntilCleanup(t, b.Run)
	for _, c := range cases {
		got := make(chan outcome, 1)
		b.ProposeAsync(named("a"), func(res *pb.Result, err error) { got <- outcome{res, err} })
		f := r.next()
		f.resp = []*pb.Result{{Code: pb.ResultCode_RESULT_CODE_OK}}
		f.fail(c.err)
		o := <-got
		if o.res != nil {
			t.Errorf("%v: a result was handed out: %v", c.err, o.res)
		}
		wantIs(t, o.err, c.want)
	}
}

func TestBatcher_SkippedEntryIsUnknown(t *testing.T) {
	r := newFakeRaft(t)
	b := newBatcher(t, r)
	runUntilCleanup(t, b.Run)
	for name, resp := range map[string]any{
		"nil": nil, "no results": []*pb.Result(nil), "nil result": []*pb.Result{nil},
		"too many": []*pb.Result{{}, {}}, "other type": errors.New("x"),
	} {
		got := make(chan outcome, 1)
		b.ProposeAsync(named("a"), func(res *pb.Result, err error) { got <- outcome{res, err} })
		f := r.next()
		f.resp = resp
		close(f.done)
		o := <-got
		if !IsUnknown(o.err) {
			t.Errorf("%s: got %v, want an unknown outcome", name, o.err)
		}
	}
}

func TestBatcher_Deadlines(t *testing.T) {
	r := newFakeRaft(t)
	b := newBatcher(t, r, func(c *BatcherConfig) { c.Timeout = 50 * time.Millisecond })
	runUntilCleanup(t, b.Run)
	// In flight and not answered: unknown, for the one that waits and for the
	// one that does not.
	got := make(chan outcome, 1)
	b.ProposeAsync(named("a"), func(res *pb.Result, err error) { got <- outcome{res, err} })
	first := r.next()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	_, err := b.Propose(ctx, named("b"))
	wantIs(t, err, hastate.ErrOutcomeUnknown)
	wantIs(t, (<-got).err, hastate.ErrOutcomeUnknown)
	second := r.next()
	// Both slots are taken: what waits was certainly not applied.
	_, err = b.Propose(t.Context(), named("c"))
	wantIs(t, err, hastate.ErrNoLeader)
	wantIs(t, err, context.DeadlineExceeded)
	b.ProposeAsync(named("d"), func(res *pb.Result, err error) { got <- outcome{res, err} })
	wantIs(t, (<-got).err, hastate.ErrNoLeader)
	first.ok()
	second.ok()
	wait.Until(t, 5*time.Second, func() error {
		b.queue.mu.Lock()
		defer b.queue.mu.Unlock()
		if len(b.queue.items) != 0 || b.queue.bytes != 0 {
			return fmt.Errorf("%d items, %d bytes are left", len(b.queue.items), b.queue.bytes)
		}
		return nil
	})
	if len(r.futures) != 0 {
		t.Fatal("a command that was reported as not begun was proposed afterwards")
	}
}

func TestBatcher_RunEnds(t *testing.T) {
	r := newFakeRaft(t)
	b := newBatcher(t, r)
	stop := runUntilCleanup(t, b.Run)
	got := make(chan outcome, 3)
	done := func(res *pb.Result, err error) { got <- outcome{res, err} }
	b.ProposeAsync(named("a"), done)
	f1 := r.next()
	b.ProposeAsync(named("b"), done)
	f2 := r.next()
	b.ProposeAsync(named("c"), done)
	stop()
	unknowns, notLeaders := 0, 0
	for range 3 {
		switch o := <-got; {
		case IsUnknown(o.err):
			unknowns++
		case IsNotLeader(o.err):
			notLeaders++
		}
	}
	if unknowns != 2 || notLeaders != 1 {
		t.Fatalf("%d unknown, %d not applied; want 2 and 1", unknowns, notLeaders)
	}
	_, err := b.Propose(t.Context(), named("d"))
	wantIs(t, err, hastate.ErrNoLeader)
	// Raft answers late: nobody is told twice, nothing leaks.
	f1.ok()
	f2.ok()
}

func TestEncodeEntry_IsTheProtoForm(t *testing.T) {
	r := newFakeRaft(t)
	var items []*item
	for _, name := range []string{"", "a", strings.Repeat("b", 300)} {
		it, err := newItem(named(name), time.Now(), nil)
		if err != nil {
			t.Fatal(err)
		}
		items = append(items, it)
	}
	r.Apply(encodeEntry(-5, items), 0)
	e := r.next().entry
	if e.GetWallUnixMs() != -5 || len(e.GetCommands()) != 3 || len(e.GetCommands()[2].GetOpenClient().GetName()) != 300 {
		t.Fatalf("entry decodes to %v", e)
	}
}

func TestBatcher_TransferStuck(t *testing.T) {
	r := newFakeRaft(t)
	b := newBatcher(t, r)
	runUntilCleanup(t, b.Run)
	answer := func(err error) {
		got := make(chan outcome, 1)
		b.ProposeAsync(named("a"), func(res *pb.Result, err error) { got <- outcome{res, err} })
		if f := r.next(); err != nil {
			f.fail(err)
		} else {
			f.ok()
		}
		<-got
	}
	stuck := func(want bool) {
		t.Helper()
		wait.Until(t, 5*time.Second, func() error {
			if d := b.TransferStuck(); (d > 0) != want {
				return fmt.Errorf("stuck for %v, want %v", d, want)
			}
			return nil
		})
	}
	stuck(false)
	answer(raft.ErrLeadershipTransferInProgress)
	stuck(false) // it may be over by now, and nobody asks again
	answer(raft.ErrLeadershipTransferInProgress)
	stuck(true)
	answer(nil)
	stuck(false)
	answer(raft.ErrLeadershipTransferInProgress)
	answer(raft.ErrLeadershipTransferInProgress)
	answer(raft.ErrNotLeader)
	stuck(false)
}

func TestBatcher_TransfersFarApartAreNotStuck(t *testing.T) {
	b := newBatcher(t, newFakeRaft(t))
	begin := time.Now()
	for n, want := range []time.Duration{0, time.Second, 2 * time.Second} {
		b.noteTransfer(true, begin.Add(time.Duration(n)*time.Second))
		if got := b.TransferStuck(); got != want {
			t.Fatalf("after %d s: stuck for %v, want %v", n, got, want)
		}
	}
	// An hour later this node leads again, and hands over again.
	b.noteTransfer(true, begin.Add(time.Hour))
	if got := b.TransferStuck(); got != 0 {
		t.Fatalf("stuck for %v by two handovers an hour apart", got)
	}
}

func TestBatcher_RefusesWhatTheStateMachineDoesNotKnow(t *testing.T) {
	b, err := NewBatcher(BatcherConfig{Raft: refusingRaft{t}, Check: func(*pb.Command) error { return errors.New("unknown command") }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Propose(t.Context(), &pb.Command{}); !errors.Is(err, hastate.ErrInvalid) {
		t.Fatalf("got %v", err)
	}
}

// refusingRaft fails the test when anything reaches the log.
type refusingRaft struct{ tb testing.TB }

func (r refusingRaft) Apply([]byte, time.Duration) raft.ApplyFuture {
	r.tb.Error("the command reached the log")
	return nil
}
