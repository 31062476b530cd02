// SPDX-License-Identifier: Apache-2.0

package instance_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/instance"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestGRPC_InfoAndLoad(t *testing.T) {
	f := newFake()
	addr, _ := serve(t, "127.0.0.1:0", f, nil)
	in := open(t, instance.Config{Kind: "grpc", Target: addr})
	info, err := in.Info(within(t, patience))
	if err != nil || info.Engine != "fake" || !info.Has(pb.Capability_CAPABILITY_STATUS) || info.Has(pb.Capability_CAPABILITY_LEASE) {
		t.Fatal(info, err)
	}
	if err := in.Load(context.Background(), &pb.ModelRef{Digest: digestB}); err != nil {
		t.Fatal(err)
	}
	if f.loaded.GetDigest() != digestB {
		t.Fatalf("loaded %v", f.loaded)
	}
	f.set(func(f *fake) { f.info = &pb.GetInfoResponse{} })
	if _, err = in.Info(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	wantIs(t, in.Load(context.Background(), nil), hastate.ErrPrecondition)
	_ = in.Close()
	_, err = in.Info(within(t, patience))
	wantIs(t, err, hastate.ErrClosed)
}

func TestGRPC_Promote(t *testing.T) {
	type setup func(f *fake)
	asked := &pb.ModelRef{Name: "m", Version: "1", Digest: digestA}
	other := &pb.ModelRef{Name: "m", Version: "2", Digest: digestB}
	for _, tc := range []struct {
		name  string
		setup setup
		model *pb.ModelRef
		want  error
		text  string
	}{
		{name: "verified", model: asked},
		{name: "any model"},
		{name: "wrong model in memory", model: other, want: hastate.ErrPrecondition, text: digestA},
		{name: "wrong model in the answer", model: asked, want: hastate.ErrPrecondition, text: digestB, setup: func(f *fake) {
			f.promote = func(_ context.Context, req *pb.PromoteRequest) (*pb.PromoteResponse, error) {
				f.take(req.GetEpoch())
				return &pb.PromoteResponse{Model: other}, nil
			}
		}},
		{name: "no model reported", model: other, setup: func(f *fake) { f.status.Models = nil }},
		{name: "not ready", want: hastate.ErrPrecondition, text: "LOADING", setup: func(f *fake) { f.status.State = loading }},
		{name: "draining from the start", want: hastate.ErrPrecondition, text: "DRAINING", setup: func(f *fake) {
			f.status.State = pb.InstanceState_INSTANCE_STATE_DRAINING
		}},
		{name: "did nothing", want: hastate.ErrPrecondition, text: "STANDBY", setup: func(f *fake) {
			f.promote = func(context.Context, *pb.PromoteRequest) (*pb.PromoteResponse, error) {
				return &pb.PromoteResponse{}, nil
			}
		}},
		{name: "overtaken", want: hastate.ErrFenced, setup: func(f *fake) {
			f.promote = func(context.Context, *pb.PromoteRequest) (*pb.PromoteResponse, error) {
				f.take(99)
				return &pb.PromoteResponse{}, nil
			}
		}},
		{name: "fenced", want: hastate.ErrFenced, setup: func(f *fake) {
			f.promote = func(context.Context, *pb.PromoteRequest) (*pb.PromoteResponse, error) {
				return nil, hastate.ToStatus(&hastate.FencedError{Epoch: 5, NewestEpoch: 99})
			}
		}},
		{name: "no precondition", want: hastate.ErrPrecondition, setup: func(f *fake) {
			f.promote = func(context.Context, *pb.PromoteRequest) (*pb.PromoteResponse, error) {
				return nil, status.Error(codes.FailedPrecondition, "no GPU")
			}
		}},
		{name: "timeout, but it was done", model: asked, setup: func(f *fake) {
			f.promote = func(ctx context.Context, req *pb.PromoteRequest) (*pb.PromoteResponse, error) {
				f.take(req.GetEpoch())
				<-ctx.Done()
				return nil, ctx.Err()
			}
		}},
		{name: "timeout, done with the wrong model", model: other, want: hastate.ErrPrecondition, text: digestA, setup: func(f *fake) {
			f.promote = func(ctx context.Context, req *pb.PromoteRequest) (*pb.PromoteResponse, error) {
				f.take(req.GetEpoch())
				<-ctx.Done()
				return nil, ctx.Err()
			}
		}},
		{name: "timeout, not done", want: hastate.ErrOutcomeUnknown, setup: func(f *fake) {
			f.promote = func(ctx context.Context, _ *pb.PromoteRequest) (*pb.PromoteResponse, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
		}},
		{name: "timeout and fenced", want: hastate.ErrFenced, setup: func(f *fake) {
			f.promote = func(ctx context.Context, _ *pb.PromoteRequest) (*pb.PromoteResponse, error) {
				f.take(99)
				<-ctx.Done()
				return nil, ctx.Err()
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			f := newFake()
			if tc.setup != nil {
				tc.setup(f)
			}
			addr, _ := serve(t, "127.0.0.1:0", f, nil)
			in := open(t, instance.Config{Kind: "grpc", Target: addr, Timeout: time.Second})
			_, err := in.Promote(within(t, 2*time.Second), instance.Promotion{Epoch: 5, Lease: time.Second, Model: tc.model})
			wantIs(t, err, tc.want)
			if err != nil && !strings.Contains(err.Error(), tc.text) {
				t.Fatalf("error is %q, want %q in it", err, tc.text)
			}
		})
	}
}

func TestGRPC_PromoteRepeatedWhileDraining(t *testing.T) {
	f := newFake()
	addr, _ := serve(t, "127.0.0.1:0", f, nil)
	in := open(t, instance.Config{Kind: "grpc", Target: addr})
	p := instance.Promotion{Epoch: 5, Lease: time.Second}
	model, err := in.Promote(within(t, patience), p)
	if err != nil || model.GetDigest() != digestA {
		t.Fatal(model, err)
	}
	f.set(func(f *fake) {
		f.status = &pb.WatchStatusResponse{State: pb.InstanceState_INSTANCE_STATE_DRAINING}
	})
	if _, err := in.Promote(within(t, patience), p); err != nil {
		t.Fatal(err)
	}
	p.Epoch++
	_, err = in.Promote(within(t, patience), p)
	wantIs(t, err, hastate.ErrPrecondition)
}

func TestGRPC_PromoteWithoutStatus(t *testing.T) {
	addr, stop := serve(t, "127.0.0.1:0", bare{}, nil)
	in := open(t, instance.Config{Kind: "grpc", Target: addr})
	startWatch(t, in).until(t, "ready", isState(ready))
	if _, err := in.Promote(within(t, patience), instance.Promotion{Epoch: 5}); err != nil {
		t.Fatal(err)
	}
	stop()
	_, err := in.Promote(within(t, patience), instance.Promotion{Epoch: 6})
	wantIs(t, err, hastate.ErrPrecondition)
	// It comes back: no back-off is waited out.
	serve(t, addr, bare{}, nil)
	if _, err := in.Promote(within(t, patience), instance.Promotion{Epoch: 7}); err != nil {
		t.Fatal(err)
	}
}

func TestGRPC_Hung(t *testing.T) {
	in := open(t, instance.Config{Kind: "grpc", Target: deaf(t), Timeout: 50 * time.Millisecond})
	_, err := in.Promote(within(t, 200*time.Millisecond), instance.Promotion{Epoch: 5})
	wantIs(t, err, hastate.ErrOutcomeUnknown)
	err = in.Demote(context.Background(), instance.Demotion{Epoch: 5, Deadline: 50 * time.Millisecond})
	wantIs(t, err, hastate.ErrOutcomeUnknown)
	wantIs(t, in.Load(within(t, 200*time.Millisecond), nil), context.DeadlineExceeded)
}

func TestGRPC_Demote(t *testing.T) {
	f := newFake()
	addr, stop := serve(t, "127.0.0.1:0", f, nil)
	in := open(t, instance.Config{Kind: "grpc", Target: addr})
	f.take(5)
	d := instance.Demotion{Epoch: 5, Mode: pb.DemoteMode_DEMOTE_MODE_DRAIN, Deadline: 50 * time.Millisecond}
	if err := in.Demote(within(t, patience), d); err != nil {
		t.Fatal(err)
	}
	f.set(func(f *fake) {
		f.demote = func(context.Context, *pb.DemoteRequest) (*pb.DemoteResponse, error) {
			return nil, hastate.ToStatus(&hastate.FencedError{Epoch: 5, NewestEpoch: 9})
		}
	})
	wantFenced(t, in.Demote(within(t, patience), d), 9)

	hang := func(ctx context.Context, _ *pb.DemoteRequest) (*pb.DemoteResponse, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	f.set(func(f *fake) { f.demote = hang })
	in = open(t, instance.Config{Kind: "grpc", Target: addr, Timeout: 500 * time.Millisecond})
	if err := in.Demote(within(t, patience), d); err != nil {
		t.Fatalf("it hung but its status is a standby's: %v", err)
	}
	f.set(func(f *fake) {
		f.status = &pb.WatchStatusResponse{State: ready, Role: pb.Role_ROLE_STANDBY, Epoch: 5, InFlight: 1}
	})
	wantIs(t, in.Demote(within(t, patience), d), hastate.ErrOutcomeUnknown)
	f.take(5)
	wantIs(t, in.Demote(within(t, patience), d), hastate.ErrOutcomeUnknown)
	startWatch(t, in).until(t, "ready", isState(ready))
	blind := open(t, instance.Config{Kind: "grpc", Target: addr, Timeout: 500 * time.Millisecond})
	stop()
	if err := in.Demote(within(t, patience), d); err != nil {
		t.Fatalf("a process that is gone does no work: %v", err)
	}
	wantIs(t, blind.Demote(within(t, patience), d), hastate.ErrOutcomeUnknown) // it has not seen it end
}

func TestGRPC_BadOrders(t *testing.T) {
	in := open(t, instance.Config{Kind: "grpc", Target: freePort(t)})
	ctx := within(t, patience)
	_, err := in.Promote(ctx, instance.Promotion{})
	wantIs(t, err, hastate.ErrInvalid)
	_, err = in.Promote(ctx, instance.Promotion{Epoch: 1, Lease: time.Microsecond})
	wantIs(t, err, hastate.ErrInvalid)
	wantIs(t, in.Demote(ctx, instance.Demotion{}), hastate.ErrInvalid)
	wantIs(t, in.Demote(ctx, instance.Demotion{Epoch: 1, Deadline: -1}), hastate.ErrInvalid)
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := in.Promote(canceled, instance.Promotion{Epoch: 1}); !errors.Is(err, hastate.ErrOutcomeUnknown) {
		t.Fatal(err)
	}
}
