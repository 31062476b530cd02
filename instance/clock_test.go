// SPDX-License-Identifier: Apache-2.0

package instance_test

import (
	"context"
	"strings"
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
		if got, _, err := in.Clock(within(t, patience), maxAge); got != want || err != nil {
			t.Fatalf("the reading is %d, %v, want %d", got, err, want)
		}
	}
	is(100, time.Hour) // none is known: it is asked
	f.set(func(f *fake) { f.info = &pb.GetInfoResponse{ClockUs: 200, Capabilities: f.info.GetCapabilities()} })
	is(100, time.Hour)
	// Too old, and there is no time to ask: the older one has to do.
	if got, age, err := in.Clock(within(t, time.Nanosecond), time.Nanosecond); got != 100 || age <= 0 || err != nil {
		t.Fatalf("the reading is %d, %v old, %v", got, age, err)
	}
	is(200, time.Nanosecond) // it is asked, however long that takes
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
	if got, _, err := in.Clock(within(t, patience), time.Second); got != 0 || err != nil {
		t.Fatalf("a reading of %d, %v", got, err)
	}
	stop() // nobody who asks now has an answer
	if got, _, err := in.Clock(within(t, patience), time.Second); got != 0 || err != nil {
		t.Fatalf("a reading of %d, %v", got, err)
	}
	// Whether a server shows none is not known before it was asked.
	if got, _, err := open(t, instance.Config{Kind: "grpc", Target: addr}).Clock(within(t, patience), time.Second); got != 0 || err == nil {
		t.Fatalf("a reading of %d, %v", got, err)
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
	// A node that is started only now has no such stream.
	later := open(t, instance.Config{Kind: "grpc", Target: addr, Timeout: 100 * time.Millisecond, Interval: time.Second})
	lw := startWatch(t, later)
	lw.until(t, "down", isState(pb.InstanceState_INSTANCE_STATE_DOWN))
	wantIs(t, later.Demote(within(t, patience), instance.Demotion{Epoch: 5, Deadline: 50 * time.Millisecond}), hastate.ErrOutcomeUnknown)

	close(finish)
	if err := <-request; err != nil {
		t.Fatal(err)
	}
	srv.Stop() // its process ends
	<-stopped
	if err := in.Demote(within(t, patience), instance.Demotion{Epoch: 5, Deadline: 50 * time.Millisecond}); err != nil {
		t.Fatalf("its process is gone: %v", err)
	}
	for _, st := range lw.statuses() {
		if st.Gone {
			t.Fatalf("nobody has seen it end: %+v", st)
		}
	}
}

// TestGRPC_SilentThenRefusing: that a server does not speak any more and then refuses
// connections is not its end: it may have begun to shut down while it hung.
func TestGRPC_SilentThenRefusing(t *testing.T) {
	f := newFake()
	working, finish := make(chan struct{}), make(chan struct{})
	f.demote = func(context.Context, *pb.DemoteRequest) (*pb.DemoteResponse, error) {
		close(working)
		<-finish
		return &pb.DemoteResponse{}, nil
	}
	srv, addr := graceful(t, f)
	defer srv.Stop()
	defer close(finish)
	in := open(t, instance.Config{Kind: "grpc", Target: addr, Timeout: 100 * time.Millisecond, Interval: instance.MinInterval})
	w := startWatch(t, in)
	w.until(t, "ready", isState(ready))
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() { // a request that it works on; it ends with the server
		_, _ = pb.NewInstanceServiceClient(conn).Demote(context.Background(), &pb.DemoteRequest{Epoch: 9})
	}()
	<-working
	f.set(func(f *fake) { f.silent = true })
	go srv.GracefulStop()
	w.until(t, "refused", func(st instance.Status) bool { return strings.Contains(st.Reason, "refused") })
	wantIs(t, in.Demote(within(t, patience), instance.Demotion{Epoch: 5, Deadline: 50 * time.Millisecond}), hastate.ErrOutcomeUnknown)
	for _, st := range w.statuses() {
		if st.Gone {
			t.Fatalf("nobody has seen it end: %+v", st)
		}
	}
}
