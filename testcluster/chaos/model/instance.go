// SPDX-License-Identifier: Apache-2.0

package model

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

const (
	minStatusInterval = 10 * time.Millisecond
	maxStatusInterval = time.Minute
	defaultDeadline   = 30 * time.Second

	// What a saturated server reports besides its true requests.
	saturatedInFlight, saturatedQueued = 64, 256
	// lieBy is how far a lie about the epoch goes.
	lieBy = 1000
)

// GetInfo says what the server can do.
func (s *server) GetInfo(ctx context.Context, _ *pb.GetInfoRequest) (*pb.GetInfoResponse, error) {
	if err := s.faults.wait(ctx); err != nil {
		return nil, hastate.ToStatus(err)
	}
	return &pb.GetInfoResponse{Engine: "chaos-model", EngineVersion: "1", Capabilities: []pb.Capability{
		pb.Capability_CAPABILITY_STATUS, pb.Capability_CAPABILITY_LEASE, pb.Capability_CAPABILITY_DRAIN, pb.Capability_CAPABILITY_LOAD,
	}, ClockUs: s.clockMicros()}, nil
}

// Load has nothing to do.
func (s *server) Load(ctx context.Context, _ *pb.LoadRequest) (*pb.LoadResponse, error) {
	if err := s.faults.wait(ctx); err != nil {
		return nil, hastate.ToStatus(err)
	}
	return &pb.LoadResponse{State: pb.InstanceState_INSTANCE_STATE_READY}, nil
}

// WatchStatus sends the status at once, on every change and each interval.
func (s *server) WatchStatus(req *pb.WatchStatusRequest, stream grpc.ServerStreamingServer[pb.WatchStatusResponse]) error {
	interval := time.Duration(req.GetIntervalMs()) * time.Millisecond
	if interval == 0 {
		interval = time.Second
	}
	tick := time.NewTicker(min(max(interval, minStatusInterval), maxStatusInterval))
	defer tick.Stop()
	for {
		if err := s.faults.wait(stream.Context()); err != nil {
			return hastate.ToStatus(err)
		}
		st, leaseChanged, faultsChanged := s.status()
		if err := stream.Send(st); err != nil {
			return err
		}
		sent := time.Now()
		select {
		case <-leaseChanged:
		case <-faultsChanged:
		case <-tick.C:
		case <-stream.Context().Done():
			return hastate.ToStatus(stream.Context().Err())
		}
		if !s.breathe(stream.Context(), sent) {
			return hastate.ToStatus(stream.Context().Err())
		}
	}
}

// breathe bounds the rate of status messages, of which one was sent at sent: every
// request changes the status. A fault may hold the next one up for longer. It
// returns false when ctx ends.
func (s *server) breathe(ctx context.Context, sent time.Time) bool {
	for wait := minStatusInterval; wait > 0; {
		f, changed := s.faults.get()
		late := time.Until(sent.Add(time.Duration(f.StatusMS) * time.Millisecond))
		timer := time.NewTimer(max(wait, late))
		select {
		case <-timer.C:
			wait = 0
		case <-changed: // it may be in a hurry now
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return false
		}
	}
	return true
}

// status is how the server says that it stands, and when that changes.
func (s *server) status() (st *pb.WatchStatusResponse, leaseChanged, faultsChanged <-chan struct{}) {
	f, faultsChanged := s.faults.get()
	_, now := s.now()
	is := s.lease.standing(now)
	st = &pb.WatchStatusResponse{
		State: pb.InstanceState_INSTANCE_STATE_READY, Role: pb.Role_ROLE_STANDBY, Epoch: is.epoch, InFlight: uint32(is.working),
		ClockUs: now.Micros(),
	}
	if is.primary {
		st.Role = pb.Role_ROLE_PRIMARY
	}
	if is.draining {
		st.State, st.Reason = pb.InstanceState_INSTANCE_STATE_DRAINING, errDraining.Error()
	}
	if f.LieEpoch {
		st.Role, st.Epoch = pb.Role_ROLE_PRIMARY, st.GetEpoch()+lieBy
	}
	if f.Saturated {
		s.steps.Add(1) // for what is queued
		st.InFlight, st.Queued = st.GetInFlight()+saturatedInFlight, saturatedQueued
	}
	st.StepsTotal = s.steps.Load()
	return st, is.changed, faultsChanged
}

// checkOrder refuses what is not for this server.
func (s *server) checkOrder(group string, epoch uint64) error {
	if epoch == 0 {
		return fmt.Errorf("%w: the epoch is missing", hastate.ErrInvalid)
	}
	if group != "" && group != s.cfg.group {
		return fmt.Errorf("%w: this server is of group %q, not %q", hastate.ErrInvalid, s.cfg.group, group)
	}
	return nil
}

// Promote makes the server the primary, or renews its lease, which is counted from
// what its clock had shown before the node worked it out, however late the call comes
// and however long it takes.
func (s *server) Promote(ctx context.Context, req *pb.PromoteRequest) (*pb.PromoteResponse, error) {
	_, from := s.now()
	if us := req.GetClockUs(); us != 0 {
		if clock.FromMicros(us) > from {
			return nil, hastate.ToStatus(fmt.Errorf("%w: clock_us is ahead of this server's clock", hastate.ErrPrecondition))
		}
		from = clock.FromMicros(us)
	}
	if err := s.promote(ctx, req, from); err != nil {
		return nil, hastate.ToStatus(err)
	}
	return &pb.PromoteResponse{State: pb.InstanceState_INSTANCE_STATE_READY, ClockUs: s.clockMicros()}, nil
}

func (s *server) clockMicros() uint64 {
	_, shown := s.now()
	return shown.Micros()
}

// promote does not care whether its caller still waits: few servers do.
func (s *server) promote(ctx context.Context, req *pb.PromoteRequest, from clock.Instant) error {
	if err := s.faults.wait(s.life); err != nil {
		return err
	}
	if err := s.checkOrder(req.GetGroup(), req.GetEpoch()); err != nil {
		return err
	}
	if req.GetLeaseMs() == 0 {
		return fmt.Errorf("%w: lease_ms is missing: this server counts its lease", hastate.ErrInvalid)
	}
	_, now := s.now()
	running, err := s.lease.admit(req.GetEpoch(), now)
	if err != nil {
		return err
	}
	if !running {
		if f, _ := s.faults.get(); f.Promote == PromoteIgnore {
			return nil
		}
		if err := s.trouble(ctx); err != nil {
			return err
		}
	}
	at, now := s.now()
	return s.lease.promote(req.GetEpoch(), from, now, time.Duration(req.GetLeaseMs())*time.Millisecond, func() error {
		return s.promotions.Write(record.Promotion{Node: s.cfg.node, Group: s.cfg.group, Epoch: req.GetEpoch(), At: at})
	})
}

// trouble is what befalls the promotion of a new epoch.
func (s *server) trouble(ctx context.Context) error {
	if s.faults.takeCrash() {
		s.crash <- struct{}{}
		<-ctx.Done() // it is not answered: the connection breaks
		return ctx.Err()
	}
	switch f, _ := s.faults.get(); f.Promote {
	case PromoteRefuse:
		return errors.New("out of memory, as it was told")
	case PromoteSlow:
		timer := time.NewTimer(time.Duration(f.SlowMS) * time.Millisecond)
		defer timer.Stop()
		select {
		case <-timer.C: // whether ctx has ended or not
			return nil
		case <-s.life.Done():
			return s.life.Err()
		}
	}
	return nil
}

// Demote ends primaryship. When it succeeds no request is left under the epoch.
func (s *server) Demote(ctx context.Context, req *pb.DemoteRequest) (*pb.DemoteResponse, error) {
	if err := s.faults.wait(ctx); err != nil {
		return nil, hastate.ToStatus(err)
	}
	if err := s.checkOrder(req.GetGroup(), req.GetEpoch()); err != nil {
		return nil, hastate.ToStatus(err)
	}
	grace := time.Duration(0)
	if req.GetMode() == pb.DemoteMode_DEMOTE_MODE_DRAIN {
		if grace = time.Duration(req.GetDeadlineMs()) * time.Millisecond; grace == 0 {
			grace = defaultDeadline
		}
	}
	if err := s.lease.demote(ctx, req.GetEpoch(), grace); err != nil {
		return nil, hastate.ToStatus(err)
	}
	return &pb.DemoteResponse{State: pb.InstanceState_INSTANCE_STATE_READY}, nil
}

// Drain takes no more requests and reports until the running ones are done. If the
// caller goes away or the deadline passes first, requests are taken again.
func (s *server) Drain(req *pb.DrainRequest, stream grpc.ServerStreamingServer[pb.DrainResponse]) error {
	if err := s.faults.wait(stream.Context()); err != nil {
		return hastate.ToStatus(err)
	}
	deadline := time.Duration(req.GetDeadlineMs()) * time.Millisecond
	if deadline == 0 {
		deadline = defaultDeadline
	}
	ctx, cancel := context.WithTimeout(stream.Context(), deadline)
	defer cancel()
	err := s.lease.drain(ctx, func(working int) error {
		return stream.Send(&pb.DrainResponse{InFlight: uint32(working)})
	})
	if err != nil {
		return hastate.ToStatus(err)
	}
	return stream.Send(&pb.DrainResponse{Done: true})
}
