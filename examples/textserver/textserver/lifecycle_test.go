// SPDX-License-Identifier: Apache-2.0

package textserver

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/instance"
	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// long is an answer that no test waits for.
const long = 1000

func slow() Config { return Config{TokenDelay: 20 * time.Millisecond} }

func TestLease_StopsByItself(t *testing.T) {
	c := &clock.Fake{}
	cfg := slow()
	cfg.Clock = c
	s := start(t, cfg)
	tokens := want(t, long)
	s.promote(5, time.Hour)
	st := s.stream(long, HeaderSession, "s")
	st.tokens(tokens, 0, 5, 5)
	c.Advance(50 * time.Minute)
	s.promote(5, time.Hour) // renewed
	c.Advance(50 * time.Minute)
	st.tokens(tokens, 5, 5, 5)
	c.Advance(10 * time.Minute)
	st.cut(tokens, 10, "not_primary")
	wantRefused(t, s.post("/v1/chat/completions", body(3, true)), 503, "not_primary")
	if st, _ := s.role.status(); st.GetRole() != pb.Role_ROLE_STANDBY || st.GetEpoch() != 5 {
		t.Fatal(st)
	}
}

func TestDemote(t *testing.T) {
	ctx := context.Background()
	tokens := want(t, long)
	t.Run("abort", func(t *testing.T) {
		s := start(t, slow())
		s.promote(5, 0)
		st := s.stream(long, HeaderSession, "s")
		st.tokens(tokens, 0, 3, 5)
		if _, err := s.node.Demote(ctx, &pb.DemoteRequest{Epoch: 5, Mode: pb.DemoteMode_DEMOTE_MODE_ABORT}); err != nil {
			t.Fatal(err)
		}
		if st, _ := s.role.status(); st.GetInFlight() != 0 || st.GetRole() != pb.Role_ROLE_STANDBY {
			t.Fatalf("after Demote: %v", st)
		}
		st.cut(tokens, 3, "not_primary")
		_, err := s.node.Promote(ctx, &pb.PromoteRequest{Epoch: 5})
		wantErr(t, hastate.FromStatus(err), hastate.ErrFenced)
		_, err = s.node.Demote(ctx, &pb.DemoteRequest{Epoch: 4})
		wantErr(t, hastate.FromStatus(err), hastate.ErrFenced)
		s.promote(6, 0)
	})
	t.Run("drain", func(t *testing.T) {
		held := newHeldStore(3)
		s := start(t, Config{Store: held})
		s.promote(5, 0)
		const n = 600
		st := s.stream(n, HeaderSession, "s")
		st.tokens(tokens, 0, 3, 5)
		done := make(chan error, 1)
		go func() {
			_, err := s.node.Demote(ctx, &pb.DemoteRequest{Epoch: 5, Mode: pb.DemoteMode_DEMOTE_MODE_DRAIN, DeadlineMs: 60_000})
			done <- err
		}()
		wait.Until(t, patience, func() error {
			if st, _ := s.role.status(); st.GetState() != pb.InstanceState_INSTANCE_STATE_DRAINING {
				return errors.New(st.String())
			}
			return nil
		})
		wantRefused(t, s.post("/v1/chat/completions", body(3, true)), 503, "draining")
		close(held.released)
		st.tokens(tokens, 3, n-3, 5)
		st.finish(n)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
	t.Run("drain past its deadline", func(t *testing.T) {
		s := start(t, slow())
		s.promote(5, 0)
		st := s.stream(long, HeaderSession, "s")
		st.tokens(tokens, 0, 3, 5)
		if _, err := s.node.Demote(ctx, &pb.DemoteRequest{Epoch: 5, Mode: pb.DemoteMode_DEMOTE_MODE_DRAIN, DeadlineMs: 20}); err != nil {
			t.Fatal(err)
		}
		st.cut(tokens, 3, "not_primary")
	})
	t.Run("a client that does not read", func(t *testing.T) {
		s := start(t, Config{})
		s.promote(5, 0)
		for i := range 2 { // fills the buffers of their connections, or ends
			s.stream(MaxTokens, HeaderSession, fmt.Sprint("s", i))
		}
		if _, err := s.node.Demote(ctx, &pb.DemoteRequest{Epoch: 5}); err != nil {
			t.Fatal(err)
		}
	})
}

func TestDrain(t *testing.T) {
	tokens := want(t, long)
	held := newHeldStore(3)
	s := start(t, Config{Store: held})
	s.promote(5, 0)
	const n = 600
	st := s.stream(n, HeaderSession, "s")
	st.tokens(tokens, 0, 3, 5)

	// A caller that goes away gives the server back its work.
	ctx, cancel := context.WithCancel(context.Background())
	drain, err := s.node.Drain(ctx, &pb.DrainRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if msg, err := drain.Recv(); err != nil || msg.GetInFlight() != 1 || msg.GetDone() {
		t.Fatal(msg, err)
	}
	wantRefused(t, s.post("/v1/chat/completions", body(3, true)), 503, "draining")
	cancel()
	wait.Until(t, patience, func() error {
		if st, _ := s.role.status(); st.GetState() != pb.InstanceState_INSTANCE_STATE_READY {
			return errors.New(st.String())
		}
		return nil
	})
	drain, err = s.node.Drain(context.Background(), &pb.DrainRequest{DeadlineMs: 60_000})
	if err != nil {
		t.Fatal(err)
	}
	if msg, err := drain.Recv(); err != nil || msg.GetInFlight() != 1 {
		t.Fatal(msg, err)
	}
	close(held.released)
	st.tokens(tokens, 3, n-3, 5)
	st.finish(n)
	for {
		msg, err := drain.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if msg.GetDone() {
			break
		}
	}
	wantRefused(t, s.post("/v1/chat/completions", body(3, true)), 503, "draining")
}

func TestRun_Drains(t *testing.T) {
	tokens := want(t, long)
	t.Run("to the end", func(t *testing.T) {
		cfg := slow()
		cfg.Drain = time.Minute
		s := start(t, cfg)
		s.promote(5, 0)
		st := s.stream(40, HeaderSession, "s")
		st.tokens(tokens, 0, 3, 5)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			s.stop()
		}()
		st.tokens(tokens, 3, 37, 5)
		st.finish(40)
		<-ended
	})
	t.Run("and cuts", func(t *testing.T) {
		s := start(t, slow())
		s.promote(5, 0)
		st := s.stream(long, HeaderSession, "s")
		st.tokens(tokens, 0, 3, 5)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			s.stop()
		}()
		st.cut(tokens, 3, "draining")
		<-ended
	})
	t.Run("while hung", func(t *testing.T) {
		s := start(t, slow())
		s.promote(5, 0)
		st := s.stream(long, HeaderSession, "s")
		st.tokens(tokens, 0, 3, 5)
		s.fault.hang()
		s.stop()
	})
}

// TestInstance drives the server through the adapter that a node uses.
func TestInstance(t *testing.T) {
	s := start(t, slow())
	tokens := want(t, long)
	in, err := instance.Open(instance.Config{Kind: "grpc", Target: s.GRPCAddr(), Interval: 20 * time.Millisecond, Timeout: time.Second, FailAfter: 10})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	var (
		mu  sync.Mutex // guards now
		now instance.Status
	)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = in.Watch(ctx, func(st instance.Status) {
			mu.Lock()
			defer mu.Unlock()
			now = st
		})
	}()
	defer func() {
		cancel()
		<-done
	}()
	until := func(what string, ok func(instance.Status) bool) {
		t.Helper()
		wait.Until(t, patience, func() error {
			mu.Lock()
			defer mu.Unlock()
			if !ok(now) {
				return fmt.Errorf("want %s, have %+v", what, now)
			}
			return nil
		})
	}
	within := func(d time.Duration) context.Context {
		ctx, cancel := context.WithTimeout(context.Background(), d)
		t.Cleanup(cancel)
		return ctx
	}
	until("ready", func(st instance.Status) bool {
		return st.State == pb.InstanceState_INSTANCE_STATE_READY && st.Model.GetDigest() == s.ref().GetDigest()
	})
	if err := in.Load(within(patience), s.ref()); err != nil {
		t.Fatal(err)
	}
	other := &pb.ModelRef{Digest: "sha256:00"}
	wantErr(t, in.Load(within(patience), other), hastate.ErrPrecondition)
	_, err = in.Promote(within(patience), instance.Promotion{Epoch: 5, Model: other})
	wantErr(t, err, hastate.ErrPrecondition)
	served, err := in.Promote(within(patience), instance.Promotion{Epoch: 5, Lease: time.Minute, Model: s.ref()})
	if err != nil || served.GetDigest() != s.ref().GetDigest() {
		t.Fatal(served, err)
	}
	_, err = in.Promote(within(patience), instance.Promotion{Epoch: 4})
	wantErr(t, err, hastate.ErrFenced)
	st := s.stream(long, HeaderSession, "s")
	st.tokens(tokens, 0, 3, 5)
	until("work", func(st instance.Status) bool { return st.InFlight == 1 && st.Steps > 3 && st.Epoch == 5 })

	// A hung engine: its health page says 200, nothing else answers.
	if resp := s.post("/fault/hang", nil); resp.StatusCode != http.StatusNoContent {
		t.Fatal(resp.Status)
	}
	until("down", func(st instance.Status) bool {
		return st.State == pb.InstanceState_INSTANCE_STATE_DOWN && !st.Gone && strings.Contains(st.Reason, "silent")
	})
	if resp, err := s.web.Get("http://" + s.HTTPAddr() + "/health"); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp, err)
	} else {
		_ = resp.Body.Close()
	}
	steps := s.steps.Load()
	wantErr(t, in.Demote(within(patience), instance.Demotion{Epoch: 5, Deadline: 50 * time.Millisecond}), hastate.ErrOutcomeUnknown)
	_, err = in.Promote(within(500*time.Millisecond), instance.Promotion{Epoch: 6})
	wantErr(t, err, hastate.ErrOutcomeUnknown)
	if got := s.steps.Load(); got > steps+1 {
		t.Fatalf("a hung engine made %d steps", got-steps)
	}
	if resp := s.post("/fault/clear", nil); resp.StatusCode != http.StatusNoContent {
		t.Fatal(resp.Status)
	}
	until("ready", func(st instance.Status) bool { return st.State == pb.InstanceState_INSTANCE_STATE_READY })
	if err := in.Demote(within(patience), instance.Demotion{Epoch: 7}); err != nil {
		t.Fatal(err)
	}
	st.cut(tokens, 3, "not_primary")
	s.stop()
	until("gone", func(st instance.Status) bool { return st.Gone })
}

func TestInstance_BadOrders(t *testing.T) {
	s := start(t, Config{})
	_, err := s.node.Promote(context.Background(), &pb.PromoteRequest{})
	if status.Code(err) != codes.InvalidArgument {
		t.Fatal(err)
	}
	_, err = s.node.Promote(context.Background(), &pb.PromoteRequest{Epoch: 1, Group: "other"})
	if status.Code(err) != codes.InvalidArgument {
		t.Fatal(err)
	}
	_, err = s.node.Demote(context.Background(), &pb.DemoteRequest{})
	if status.Code(err) != codes.InvalidArgument {
		t.Fatal(err)
	}
}

func TestParse(t *testing.T) {
	cfg, err := Parse([]string{"--http", "127.0.0.1:1", "--grpc=127.0.0.1:2", "--hastate", "127.0.0.1:3, 127.0.0.1:4", "--group", "g", "--seed", "9", "--token-delay", "1ms", "--name", "n", "--allow-faults"}, io.Discard)
	if err != nil || cfg.HTTP != "127.0.0.1:1" || cfg.GRPC != "127.0.0.1:2" || len(cfg.Hastate) != 2 || cfg.Hastate[1] != "127.0.0.1:4" ||
		cfg.Group != "g" || cfg.Seed != 9 || cfg.TokenDelay != time.Millisecond || cfg.Name != "n" || !cfg.AllowFaults || cfg.Drain != DefaultDrain {
		t.Fatalf("%+v %v", cfg, err)
	}
	var help bytes.Buffer
	if _, err := Parse([]string{"-h"}, &help); !errors.Is(err, flag.ErrHelp) || !strings.Contains(help.String(), "token-delay") {
		t.Fatal(err, help.String())
	}
	for _, args := range [][]string{
		{"serve"}, {"--http", "x"}, {"--token-delay", "-1s"}, {"--hastate-cert", "x"}, {"--hastate-ca", "/no/such/file"},
	} {
		if _, err := Parse(args, io.Discard); !errors.Is(err, hastate.ErrInvalid) {
			t.Errorf("%v: %v", args, err)
		}
	}
	if _, err := Open(Config{HTTP: "127.0.0.1:0", GRPC: "127.0.0.1:0", Hastate: []string{"10.0.0.1:1"}}); !errors.Is(err, hastate.ErrInvalid) {
		t.Error(err)
	}
	if _, err := Open(Config{HTTP: "127.0.0.1:0", GRPC: "127.0.0.1:0", Store: NewMemoryStore(), Hastate: []string{"127.0.0.1:1"}}); !errors.Is(err, hastate.ErrInvalid) {
		t.Error(err)
	}
}

// TestServer_LatePromote: an order that was under way for longer than its lease, because
// this process was stopped or the network held it, begins no lease. Its sender may be
// gone, and another instance the primary.
func TestServer_LatePromote(t *testing.T) {
	c := &clock.Fake{}
	c.Advance(time.Hour)
	s := start(t, Config{Clock: c})
	info, err := s.node.GetInfo(t.Context(), &pb.GetInfoRequest{})
	if err != nil || info.GetClockUs() == 0 {
		t.Fatal(info, err)
	}
	order := &pb.PromoteRequest{Group: "default", Epoch: 5, LeaseMs: 1000, ClockUs: info.GetClockUs()}
	c.Advance(2 * time.Second)
	if _, err := s.node.Promote(t.Context(), order); !errors.Is(hastate.FromStatus(err), hastate.ErrPrecondition) {
		t.Fatalf("a promotion whose lease has passed: %v", err)
	}
	order.ClockUs = c.Now().Add(time.Second).Micros()
	if _, err := s.node.Promote(t.Context(), order); !errors.Is(hastate.FromStatus(err), hastate.ErrPrecondition) {
		t.Fatalf("a reading that is ahead of the clock: %v", err)
	}
	order.ClockUs = c.Now().Add(-900 * time.Millisecond).Micros()
	resp, err := s.node.Promote(t.Context(), order)
	if err != nil || resp.GetClockUs() != c.Now().Micros() {
		t.Fatal(resp, err)
	}
	term, leave, err := s.role.enter()
	if err != nil {
		t.Fatal(err)
	}
	defer leave()
	c.Advance(100 * time.Millisecond) // a whole lease since the reading
	if err := s.role.valid(term); !errors.Is(err, errLeaseOver) {
		t.Fatalf("the lease is counted from the receipt: %v", err)
	}
}
