// SPDX-License-Identifier: Apache-2.0

package textserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Bounds of what a node may ask for.
const (
	minStatusInterval = 10 * time.Millisecond
	maxStatusInterval = time.Minute
	defaultDeadline   = 30 * time.Second
)

// GetInfo says what the server can do.
func (s *Server) GetInfo(ctx context.Context, _ *pb.GetInfoRequest) (*pb.GetInfoResponse, error) {
	if err := s.fault.wait(ctx); err != nil {
		return nil, hastate.ToStatus(err)
	}
	return &pb.GetInfoResponse{Engine: ModelName, EngineVersion: "1", Capabilities: []pb.Capability{
		pb.Capability_CAPABILITY_STATUS, pb.Capability_CAPABILITY_LEASE, pb.Capability_CAPABILITY_DRAIN, pb.Capability_CAPABILITY_LOAD,
	}, ClockUs: s.clock.Now().Micros()}, nil
}

// WatchStatus sends the status at once, on every change and each interval.
func (s *Server) WatchStatus(req *pb.WatchStatusRequest, stream grpc.ServerStreamingServer[pb.WatchStatusResponse]) error {
	interval := time.Duration(req.GetIntervalMs()) * time.Millisecond
	if interval == 0 {
		interval = time.Second
	}
	tick := time.NewTicker(min(max(interval, minStatusInterval), maxStatusInterval))
	defer tick.Stop()
	for {
		if err := s.fault.wait(stream.Context()); err != nil {
			return hastate.ToStatus(err)
		}
		st, changed := s.role.status()
		st.StepsTotal, st.ClockUs = s.steps.Load(), s.clock.Now().Micros()
		if ref := s.ref(); ref != nil {
			st.Models = []*pb.ModelRef{ref}
		}
		if err := stream.Send(st); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-stream.Context().Done():
			return hastate.ToStatus(stream.Context().Err())
		}
	}
}

// Load succeeds for the one model that there is.
func (s *Server) Load(ctx context.Context, req *pb.LoadRequest) (*pb.LoadResponse, error) {
	if err := s.fault.wait(ctx); err != nil {
		return nil, hastate.ToStatus(err)
	}
	if err := s.checkModel(req.GetModel()); err != nil {
		return nil, hastate.ToStatus(err)
	}
	st, _ := s.role.status()
	return &pb.LoadResponse{State: st.GetState()}, nil
}

// checkModel refuses a model that is not ours.
func (s *Server) checkModel(asked *pb.ModelRef) error {
	ref := s.ref()
	if ref == nil {
		return fmt.Errorf("%w: %w: ask again", hastate.ErrPrecondition, errLoading)
	}
	if d := asked.GetDigest(); d != "" && d != ref.GetDigest() {
		return fmt.Errorf("%w: this server has the model %s only, not %s", hastate.ErrPrecondition, ref.GetDigest(), d)
	}
	return nil
}

// checkOrder refuses what is not for this server.
func (s *Server) checkOrder(group string, epoch uint64) error {
	if epoch == 0 {
		return fmt.Errorf("%w: the epoch is missing", hastate.ErrInvalid)
	}
	if group != "" && group != s.cfg.Group {
		return fmt.Errorf("%w: this server is of group %q, not %q", hastate.ErrInvalid, s.cfg.Group, group)
	}
	return nil
}

// Promote makes the server the primary, or renews its lease.
func (s *Server) Promote(ctx context.Context, req *pb.PromoteRequest) (*pb.PromoteResponse, error) {
	received := s.clock.Now() // before anything that may take time
	if err := s.promote(ctx, req); err != nil {
		return nil, hastate.ToStatus(err)
	}
	lease := time.Duration(req.GetLeaseMs()) * time.Millisecond
	from, err := leaseFrom(req.GetClockUs(), received)
	if err == nil {
		err = s.role.promote(req.GetEpoch(), from, lease)
	}
	if err != nil {
		return nil, hastate.ToStatus(err)
	}
	st, _ := s.role.status()
	return &pb.PromoteResponse{State: st.GetState(), Model: s.ref(), ClockUs: s.clock.Now().Micros()}, nil
}

// leaseFrom is from when a lease counts: from what our clock showed when the node heard
// of it, since the order may have been under way for longer than the lease.
func leaseFrom(reading uint64, received clock.Instant) (clock.Instant, error) {
	if reading == 0 {
		return received, nil
	}
	from := clock.FromMicros(reading)
	if from > received {
		return 0, fmt.Errorf("%w: clock_us is %v ahead of this server's clock: it was another server's", hastate.ErrPrecondition, from.Sub(received))
	}
	return from, nil
}

// promote checks an order and, unless it only renews, tests the model.
func (s *Server) promote(ctx context.Context, req *pb.PromoteRequest) error {
	if err := s.fault.wait(ctx); err != nil {
		return err
	}
	if err := s.checkOrder(req.GetGroup(), req.GetEpoch()); err != nil {
		return err
	}
	renewal, err := s.role.admit(req.GetEpoch())
	if err != nil {
		return err
	}
	if err := s.checkModel(req.GetModel()); err != nil || renewal {
		return err
	}
	if s.model().Speak(s.cfg.Seed, "self-test").Next(nil) == "" {
		return errors.New("the self-test produced no token")
	}
	s.steps.Add(1)
	s.log.Info("textserver: promoted", "epoch", req.GetEpoch(), "lease_ms", req.GetLeaseMs())
	return nil
}

// Demote ends primaryship. When it succeeds no request is left under the epoch.
func (s *Server) Demote(ctx context.Context, req *pb.DemoteRequest) (*pb.DemoteResponse, error) {
	if err := s.fault.wait(ctx); err != nil {
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
	if err := s.role.demote(ctx, req.GetEpoch(), grace); err != nil {
		return nil, hastate.ToStatus(err)
	}
	s.log.Info("textserver: demoted", "epoch", req.GetEpoch())
	st, _ := s.role.status()
	return &pb.DemoteResponse{State: st.GetState()}, nil
}

// Drain takes no more requests and reports until the running ones are done. If
// the caller goes away or the deadline passes first, requests are taken again.
func (s *Server) Drain(req *pb.DrainRequest, stream grpc.ServerStreamingServer[pb.DrainResponse]) error {
	if err := s.fault.wait(stream.Context()); err != nil {
		return hastate.ToStatus(err)
	}
	deadline := time.Duration(req.GetDeadlineMs()) * time.Millisecond
	if deadline == 0 {
		deadline = defaultDeadline
	}
	ctx, cancel := context.WithTimeout(stream.Context(), deadline)
	defer cancel()
	err := s.role.drain(ctx, func(working int) error {
		return stream.Send(&pb.DrainResponse{InFlight: uint32(working)})
	})
	if err != nil {
		return hastate.ToStatus(err)
	}
	return stream.Send(&pb.DrainResponse{Done: true})
}
