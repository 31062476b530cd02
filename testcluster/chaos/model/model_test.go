// SPDX-License-Identifier: Apache-2.0

package model

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/control"
)

const (
	primary = pb.Role_ROLE_PRIMARY
	standby = pb.Role_ROLE_STANDBY
)

func want(t *testing.T, what string, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("%s: %v, want %v", what, err, target)
	}
}

// It serves from Promote to the end of the lease by its own clock, one per cent
// early, and each answer was written down before.
func TestLease(t *testing.T) {
	for _, rate := range []float64{1, 0.99, 1.05} {
		t.Run(fmt.Sprint(rate), func(t *testing.T) {
			r := start(t, rate)
			r.serves(0)
			r.stands(standby, 0)
			want(t, "promote", r.promote(5, 1000*time.Millisecond), nil)
			r.serves(5)
			r.stands(primary, 5)
			// 990 ms on a clock of that rate.
			end := time.Duration(float64(990*time.Millisecond) / rate)
			r.clock.Advance(end - time.Millisecond)
			r.serves(5)
			r.clock.Advance(2 * time.Millisecond)
			r.serves(0)
			r.stands(standby, 5)
			want(t, "renew after the end", r.promote(5, time.Second), nil)
			r.clock.Advance(end / 2)
			want(t, "renew", r.promote(5, time.Second), nil)
			r.clock.Advance(end / 2)
			r.serves(5)
			all := r.records()
			if len(all) != 3 || all[2].Epoch != 5 || all[2].At != r.clock.Now() || all[2].Node != "n1" || all[2].Group != "g" {
				t.Fatalf("%+v", all)
			}
		})
	}
}

// TestLatePromote: an order that was under way for longer than its lease begins none.
func TestLatePromote(t *testing.T) {
	r := start(t, 1)
	reading := r.look().GetClockUs()
	if reading == 0 {
		t.Fatal("the status shows no clock")
	}
	order := func(us uint64) error {
		_, err := r.Promote(r.within(), &pb.PromoteRequest{Group: "g", Epoch: 5, LeaseMs: 1000, ClockUs: us})
		return hastate.FromStatus(err)
	}
	r.clock.Advance(2 * time.Second)
	want(t, "a lease that has passed", order(reading), hastate.ErrPrecondition)
	want(t, "a reading ahead of the clock", order(reading+60_000_000), hastate.ErrPrecondition)
	if err := order(reading + 1_900_000); err != nil {
		t.Fatal(err)
	}
	r.clock.Advance(900 * time.Millisecond) // a whole lease since the reading
	if _, err := r.generate(r.within()); err == nil {
		t.Fatal("the lease is counted from the receipt")
	}
}

func TestFencing(t *testing.T) {
	r := start(t, 1)
	want(t, "promote 5", r.promote(5, time.Minute), nil)
	want(t, "promote 4", r.promote(4, time.Minute), hastate.ErrFenced)
	want(t, "demote 4", r.demote(4), hastate.ErrFenced)
	r.serves(5)
	want(t, "promote 7", r.promote(7, time.Minute), nil)
	var fenced *hastate.FencedError
	if err := r.promote(5, time.Minute); !errors.As(err, &fenced) || fenced.NewestEpoch != 7 {
		t.Fatalf("promote 5 again: %v", err)
	}
	r.serves(7)
	want(t, "demote 7", r.demote(7), nil)
	want(t, "demote 7 again", r.demote(7), nil)
	r.serves(0)
	r.stands(standby, 7)
	want(t, "promote 7 after its demotion", r.promote(7, time.Minute), hastate.ErrFenced)
	want(t, "demote 9, which never was here", r.demote(9), nil)
	want(t, "promote 8", r.promote(8, time.Minute), hastate.ErrFenced)
	want(t, "promote 10", r.promote(10, time.Minute), nil)
	r.serves(10)

	want(t, "no epoch", r.promote(0, time.Minute), hastate.ErrInvalid)
	want(t, "no lease", r.promote(11, 0), hastate.ErrInvalid)
	_, err := r.Promote(r.within(), &pb.PromoteRequest{Group: "other", Epoch: 11, LeaseMs: 1})
	want(t, "another group", hastate.FromStatus(err), hastate.ErrInvalid)
	if info, err := r.GetInfo(r.within(), &pb.GetInfoRequest{}); err != nil || len(info.GetCapabilities()) != 4 {
		t.Errorf("info %v, %v", info, err)
	}
	if l, err := r.Load(r.within(), &pb.LoadRequest{}); err != nil || l.GetState() != pb.InstanceState_INSTANCE_STATE_READY {
		t.Errorf("load %v, %v", l, err)
	}
}

// A hung server answers nothing but /health, and goes on where it was.
func TestHang(t *testing.T) {
	r := start(t, 1)
	want(t, "promote", r.promote(5, time.Minute), nil)
	r.set(Faults{Hang: true})
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	stream, err := r.WatchStatus(short, &pb.WatchStatusRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("status: %v", err)
	}
	if _, err := r.generate(short); err == nil {
		t.Error("a request was answered")
	}
	resp, err := r.web.Get("http://" + r.address + "/health")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("health: %v, %v", resp, err)
	}
	resp.Body.Close()
	answered := make(chan error, 1)
	go func() { answered <- r.promote(5, time.Hour) }()
	r.set(Faults{})
	want(t, "renewed after the hang", <-answered, nil)
	r.serves(5)
}

func TestSaturated(t *testing.T) {
	r := start(t, 1)
	want(t, "promote", r.promote(5, time.Minute), nil)
	r.set(Faults{Saturated: true})
	before := r.look()
	after := r.look()
	if before.GetQueued() == 0 || before.GetInFlight() == 0 || after.GetStepsTotal() <= before.GetStepsTotal() ||
		after.GetState() != pb.InstanceState_INSTANCE_STATE_READY {
		t.Errorf("status %v, then %v", before, after)
	}
	r.serves(5)
	if steps := r.look().GetStepsTotal(); steps < after.GetStepsTotal()+300 {
		t.Errorf("%d steps after a request, %d before", steps, after.GetStepsTotal())
	}
}

// During a long prefill no step is counted, and the status answers; Demote ends it.
func TestPrefill(t *testing.T) {
	r := start(t, 1)
	want(t, "promote", r.promote(5, time.Minute), nil)
	r.set(Faults{PrefillMS: 5})
	r.serves(5)
	r.set(Faults{PrefillMS: 60_000})
	answered := make(chan error, 1)
	go func() {
		_, err := r.generate(t.Context())
		answered <- err
	}()
	wait.Until(t, patience, func() error {
		if n := r.look().GetInFlight(); n != 1 {
			return fmt.Errorf("%d in flight", n)
		}
		return nil
	})
	before := r.look().GetStepsTotal()
	if after := r.look(); after.GetStepsTotal() != before || after.GetState() != pb.InstanceState_INSTANCE_STATE_READY {
		t.Errorf("%v, %d steps before", after, before)
	}
	want(t, "demote", r.demote(5), nil)
	if err := <-answered; err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("the request: %v", err)
	}
	if n := len(r.records()); n != 1 {
		t.Errorf("%d were served", n)
	}
}

func TestCrashOnPromote(t *testing.T) {
	r := start(t, 1)
	want(t, "promote", r.promote(5, time.Minute), nil)
	r.set(Faults{CrashOnPromote: true})
	want(t, "renew", r.promote(5, time.Minute), nil)
	if err := r.promote(6, time.Minute); err == nil {
		t.Error("it was promoted")
	}
	if err := r.wait(); !errors.Is(err, ErrCrashed) {
		t.Errorf("Run: %v", err)
	}
}

func TestRefuse(t *testing.T) {
	r := start(t, 1)
	want(t, "promote", r.promote(5, time.Minute), nil)
	r.set(Faults{Promote: PromoteRefuse})
	want(t, "renew", r.promote(5, time.Minute), nil)
	if err := r.promote(6, time.Minute); err == nil || errors.Is(err, hastate.ErrFenced) {
		t.Errorf("promote 6: %v", err)
	}
	r.serves(5)
	r.set(Faults{Promote: PromoteOK})
	want(t, "promote 6", r.promote(6, time.Minute), nil)
}

// A server that ignores Promote says that it has obeyed, and stands as before.
func TestIgnore(t *testing.T) {
	r := start(t, 1)
	want(t, "promote", r.promote(5, time.Minute), nil)
	r.set(Faults{Promote: PromoteIgnore})
	want(t, "renew", r.promote(5, time.Minute), nil)
	want(t, "promote 6", r.promote(6, time.Minute), nil)
	r.stands(primary, 5)
	r.serves(5)
	r.promoted(5)
}

// Each epoch is written down once, when it begins, and only if it does.
func TestPromotions(t *testing.T) {
	r := start(t, 1)
	began := r.clock.Now()
	want(t, "promote", r.promote(5, time.Minute), nil)
	r.clock.Advance(time.Second)
	want(t, "renew", r.promote(5, time.Minute), nil)
	r.set(Faults{Promote: PromoteRefuse})
	if err := r.promote(6, time.Minute); err == nil {
		t.Error("it was promoted")
	}
	r.set(Faults{})
	want(t, "demote", r.demote(7), nil)
	if err := r.promote(7, time.Minute); !errors.Is(err, hastate.ErrFenced) {
		t.Errorf("promote 7: %v", err)
	}
	want(t, "promote", r.promote(8, time.Minute), nil)
	if all := r.promoted(5, 8); all[0].At != began || all[0].Node != "n1" || all[0].Group != "g" {
		t.Errorf("%+v, not at %v", all[0], began)
	}
}

// A promotion whose caller has given up succeeds all the same, under a lease that
// began when it was asked for; a Demote that came first wins.
func TestSlowPromote(t *testing.T) {
	r := start(t, 1)
	late := func(epoch uint64) {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err := r.Promote(ctx, &pb.PromoteRequest{Group: "g", Epoch: epoch, LeaseMs: 10_000})
		if status.Code(err) != codes.DeadlineExceeded {
			t.Fatalf("promote %d: %v", epoch, err)
		}
	}
	r.set(Faults{Promote: PromoteSlow, SlowMS: 800})
	late(5)
	r.clock.Advance(9 * time.Second)
	r.stands(primary, 5)
	r.serves(5)
	r.clock.Advance(time.Second)
	r.serves(0)

	late(6)
	want(t, "demote 6", r.demote(6), nil)
	want(t, "promote 7", r.promote(7, time.Minute), nil) // 6 has been tried by then
	r.serves(7)
	r.stands(primary, 7)

	late(8)
	r.clock.Advance(10 * time.Second)
	r.stands(standby, 8) // its lease had passed
	r.serves(0)
	r.promoted(5, 7)
}

func TestLieEpoch(t *testing.T) {
	r := start(t, 1)
	r.set(Faults{LieEpoch: true})
	r.stands(primary, 1000)
	r.serves(0)
	want(t, "promote", r.promote(5, time.Minute), nil)
	r.stands(primary, 1005)
	r.serves(5)
}

func TestUncounted(t *testing.T) {
	r := start(t, 1)
	r.set(Faults{Uncounted: true})
	r.serves(0)
	want(t, "promote", r.promote(5, time.Second), nil)
	r.clock.Advance(time.Minute)
	r.serves(5)
	want(t, "demote", r.demote(5), nil)
	r.serves(0)
	want(t, "promote", r.promote(6, time.Second), nil)
	r.clock.Advance(time.Minute)
	r.set(Faults{})
	r.serves(0)
}

func TestNoLeaseCheck(t *testing.T) {
	r := start(t, 1)
	r.set(Faults{NoLeaseCheck: true})
	r.serves(0)
	want(t, "promote", r.promote(5, time.Second), nil)
	r.clock.Advance(time.Minute)
	r.serves(5)
	want(t, "demote", r.demote(5), nil)
	r.serves(5)
	r.set(Faults{})
	r.serves(0)
	if n := len(r.records()); n != 2 {
		t.Errorf("%d were written down", n)
	}
}

// Running requests finish while it drains, new ones are refused.
func TestDrain(t *testing.T) {
	for _, demote := range []bool{true, false} {
		r := start(t, 1)
		want(t, "promote", r.promote(5, time.Minute), nil)
		r.set(Faults{PrefillMS: 2000})
		answered := make(chan error, 1)
		go func() {
			_, err := r.generate(t.Context())
			answered <- err
		}()
		wait.Until(t, patience, func() error {
			if n := r.look().GetInFlight(); n != 1 {
				return fmt.Errorf("%d in flight", n)
			}
			return nil
		})
		drained := make(chan error, 1)
		go func() { drained <- r.drain(demote) }()
		wait.Until(t, patience, func() error {
			if st := r.look().GetState(); st != pb.InstanceState_INSTANCE_STATE_DRAINING {
				return errors.New(st.String())
			}
			return nil
		})
		want(t, "renew while it drains", r.promote(5, time.Minute), nil)
		r.serves(0)
		want(t, "the running request", <-answered, nil)
		want(t, "drain", <-drained, nil)
		r.serves(0)
	}
}

func (r *rig) drain(demote bool) error {
	if demote {
		_, err := r.Demote(r.within(), &pb.DemoteRequest{Group: "g", Epoch: 5, Mode: pb.DemoteMode_DEMOTE_MODE_DRAIN, DeadlineMs: 30_000})
		return err
	}
	stream, err := r.Drain(r.within(), &pb.DrainRequest{DeadlineMs: 30_000})
	if err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if err != nil || m.GetDone() {
			return err
		}
	}
}

func TestBadInput(t *testing.T) {
	r := start(t, 1)
	for _, f := range []any{
		Faults{PrefillMS: -1}, Faults{SlowMS: 1 << 40}, Faults{Promote: "perhaps"}, Faults{Promote: PromoteSlow}, map[string]bool{"hangs": true},
	} {
		if err := control.Send(r.within(), r.cfg.control, f); err == nil || !strings.Contains(err.Error(), "refuses") {
			t.Errorf("%+v: %v", f, err)
		}
	}
	for _, args := range [][]string{
		{},
		{"--node", "n1"},
		{"--nosuch"},
		{"--node", "n1", "--grpc", "x", "--http", "x", "--control", "x", "--served", "x", "--promotions", "x", "extra"},
		{"--node", "n1", "--grpc", "x", "--http", "x", "--control", "x", "--served", "x", "--promotions", "x", "--clock-rate", "0"},
	} {
		if err := Run(t.Context(), args, io.Discard); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
}
