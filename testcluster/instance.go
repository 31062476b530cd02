// SPDX-License-Identifier: Apache-2.0

package testcluster

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Instance is a model server in this process that does what a test wants. It
// keeps the rules of InstanceService unless told otherwise.
type Instance struct {
	pb.UnimplementedInstanceServiceServer

	tb      testing.TB
	address string

	// mu guards all below.
	mu     sync.Mutex
	server *grpc.Server
	done   chan struct{}
	// changed is closed and replaced when the status changes.
	changed chan struct{}
	// hung is open while calls must not return; nil: they return.
	hung  chan struct{}
	state pb.InstanceState
	role  pb.Role
	epoch uint64
	// refuse makes Promote fail.
	refuse error
	// promoted are the epochs that were accepted, in order.
	promoted []uint64
	model    *pb.ModelRef
	inFlight uint32
}

// newInstance starts a READY model server.
func newInstance(tb testing.TB) *Instance {
	tb.Helper()
	in := &Instance{tb: tb, changed: make(chan struct{}), state: pb.InstanceState_INSTANCE_STATE_READY, role: pb.Role_ROLE_STANDBY}
	in.start(newAddress(tb))
	tb.Cleanup(in.Kill)
	return in
}

func (in *Instance) start(address string) {
	in.tb.Helper()
	var l net.Listener
	var err error
	for try := 0; ; try++ { // the port of a server that was just killed may linger
		if l, err = net.Listen("tcp", address); err == nil {
			break
		}
		if try == 100 {
			in.tb.Fatalf("start instance: %v", err)
		}
		<-time.After(10 * time.Millisecond)
	}
	server, done := grpc.NewServer(), make(chan struct{})
	pb.RegisterInstanceServiceServer(server, in)
	go func() {
		defer close(done)
		_ = server.Serve(l) // it ends with Stop
	}()
	in.mu.Lock()
	defer in.mu.Unlock()
	in.server, in.done, in.address = server, done, l.Addr().String()
}

// Address is where the server listens.
func (in *Instance) Address() string { return in.address }

// Kill ends the server as SIGKILL would: connections break, the port refuses.
func (in *Instance) Kill() {
	in.Resume()
	in.mu.Lock()
	server, done := in.server, in.done
	in.server = nil
	in.mu.Unlock()
	if server != nil {
		server.Stop()
		<-done
	}
}

// Restart starts a killed server anew: a standby that has seen no epoch.
func (in *Instance) Restart() {
	in.tb.Helper()
	in.mu.Lock()
	in.role, in.epoch, in.state = pb.Role_ROLE_STANDBY, 0, pb.InstanceState_INSTANCE_STATE_READY
	in.mu.Unlock()
	in.start(in.address)
}

// Hang lets every call hang until Resume.
func (in *Instance) Hang() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.hung == nil {
		in.hung = make(chan struct{})
		in.notify()
	}
}

// Resume ends Hang.
func (in *Instance) Resume() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.hung != nil {
		close(in.hung)
		in.hung = nil
	}
}

// SetState changes what the server says of itself.
func (in *Instance) SetState(s pb.InstanceState) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.state = s
	in.notify()
}

// RefusePromotion makes Promote fail, or not any more.
func (in *Instance) RefusePromotion(yes bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.refuse = nil
	if yes {
		// As servers say it: with a stack.
		in.refuse = status.Error(codes.Internal, "out of memory\n\tat load_weights\n\tat promote")
	}
}

// Role is what the server was last told to be.
func (in *Instance) Role() pb.Role {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.role
}

// Promoted are the epochs that Promote has accepted.
func (in *Instance) Promoted() []uint64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	return append([]uint64(nil), in.promoted...)
}

func (in *Instance) notify() {
	close(in.changed)
	in.changed = make(chan struct{})
}

// stall waits while the server hangs.
func (in *Instance) stall(ctx context.Context) error {
	in.mu.Lock()
	hung := in.hung
	in.mu.Unlock()
	if hung == nil {
		return nil
	}
	select {
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	case <-hung:
		return nil
	}
}

// GetInfo implements InstanceService.
func (in *Instance) GetInfo(ctx context.Context, _ *pb.GetInfoRequest) (*pb.GetInfoResponse, error) {
	return &pb.GetInfoResponse{Engine: "fake", Capabilities: []pb.Capability{pb.Capability_CAPABILITY_STATUS}}, in.stall(ctx)
}

// WatchStatus implements InstanceService.
func (in *Instance) WatchStatus(req *pb.WatchStatusRequest, stream grpc.ServerStreamingServer[pb.WatchStatusResponse]) error {
	every := time.Second
	if ms := req.GetIntervalMs(); ms > 0 {
		every = time.Duration(ms) * time.Millisecond
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := in.stall(stream.Context()); err != nil {
			return err
		}
		in.mu.Lock()
		changed := in.changed
		msg := &pb.WatchStatusResponse{State: in.state, Role: in.role, Epoch: in.epoch, InFlight: in.inFlight}
		if in.model != nil {
			msg.Models = []*pb.ModelRef{in.model}
		}
		in.mu.Unlock()
		if err := stream.Send(msg); err != nil {
			return err
		}
		select {
		case <-stream.Context().Done():
			return nil
		case <-changed:
		case <-tick.C:
		}
	}
}

// Promote implements InstanceService.
func (in *Instance) Promote(ctx context.Context, req *pb.PromoteRequest) (*pb.PromoteResponse, error) {
	if err := in.stall(ctx); err != nil {
		return nil, err
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if req.GetEpoch() < in.epoch || req.GetEpoch() == in.epoch && in.role == pb.Role_ROLE_STANDBY {
		return nil, hastate.ToStatus(&hastate.FencedError{Group: req.GetGroup(), Epoch: req.GetEpoch(), NewestEpoch: in.epoch})
	}
	if in.refuse != nil {
		return nil, in.refuse
	}
	if req.GetEpoch() != in.epoch || in.role != pb.Role_ROLE_PRIMARY {
		in.promoted = append(in.promoted, req.GetEpoch())
		in.epoch, in.role = req.GetEpoch(), pb.Role_ROLE_PRIMARY
		in.notify()
	}
	return &pb.PromoteResponse{State: in.state, Model: req.GetModel()}, nil
}

// Demote implements InstanceService.
func (in *Instance) Demote(ctx context.Context, req *pb.DemoteRequest) (*pb.DemoteResponse, error) {
	if err := in.stall(ctx); err != nil {
		return nil, err
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if req.GetEpoch() < in.epoch {
		return nil, hastate.ToStatus(&hastate.FencedError{Group: req.GetGroup(), Epoch: req.GetEpoch(), NewestEpoch: in.epoch})
	}
	in.epoch = req.GetEpoch()
	in.role = pb.Role_ROLE_STANDBY
	in.notify()
	return &pb.DemoteResponse{State: in.state}, nil
}
