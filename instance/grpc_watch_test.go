// SPDX-License-Identifier: Apache-2.0

package instance_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/hastate/hastate/instance"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const (
	down    = pb.InstanceState_INSTANCE_STATE_DOWN
	loading = pb.InstanceState_INSTANCE_STATE_LOADING
	live    = pb.InstanceState_INSTANCE_STATE_LIVE
	ready   = pb.InstanceState_INSTANCE_STATE_READY
)

func TestGRPC_Watch(t *testing.T) {
	t.Run("status and changes", func(t *testing.T) {
		f := newFake()
		addr, _ := serve(t, "127.0.0.1:0", f, nil)
		w := startWatch(t, open(t, instance.Config{Kind: "grpc", Target: addr}))
		w.until(t, "ready", func(st instance.Status) bool {
			return st.State == ready && st.Steps == 7 && st.InFlight == 2 && st.Model.GetDigest() == digestA && st.Role == pb.Role_ROLE_STANDBY
		})
		f.take(9)
		w.until(t, "epoch 9", func(st instance.Status) bool { return st.Epoch == 9 && st.Role == pb.Role_ROLE_PRIMARY })
		f.set(func(f *fake) { f.status = &pb.WatchStatusResponse{State: pb.InstanceState(99), Reason: "new"} })
		w.until(t, "live", func(st instance.Status) bool { return st.State == live && strings.Contains(st.Reason, "99") })
	})
	t.Run("refused from the start", func(t *testing.T) {
		w := startWatch(t, open(t, instance.Config{Kind: "grpc", Target: freePort(t)}))
		w.until(t, "down", func(st instance.Status) bool { return st.State == down && strings.Contains(st.Reason, "refused") })
		for _, st := range w.statuses() {
			if st.Gone {
				t.Fatalf("nobody has seen it end: %+v", st)
			}
		}
	})
	t.Run("reports each interval", func(t *testing.T) {
		w := startWatch(t, open(t, instance.Config{Kind: "grpc", Target: freePort(t)}))
		w.until(t, "many reports", func(instance.Status) bool { _, n := w.last(); return n > 10 })
	})
	t.Run("killed and started again", func(t *testing.T) {
		addr, stop := serve(t, "127.0.0.1:0", newFake(), nil)
		// The interval is far longer than the test waits: only the broken stream
		// can tell.
		w := startWatch(t, open(t, instance.Config{Kind: "grpc", Target: addr, Interval: time.Minute}))
		w.until(t, "ready", isState(ready))
		stop()
		w.until(t, "gone", isGone)
		serve(t, addr, newFake(), nil)
		w.until(t, "ready again", isState(ready))
		for _, st := range w.statuses() {
			if st.State == down && !st.Gone {
				t.Fatalf("reported %+v", st)
			}
		}
	})
	t.Run("stream ended by the server", func(t *testing.T) {
		f := newFake()
		addr, stop := serve(t, "127.0.0.1:0", f, nil)
		w := startWatch(t, open(t, instance.Config{Kind: "grpc", Target: addr}))
		w.until(t, "ready", isState(ready))
		stop()
		f2 := newFake()
		f2.status.State = loading
		serve(t, addr, f2, nil)
		w.until(t, "loading", isState(loading))
	})
}

func TestGRPC_WatchKilledProcess(t *testing.T) {
	addr := freePort(t)
	child := startChild(t, addr)
	w := startWatch(t, open(t, instance.Config{Kind: "grpc", Target: addr, Interval: time.Minute}))
	w.until(t, "ready", isState(ready))
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	w.until(t, "gone", isGone)
	t.Logf("gone after %v", time.Since(begin))
}

func TestGRPC_WatchHung(t *testing.T) {
	t.Run("never answers", func(t *testing.T) {
		w := startWatch(t, open(t, instance.Config{Kind: "grpc", Target: deaf(t), Timeout: 50 * time.Millisecond}))
		w.until(t, "down with the reason", func(st instance.Status) bool {
			return st.State == down && !st.Gone && strings.Contains(st.Reason, "get info")
		})
		for _, st := range w.statuses() {
			if st.Gone {
				t.Fatalf("reported %+v", st)
			}
		}
	})
	t.Run("falls silent and speaks again", func(t *testing.T) {
		f := newFake()
		addr, _ := serve(t, "127.0.0.1:0", f, nil)
		w := startWatch(t, open(t, instance.Config{Kind: "grpc", Target: addr, FailAfter: 20, Timeout: 100 * time.Millisecond}))
		w.until(t, "ready", isState(ready))
		f.set(func(f *fake) { f.silent, f.mute = true, true })
		w.until(t, "silent", func(st instance.Status) bool { return st.State == ready && strings.Contains(st.Reason, "silent") })
		w.until(t, "down", func(st instance.Status) bool {
			return st.State == down && !st.Gone && strings.Contains(st.Reason, "silent")
		})
		f.set(func(f *fake) { f.silent, f.mute = false, false })
		w.until(t, "ready", isState(ready))
	})
	t.Run("a dead stream is made anew", func(t *testing.T) {
		f := newFake()
		addr, _ := serve(t, "127.0.0.1:0", f, nil)
		w := startWatch(t, open(t, instance.Config{Kind: "grpc", Target: addr}))
		f.set(func(f *fake) { f.silent = true }) // each new stream sends one message
		w.until(t, "down", isState(down))
		w.until(t, "ready on a new stream", isState(ready))
	})
}

// bare has only what is mandatory.
type bare struct {
	pb.UnimplementedInstanceServiceServer
}

func (bare) Promote(context.Context, *pb.PromoteRequest) (*pb.PromoteResponse, error) {
	return &pb.PromoteResponse{State: ready}, nil
}

// lying declares STATUS and does not have it.
type lying struct{ bare }

func (lying) GetInfo(context.Context, *pb.GetInfoRequest) (*pb.GetInfoResponse, error) {
	return &pb.GetInfoResponse{Engine: "lying", Capabilities: []pb.Capability{pb.Capability_CAPABILITY_STATUS}}, nil
}

func TestGRPC_WatchWithoutStatus(t *testing.T) {
	for name, svc := range map[string]pb.InstanceServiceServer{"bare": bare{}, "lying": lying{}} {
		t.Run(name, func(t *testing.T) {
			hs := health.NewServer()
			hs.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
			addr, stop := serve(t, "127.0.0.1:0", svc, hs)
			w := startWatch(t, open(t, instance.Config{Kind: "grpc", Target: addr}))
			w.until(t, "loading", isState(loading))
			hs.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
			w.until(t, "ready", isState(ready))
			hs.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
			w.until(t, "live", isState(live))
			stop()
			w.until(t, "gone", isGone)
		})
	}
	t.Run("no health service either", func(t *testing.T) {
		addr, stop := serve(t, "127.0.0.1:0", bare{}, nil)
		w := startWatch(t, open(t, instance.Config{Kind: "grpc", Target: addr, Interval: time.Minute}))
		w.until(t, "ready", isState(ready))
		stop()
		w.until(t, "gone", isGone)
	})
}
