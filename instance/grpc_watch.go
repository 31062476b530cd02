// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const (
	// minRetry and maxRetry bound the wait between two attempts to connect. The
	// first is short because the port of a process that is being killed may
	// accept for a moment longer.
	minRetry = 2 * time.Millisecond
	maxRetry = 250 * time.Millisecond
	// deadStream is how many intervals of silence end a stream, so that a
	// connection whose other side has vanished is made anew.
	deadStream = 10
)

// errNoStatus ends a stream over which nothing comes, from this side.
var errNoStatus = errors.New("no status")

func (g *grpcInstance) Watch(ctx context.Context, report func(Status)) error {
	v := &view{interval: g.cfg.Interval, failAfter: g.cfg.FailAfter, bySilence: true}
	return watch(ctx, v, report, g.feed)
}

// feed looks at the port first and then holds a stream, over and over: when the
// stream breaks, the port tells at once whether the process is gone. gRPC's own
// reconnecting would wait out its back-off.
func (g *grpcInstance) feed(ctx context.Context, emit func(event) bool) {
	retry, broken := minRetry, ""
	for {
		where, err := look(ctx, g.cfg.Target, g.cfg.Timeout)
		switch where {
		case refused:
			g.forget()
			broken = ""
			if !emit(g.absent(err)) {
				return
			}
		case unclear:
			if !emit(event{kind: failed, reason: text(err.Error())}) {
				return
			}
		case accepted:
			if broken != "" && !emit(event{kind: failed, reason: broken}) {
				return
			}
			answered, begun := false, time.Now()
			err = g.session(ctx, func(e event) bool {
				answered = answered || e.kind != failed
				return emit(e)
			})
			if ctx.Err() != nil {
				return
			}
			broken = text(err.Error())
			g.cfg.Logger.Debug("instance: connection ended", "target", g.cfg.Target, "error", err)
			if answered && time.Since(begun) >= g.cfg.Interval {
				retry = minRetry
				continue // without a pause: most likely it was killed just now
			}
		}
		if !pause(ctx, retry, nil) {
			return
		}
		retry = min(2*retry, maxRetry, max(g.cfg.Interval, minRetry))
	}
}

// absent is what a port that refuses connections says, err: that the process is gone,
// if Watch has seen it end.
func (g *grpcInstance) absent(err error) event {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.witnessed {
		return event{kind: gone, reason: text(err.Error())}
	}
	return event{kind: failed, reason: text(err.Error())}
}

// session is the life of one connection. It never returns nil.
func (g *grpcInstance) session(ctx context.Context, emit func(event) bool) (err error) {
	conn, err := g.dial()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // all its calls have ended
	client := pb.NewInstanceServiceClient(conn)
	info, err := g.getInfo(ctx, client)
	if err != nil {
		return err
	}
	end, word := g.setLive(), false
	defer func() { end(word && ctx.Err() == nil && !errors.Is(err, errNoStatus)) }()
	pass := emit
	emit = func(e event) bool {
		word = word || e.kind == heard
		return pass(e)
	}
	if info.Has(pb.Capability_CAPABILITY_STATUS) {
		err = g.stream(ctx, client, emit)
		if status.Code(err) != codes.Unimplemented {
			return err
		}
		g.cfg.Logger.Warn("instance: declares STATUS and does not implement WatchStatus", "target", g.cfg.Target)
	}
	return g.poll(ctx, conn, emit)
}

// setLive notes that there is a connection; the returned function, that there is none any
// more, and whether the server, which was heard over it, has ended it.
func (g *grpcInstance) setLive() (end func(witnessed bool)) {
	live := make(chan struct{})
	g.mu.Lock()
	defer g.mu.Unlock()
	g.live, g.witnessed = live, false
	return func(witnessed bool) {
		g.mu.Lock()
		defer g.mu.Unlock()
		close(live)
		g.witnessed = witnessed
		if g.live == live {
			g.live = nil
		}
	}
}

// stream passes on what WatchStatus sends.
func (g *grpcInstance) stream(ctx context.Context, client pb.InstanceServiceClient, emit func(event) bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	patience := time.Duration(max(deadStream, 2*g.cfg.FailAfter)) * g.cfg.Interval
	watchdog := time.AfterFunc(patience, func() { cancel(fmt.Errorf("%w for %v", errNoStatus, patience)) })
	defer watchdog.Stop()
	stream, err := client.WatchStatus(ctx, &pb.WatchStatusRequest{IntervalMs: g.intervalMillis()})
	if err != nil {
		return err
	}
	for {
		msg, err := stream.Recv()
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			if errors.Is(err, io.EOF) {
				return errors.New("the server ended the status stream")
			}
			return err
		}
		watchdog.Reset(patience)
		g.heardClock(msg.GetClockUs())
		if !emit(event{kind: heard, status: statusOf(msg)}) {
			return ctx.Err()
		}
	}
}

// poll asks for the health once an interval, and at once when the connection
// breaks.
func (g *grpcInstance) poll(ctx context.Context, conn *grpc.ClientConn, emit func(event) bool) error {
	for {
		e := g.health(ctx, conn)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if e.kind == failed && conn.GetState() != connectivity.Ready {
			return errors.New(e.reason)
		}
		if !emit(e) {
			return ctx.Err()
		}
		next, cancel := context.WithTimeout(ctx, g.cfg.Interval)
		broke := conn.WaitForStateChange(next, connectivity.Ready)
		cancel()
		if broke {
			return errors.New("the connection was closed")
		}
	}
}

// health asks grpc.health.v1, and GetInfo of a server that has no health
// service.
func (g *grpcInstance) health(ctx context.Context, conn *grpc.ClientConn) event {
	ctx, cancel := context.WithTimeout(ctx, g.cfg.Timeout)
	defer cancel()
	resp, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	ready := event{kind: heard, status: Status{State: pb.InstanceState_INSTANCE_STATE_READY}}
	switch {
	case err == nil && resp.GetStatus() == healthpb.HealthCheckResponse_SERVING:
		return ready
	case err == nil:
		return event{kind: unready, reason: "health service says " + resp.GetStatus().String()}
	case status.Code(err) == codes.Unimplemented:
		ready.status.Reason = "has no health service, but answers"
		_, err = pb.NewInstanceServiceClient(conn).GetInfo(ctx, &pb.GetInfoRequest{})
		if err == nil || status.Code(err) == codes.Unimplemented {
			return ready
		}
	}
	return event{kind: failed, reason: text(err.Error())}
}

// statusOf checks and bounds what a server sent.
func statusOf(msg *pb.WatchStatusResponse) Status {
	st := Status{
		State: msg.GetState(), Role: msg.GetRole(), InFlight: msg.GetInFlight(), Queued: msg.GetQueued(),
		Steps: msg.GetStepsTotal(), Epoch: msg.GetEpoch(), Reason: text(msg.GetReason()),
	}
	for _, m := range msg.GetModels()[:min(len(msg.GetModels()), maxModels)] {
		st.Models = append(st.Models, modelOf(m))
	}
	if len(st.Models) > 0 {
		st.Model = st.Models[0]
	}
	if _, known := pb.InstanceState_name[int32(st.State)]; !known || st.State == pb.InstanceState_INSTANCE_STATE_UNSPECIFIED {
		// It answers; more cannot be said of a state that we do not know.
		st.Reason = text(fmt.Sprintf("reported the unknown state %d: %s", msg.GetState(), st.Reason))
		st.State = pb.InstanceState_INSTANCE_STATE_LIVE
	}
	return st
}

// modelOf makes a model that a server named one that the log takes: with another,
// nothing that the node reports of the instance would be written. A name or digest
// that had to be changed is no model's.
func modelOf(m *pb.ModelRef) *pb.ModelRef {
	return &pb.ModelRef{
		Name: bounded(m.GetName(), hastate.MaxNameBytes), Version: bounded(m.GetVersion(), hastate.MaxNameBytes),
		Digest: bounded(m.GetDigest(), hastate.MaxTextBytes),
	}
}
