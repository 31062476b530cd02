// SPDX-License-Identifier: Apache-2.0

package instance_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/instance"
	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// TestGRPC_Clock: readings of the server's clock come with all that it sends, and it is
// asked for one if the newest is too old.
func TestGRPC_Clock(t *testing.T) {
	f := newFake()
	f.info.ClockUs = 100
	addr, _ := serve(t, "127.0.0.1:0", f, nil)
	in := open(t, instance.Config{Kind: "grpc", Target: addr})
	is := func(want uint64, maxAge time.Duration) {
		t.Helper()
		if got, _ := in.Clock(within(t, patience), maxAge); got != want {
			t.Fatalf("the reading is %d, want %d", got, want)
		}
	}
	is(100, time.Hour) // none is known: it is asked
	f.set(func(f *fake) { f.info = &pb.GetInfoResponse{ClockUs: 200, Capabilities: f.info.GetCapabilities()} })
	is(100, time.Hour)
	wait.Until(t, patience, func() error {
		if got, _ := in.Clock(within(t, patience), time.Nanosecond); got == 200 { // too old, and asking takes longer than it may
			return errors.New("asked in a nanosecond")
		}
		return nil
	})
	wait.Until(t, patience, func() error {
		if got, _ := in.Clock(within(t, patience), time.Millisecond*20); got != 200 {
			return errors.New("not asked yet")
		}
		return nil
	})
	var told uint64
	f.set(func(f *fake) {
		f.promote = func(_ context.Context, req *pb.PromoteRequest) (*pb.PromoteResponse, error) {
			told = req.GetClockUs()
			f.take(req.GetEpoch())
			return &pb.PromoteResponse{ClockUs: 300}, nil
		}
	})
	if _, err := in.Promote(within(t, patience), instance.Promotion{Epoch: 5, Lease: time.Second, Clock: 123}); err != nil {
		t.Fatal(err)
	}
	if told != 123 {
		t.Errorf("the server was told the reading %d, want 123", told)
	}
	is(300, time.Hour)
	w := startWatch(t, in)
	w.until(t, "a status", func(instance.Status) bool { return true })
	f.set(func(f *fake) {
		f.status = &pb.WatchStatusResponse{State: pb.InstanceState_INSTANCE_STATE_LIVE, ClockUs: 400}
	})
	w.until(t, "the new status", func(s instance.Status) bool { return s.State == pb.InstanceState_INSTANCE_STATE_LIVE })
	is(400, time.Hour)
}

// TestGRPC_ClockOfAServerWithoutOne: it is asked once, and not before each promotion.
func TestGRPC_ClockOfAServerWithoutOne(t *testing.T) {
	addr, stop := serve(t, "127.0.0.1:0", newFake(), nil)
	in := open(t, instance.Config{Kind: "grpc", Target: addr})
	if got, _ := in.Clock(within(t, patience), time.Second); got != 0 {
		t.Fatalf("a reading of %d", got)
	}
	stop() // whoever asks now waits
	begun := time.Now()
	if got, _ := in.Clock(within(t, patience), time.Hour); got != 0 || time.Since(begun) > patience/2 {
		t.Fatalf("a reading of %d after %v", got, time.Since(begun))
	}
}

// TestGRPC_ShuttingDownIsNotGone: a server that shuts down in an orderly way refuses
// connections first and works on. Its status stream shows that it lives.
func TestGRPC_ShuttingDownIsNotGone(t *testing.T) {
	f := newFake()
	working, finish := make(chan struct{}), make(chan struct{})
	f.demote = func(ctx context.Context, _ *pb.DemoteRequest) (*pb.DemoteResponse, error) {
		close(working)
		<-finish
		return &pb.DemoteResponse{}, nil
	}
	srv, addr := graceful(t, f)
	in := open(t, instance.Config{Kind: "grpc", Target: addr, Timeout: 100 * time.Millisecond, Interval: time.Second})
	w := startWatch(t, in)
	w.until(t, "a status", isState(pb.InstanceState_INSTANCE_STATE_READY))

	// A request that it works on, from somebody else.
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	request := make(chan error, 1)
	go func() {
		_, err := pb.NewInstanceServiceClient(conn).Demote(context.Background(), &pb.DemoteRequest{Epoch: 9})
		request <- err
	}()
	<-working
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		srv.GracefulStop()
	}()
	wait.Until(t, patience, func() error { return refuses(addr) })
	err = in.Demote(within(t, patience), instance.Demotion{Epoch: 5, Deadline: 50 * time.Millisecond})
	wantIs(t, err, hastate.ErrOutcomeUnknown)
	_, err = in.Promote(within(t, patience), instance.Promotion{Epoch: 6})
	wantIs(t, err, hastate.ErrOutcomeUnknown)

	close(finish)
	if err := <-request; err != nil {
		t.Fatal(err)
	}
	srv.Stop() // its process ends
	<-stopped
	if err := in.Demote(within(t, patience), instance.Demotion{Epoch: 5, Deadline: 50 * time.Millisecond}); err != nil {
		t.Fatalf("its process is gone: %v", err)
	}
}
