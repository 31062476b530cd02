// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// checkMove checks what switchover and failover have in common.
func (s *Services) checkMove(group, to, reason string) (string, error) {
	name, err := groupName(group)
	return name, first(err,
		checkText("to", to, hastate.MaxNameBytes),
		checkText("reason", reason, hastate.MaxTextBytes))
}

func (x *groupServer) Switchover(ctx context.Context, req *pb.SwitchoverRequest) (*pb.SwitchoverResponse, error) {
	name, err := x.s.checkMove(req.GetGroup(), req.GetTo(), req.GetReason())
	if err != nil {
		return nil, err
	}
	wait, err := scheduled(req.GetAtUnixMs(), time.Now())
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, wait+moveDeadline)
		defer cancel()
	} else if wait > 0 && time.Until(deadline) < wait {
		return nil, invalid("the call's deadline ends before at_unix_ms: the call waits until then, so give it a longer one")
	}
	if err := pauseUntil(ctx, wait); err != nil {
		return nil, err
	}
	return atLeader(ctx, x.s, func(ctx context.Context) (*pb.SwitchoverResponse, error) {
		if _, _, err := x.s.group(ctx, name, pb.ReadLevel_READ_LEVEL_UNSPECIFIED); err != nil {
			return nil, err
		}
		t, err := x.s.cfg.Groups.Switchover(ctx, name, req.GetTo(), req.GetReason())
		if err != nil {
			return nil, err
		}
		return &pb.SwitchoverResponse{Transition: t}, nil
	}, func(ctx context.Context, conn *grpc.ClientConn) (*pb.SwitchoverResponse, error) {
		// The wait is over: only the rest is the leader's.
		return pb.NewGroupServiceClient(conn).Switchover(ctx, &pb.SwitchoverRequest{Group: name, To: req.GetTo(), Reason: req.GetReason()})
	})
}

// scheduled is how long to wait until a time on the wall clock.
func scheduled(atUnixMilli int64, now time.Time) (time.Duration, error) {
	if atUnixMilli == 0 {
		return 0, nil
	}
	wait := time.UnixMilli(atUnixMilli).Sub(now)
	switch {
	case atUnixMilli < 0:
		return 0, invalid("at_unix_ms must not be negative")
	case wait > MaxScheduleAhead:
		return 0, invalid("at_unix_ms is %v ahead, at most %v are possible", wait.Round(time.Second), MaxScheduleAhead)
	}
	return max(0, wait), nil
}

func pauseUntil(ctx context.Context, wait time.Duration) error {
	if wait == 0 {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (x *groupServer) Failover(ctx context.Context, req *pb.FailoverRequest) (*pb.FailoverResponse, error) {
	name, err := x.s.checkMove(req.GetGroup(), req.GetTo(), req.GetReason())
	if err != nil {
		return nil, err
	}
	return atLeader(ctx, x.s, func(ctx context.Context) (*pb.FailoverResponse, error) {
		if _, _, err := x.s.group(ctx, name, pb.ReadLevel_READ_LEVEL_UNSPECIFIED); err != nil {
			return nil, err
		}
		t, err := x.s.cfg.Groups.Failover(ctx, name, req.GetTo(), req.GetReason(), req.GetForce())
		if err != nil {
			return nil, err
		}
		return &pb.FailoverResponse{Transition: t}, nil
	}, func(ctx context.Context, conn *grpc.ClientConn) (*pb.FailoverResponse, error) {
		return pb.NewGroupServiceClient(conn).Failover(ctx, &pb.FailoverRequest{Group: name, To: req.GetTo(), Force: req.GetForce(), Reason: req.GetReason()})
	})
}
