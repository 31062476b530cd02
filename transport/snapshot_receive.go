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

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// InstallSnapshot hands a snapshot to the Raft node, which reads it in its main
// loop.
func (s *service) InstallSnapshot(stream grpc.ClientStreamingServer[pb.InstallSnapshotRequest, pb.InstallSnapshotResponse]) error {
	ctx := stream.Context()
	from, err := s.t.admit(ctx, true)
	if err != nil {
		return err
	}
	parts := make(chan snapshotPart, 1)
	// The goroutine ends with the stream's context, which gRPC ends when this
	// function returns.
	if !s.t.start(func() { receiveSnapshot(stream, parts) }) {
		return s.t.stopping()
	}
	reader := &snapshotReader{ctx: ctx, stop: s.t.ctx, parts: parts, idle: s.t.opts.SnapshotIdle}
	first, err := reader.part()
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	r, err := snapshotRequestFromProto(first.GetHeader())
	if err == nil && r.SnapshotVersion > 0 {
		err = checkConfiguration(r.Configuration)
	}
	if err != nil {
		return invalid(err)
	}
	if err := checkHeader(from, r); err != nil {
		return err
	}
	reader.left = r.Size
	resp, err := as[*raft.InstallSnapshotResponse](s.t.handOver(ctx, r, reader))
	if err != nil {
		return err
	}
	return stream.SendAndClose(snapshotResponseToProto(resp))
}

// snapshotPart is a message of the stream, or why there are no more.
type snapshotPart struct {
	msg *pb.InstallSnapshotRequest
	err error // io.EOF: the sender is done
}

func receiveSnapshot(stream grpc.ClientStreamingServer[pb.InstallSnapshotRequest, pb.InstallSnapshotResponse], parts chan<- snapshotPart) {
	for {
		msg, err := stream.Recv()
		select {
		case parts <- snapshotPart{msg: msg, err: err}:
		case <-stream.Context().Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// snapshotReader is the data of a snapshot. The main loop of Raft is blocked in
// Read, so Read returns with an error when nothing comes for a while. An error
// stays: Raft reads on after one, to drain the stream.
type snapshotReader struct {
	ctx   context.Context // of the stream
	stop  context.Context // of the transport
	parts <-chan snapshotPart
	idle  time.Duration
	left  int64  // announced and not yet received
	rest  []byte // received and not yet read
	err   error
}

func (r *snapshotReader) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for len(r.rest) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		r.rest, r.err = r.chunk()
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *snapshotReader) chunk() ([]byte, error) {
	msg, err := r.part()
	switch {
	case errors.Is(err, io.EOF) && r.left > 0:
		return nil, fmt.Errorf("the snapshot ends %d bytes before its announced size: %w", r.left, io.ErrUnexpectedEOF)
	case err != nil:
		return nil, err
	}
	data := msg.GetChunk()
	switch {
	case len(data) == 0:
		return nil, errors.New("a part of the snapshot has no data")
	case len(data) > MaxChunkBytes:
		return nil, fmt.Errorf("a part of the snapshot has %d bytes, the limit is %d", len(data), MaxChunkBytes)
	case int64(len(data)) > r.left:
		return nil, errors.New("the snapshot is longer than announced")
	}
	r.left -= int64(len(data))
	return data, nil
}

// part waits for the next message. io.EOF: the sender is done.
func (r *snapshotReader) part() (*pb.InstallSnapshotRequest, error) {
	timer := time.NewTimer(r.idle)
	defer timer.Stop()
	select {
	case p := <-r.parts:
		if p.err == nil || errors.Is(p.err, io.EOF) {
			return p.msg, p.err
		}
		return nil, fmt.Errorf("receive a part of the snapshot: %w", p.err)
	case <-timer.C:
		return nil, status.Errorf(codes.DeadlineExceeded, "no part of the snapshot came within %v", r.idle)
	case <-r.ctx.Done():
		return nil, status.FromContextError(r.ctx.Err()).Err()
	case <-r.stop.Done():
		return nil, status.Error(codes.Unavailable, "stopping")
	}
}
