// SPDX-License-Identifier: Apache-2.0

package instance_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/instance"
	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const patience = 10 * time.Second

// childEnv makes the test binary a model server of its own: its value is the
// address to listen on.
const childEnv = "INSTANCE_TEST_CHILD"

func TestMain(m *testing.M) {
	if addr := os.Getenv(childEnv); addr != "" {
		runChild(addr)
		return
	}
	goleak.VerifyTestMain(m)
}

func runChild(addr string) {
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1) //nolint:forbidigo // a process of its own, started by the test
	}
	srv := grpc.NewServer()
	pb.RegisterInstanceServiceServer(srv, newFake())
	_ = srv.Serve(lis)
}

// startChild runs a model server in a process of its own.
func startChild(t *testing.T, addr string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+addr)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// fake is an InstanceService whose answers a test changes.
type fake struct {
	pb.UnimplementedInstanceServiceServer

	mu sync.Mutex // guards all below
	// changed is closed and replaced at each change.
	changed chan struct{}
	info    *pb.GetInfoResponse
	status  *pb.WatchStatusResponse
	// silent: WatchStatus sends nothing more; mute: not even the first message.
	silent, mute bool
	promote      func(ctx context.Context, req *pb.PromoteRequest) (*pb.PromoteResponse, error)
	demote       func(ctx context.Context, req *pb.DemoteRequest) (*pb.DemoteResponse, error)
	loaded       *pb.ModelRef
}

func newFake() *fake {
	return &fake{
		changed: make(chan struct{}),
		info: &pb.GetInfoResponse{Engine: "fake", EngineVersion: "1", Capabilities: []pb.Capability{
			pb.Capability_CAPABILITY_STATUS, pb.Capability_CAPABILITY_LOAD,
		}},
		status: &pb.WatchStatusResponse{
			State: pb.InstanceState_INSTANCE_STATE_READY, Role: pb.Role_ROLE_STANDBY,
			Models: []*pb.ModelRef{{Name: "m", Version: "1", Digest: digestA}}, StepsTotal: 7, InFlight: 2,
		},
	}
}

const (
	digestA = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	digestB = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

// set changes the fake under its lock and wakes its streams.
func (f *fake) set(change func(*fake)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
	close(f.changed)
	f.changed = make(chan struct{})
}

// take makes the fake the primary under an epoch, as a good server would.
func (f *fake) take(epoch uint64) {
	f.set(func(f *fake) {
		f.status = &pb.WatchStatusResponse{State: f.status.GetState(), Role: pb.Role_ROLE_PRIMARY, Epoch: epoch, Models: f.status.GetModels()}
	})
}

func (f *fake) GetInfo(context.Context, *pb.GetInfoRequest) (*pb.GetInfoResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.info, nil
}

func (f *fake) WatchStatus(req *pb.WatchStatusRequest, stream grpc.ServerStreamingServer[pb.WatchStatusResponse]) error {
	tick := time.NewTicker(time.Duration(req.GetIntervalMs()) * time.Millisecond)
	defer tick.Stop()
	for first := true; ; first = false {
		f.mu.Lock()
		st, changed, quiet := f.status, f.changed, f.mute || (f.silent && !first)
		f.mu.Unlock()
		if !quiet {
			if err := stream.Send(st); err != nil {
				return err
			}
		}
		select {
		case <-stream.Context().Done():
			return nil
		case <-changed:
		case <-tick.C:
		}
	}
}

func (f *fake) Load(_ context.Context, req *pb.LoadRequest) (*pb.LoadResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.loaded = req.GetModel()
	return &pb.LoadResponse{State: pb.InstanceState_INSTANCE_STATE_READY}, nil
}

func (f *fake) Promote(ctx context.Context, req *pb.PromoteRequest) (*pb.PromoteResponse, error) {
	f.mu.Lock()
	promote := f.promote
	f.mu.Unlock()
	if promote != nil {
		return promote(ctx, req)
	}
	f.take(req.GetEpoch())
	return &pb.PromoteResponse{State: pb.InstanceState_INSTANCE_STATE_READY}, nil
}

func (f *fake) Demote(ctx context.Context, req *pb.DemoteRequest) (*pb.DemoteResponse, error) {
	f.mu.Lock()
	demote := f.demote
	f.mu.Unlock()
	if demote != nil {
		return demote(ctx, req)
	}
	f.set(func(f *fake) {
		f.status = &pb.WatchStatusResponse{State: pb.InstanceState_INSTANCE_STATE_READY, Role: pb.Role_ROLE_STANDBY, Epoch: req.GetEpoch()}
	})
	return &pb.DemoteResponse{}, nil
}

// serve runs a server on addr; stop kills it.
func serve(t *testing.T, addr string, svc pb.InstanceServiceServer, hs *health.Server) (string, func()) {
	t.Helper()
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	pb.RegisterInstanceServiceServer(srv, svc)
	if hs != nil {
		healthpb.RegisterHealthServer(srv, hs)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(lis)
	}()
	stop := sync.OnceFunc(func() {
		srv.Stop()
		<-done
	})
	t.Cleanup(stop)
	return lis.Addr().String(), stop
}

// deaf accepts connections and never answers.
func deaf(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns []net.Conn
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			conns = append(conns, c)
		}
	}()
	t.Cleanup(func() {
		_ = lis.Close()
		<-done
		for _, c := range conns {
			_ = c.Close()
		}
	})
	return lis.Addr().String()
}

// freePort is an address that refuses connections.
func freePort(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lis.Close() }()
	return lis.Addr().String()
}

func open(t *testing.T, cfg instance.Config) instance.Instance {
	t.Helper()
	if cfg.Interval == 0 {
		cfg.Interval = 20 * time.Millisecond
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 5 * time.Second
	}
	in, err := instance.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	})
	return in
}

// watched collects what Watch reports.
type watched struct {
	mu  sync.Mutex // guards all
	all []instance.Status
}

func (w *watched) last() (instance.Status, int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.all) == 0 {
		return instance.Status{}, 0
	}
	return w.all[len(w.all)-1], len(w.all)
}

func (w *watched) statuses() []instance.Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]instance.Status(nil), w.all...)
}

// until waits for a status that satisfies ok, looking at the newest only.
func (w *watched) until(t *testing.T, what string, ok func(instance.Status) bool) {
	t.Helper()
	wait.Until(t, patience, func() error {
		if st, n := w.last(); n == 0 || !ok(st) {
			return fmt.Errorf("want %s, have %+v after %d reports", what, st, n)
		}
		return nil
	})
}

func startWatch(t *testing.T, in instance.Instance) *watched {
	t.Helper()
	w := &watched{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- in.Watch(ctx, func(st instance.Status) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.all = append(w.all, st)
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch returned %v, want context.Canceled", err)
		}
	})
	return w
}

func isState(s pb.InstanceState) func(instance.Status) bool {
	return func(st instance.Status) bool { return st.State == s && !st.Gone }
}

func isGone(st instance.Status) bool {
	return st.Gone && st.State == pb.InstanceState_INSTANCE_STATE_DOWN && st.Reason != ""
}

func wantIs(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("error is %v, want %v", err, target)
	}
}

func wantFenced(t *testing.T, err error, newest uint64) {
	t.Helper()
	var fenced *hastate.FencedError
	if !errors.As(err, &fenced) || fenced.NewestEpoch != newest {
		t.Fatalf("error is %v, want fenced by epoch %d", err, newest)
	}
}

// graceful serves svc until the test ends or stops it.
func graceful(t *testing.T, svc pb.InstanceServiceServer) (srv *grpc.Server, addr string) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv = grpc.NewServer()
	pb.RegisterInstanceServiceServer(srv, svc)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(lis)
	}()
	t.Cleanup(func() {
		srv.Stop()
		<-done
	})
	return srv, lis.Addr().String()
}

// refuses is nil if the port refuses connections.
func refuses(addr string) error {
	conn, err := net.Dial("tcp", addr)
	if err == nil {
		_ = conn.Close()
		return errors.New("it accepts connections")
	}
	return nil
}
