// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// InstallSnapshot implements raft.Transport. It has no total deadline: it may
// take as long as there is progress. Like an append it waits for a peer that
// cannot be reached.
func (t *Transport) InstallSnapshot(id raft.ServerID, _ raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if !t.opts.Serving() {
		return errWithheld
	}
	p, err := t.peer(id)
	if err != nil {
		return err
	}
	ctx, end := t.watch.lead(p.ctx, args.Term)
	defer end()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &snapshotSender{p: p, cancel: cancel, size: args.Size}

	stream, sentAt, err := s.open(ctx, args)
	if err != nil {
		return err
	}
	r, err := s.run(stream, data)
	if err == nil {
		err = p.checkSender(r)
	}
	if err := p.settle(ctx, "install a snapshot", sentAt, err); err != nil {
		return err
	}
	// The peer compared the terms before it took the snapshot, so after sentAt.
	t.evidence.appended(id, args.Term, r.Term, sentAt)
	*resp = *r
	return nil
}

type snapshotStream = grpc.ClientStreamingClient[pb.InstallSnapshotRequest, pb.InstallSnapshotResponse]

type snapshotSender struct {
	p      *peer
	cancel context.CancelCauseFunc
	size   int64
}

// within cancels the call unless stop is called in time.
func (s *snapshotSender) within(d time.Duration, what string) (stop func() bool) {
	return time.AfterFunc(d, func() {
		s.cancel(fmt.Errorf("%s: %w within %v", what, errNoProgress, d))
	}).Stop
}

// open starts a stream and sends its header.
func (s *snapshotSender) open(ctx context.Context, args *raft.InstallSnapshotRequest) (snapshotStream, clock.Instant, error) {
	park, cancel := context.WithTimeoutCause(ctx, s.p.t.opts.ParkLimit, errAway)
	defer cancel()
	for {
		if err := s.p.park(park, snapshotConn); err != nil {
			return nil, 0, fmt.Errorf("install a snapshot on node %s: %w", s.p.id, err)
		}
		sentAt := s.p.t.opts.Clock.Now()
		stop := s.within(s.p.t.opts.SnapshotIdle, "open the stream")
		stream, err := s.p.clients[snapshotConn].InstallSnapshot(ctx)
		if err == nil {
			err = stream.Send(&pb.InstallSnapshotRequest{Part: &pb.InstallSnapshotRequest_Header{Header: snapshotRequestToProto(args)}})
		}
		stop()
		if err == nil || errors.Is(err, io.EOF) { // run learns why it has ended
			return stream, sentAt, nil
		}
		away := status.Code(err) == codes.Unavailable
		err = s.p.settle(ctx, "install a snapshot", sentAt, err)
		if !away || ctx.Err() != nil {
			return nil, 0, err
		}
	}
}

// run sends the data and waits for the answer.
func (s *snapshotSender) run(stream snapshotStream, data io.Reader) (*raft.InstallSnapshotResponse, error) {
	if err := s.sendData(stream, data); err != nil && !errors.Is(err, errAnswered) {
		return nil, err
	}
	stop := s.within(s.p.t.opts.SnapshotRestore, "wait for the peer to restore")
	defer stop()
	out, err := stream.CloseAndRecv()
	if err != nil {
		return nil, err
	}
	return snapshotResponseFromProto(out)
}

// errNoProgress ends a call whose next step took too long.
var errNoProgress = errors.New("no progress")

// errAnswered means that the peer has ended the stream: its answer says why.
var errAnswered = errors.New("the peer has answered already")

// sendData sends all of data, which must be as long as was announced.
func (s *snapshotSender) sendData(stream snapshotStream, data io.Reader) error {
	var total int64
	for {
		// A new buffer each time: gRPC may still look at the last one.
		buf := make([]byte, MaxChunkBytes)
		n, readErr := fill(data, buf)
		if n > 0 {
			total += int64(n)
			stop := s.within(s.p.t.opts.SnapshotIdle, "send a part")
			err := stream.Send(&pb.InstallSnapshotRequest{Part: &pb.InstallSnapshotRequest_Chunk{Chunk: buf[:n]}})
			stop()
			if errors.Is(err, io.EOF) {
				return errAnswered
			}
			if err != nil {
				return err
			}
		}
		switch {
		case errors.Is(readErr, io.EOF) && total != s.size:
			return fmt.Errorf("the snapshot has %d bytes, but %d were announced", total, s.size)
		case errors.Is(readErr, io.EOF):
			return nil
		case readErr != nil:
			return fmt.Errorf("read the snapshot: %w", readErr)
		case total > s.size:
			return fmt.Errorf("the snapshot has more than the %d bytes that were announced", s.size)
		}
	}
}

// fill reads until buf is full or the reader ends. Unlike io.ReadFull it returns
// the reader's own error.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}
