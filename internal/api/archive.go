// SPDX-License-Identifier: Apache-2.0

package api

import (
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// maxChunk bounds the bytes of one message of an archive.
const maxChunk = 256 << 10

// SaveSnapshot streams the state of this node, once it reflects every write that
// was acknowledged before the call.
func (x *clusterServer) SaveSnapshot(_ *pb.SaveSnapshotRequest, stream pb.ClusterService_SaveSnapshotServer) error {
	if err := x.s.cfg.Reader.Read(stream.Context()); err != nil {
		return err
	}
	w := &chunkWriter{stream: stream}
	if err := x.s.cfg.Snapshots.Save(stream.Context(), w); err != nil {
		return fmt.Errorf("save snapshot: %w", err)
	}
	return w.flush()
}

// chunkWriter sends what is written in messages of maxChunk.
type chunkWriter struct {
	stream pb.ClusterService_SaveSnapshotServer
	buf    []byte
}

func (w *chunkWriter) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		n := min(len(p), maxChunk-len(w.buf))
		w.buf = append(w.buf, p[:n]...)
		p = p[n:]
		written += n
		if len(w.buf) == maxChunk {
			if err := w.flush(); err != nil {
				return written, err
			}
		}
	}
	return written, nil
}

func (w *chunkWriter) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	// Send encodes before it returns, but what it keeps is not ours to reuse.
	chunk := w.buf
	w.buf = nil
	return w.stream.Send(&pb.SaveSnapshotResponse{Chunk: chunk})
}

// RestoreSnapshot restores on the leader; any other node passes the stream on.
func (x *clusterServer) RestoreSnapshot(stream pb.ClusterService_RestoreSnapshotServer) error {
	ctx := stream.Context()
	id, local := x.s.leader()
	if local {
		records, err := x.s.cfg.Snapshots.Restore(ctx, &chunkReader{stream: stream})
		if err != nil {
			return fmt.Errorf("restore snapshot: %w", err)
		}
		return stream.SendAndClose(&pb.RestoreSnapshotResponse{Records: records})
	}
	if id == "" || string(id) == x.s.cfg.NodeID || wasForwarded(ctx) {
		return x.s.notLeader()
	}
	conn, err := x.s.cfg.Peers.Conn(id)
	if err != nil {
		return fmt.Errorf("reach the leader %s: %w: %w", id, err, x.s.notLeader())
	}
	res, err := passOn(stream, conn)
	if err = fromLeader(id, err); err != nil {
		return err
	}
	return stream.SendAndClose(res)
}

func passOn(stream pb.ClusterService_RestoreSnapshotServer, conn *grpc.ClientConn) (*pb.RestoreSnapshotResponse, error) {
	to, err := pb.NewClusterServiceClient(conn).RestoreSnapshot(markForwarded(stream.Context()))
	if err != nil {
		return nil, err
	}
	for {
		msg, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return to.CloseAndRecv()
		}
		if err != nil {
			return nil, err // the context of the stream ends with the handler
		}
		if err := to.Send(msg); err != nil {
			return to.CloseAndRecv()
		}
	}
}

// chunkReader reads the bytes of an incoming archive.
type chunkReader struct {
	stream pb.ClusterService_RestoreSnapshotServer
	rest   []byte
}

func (r *chunkReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		msg, err := r.stream.Recv()
		if err != nil {
			return 0, err
		}
		if n := len(msg.GetChunk()); n > maxChunk {
			return 0, &hastate.LimitError{Limit: "bytes of a chunk", Maximum: maxChunk, Actual: uint64(n)}
		}
		r.rest = msg.GetChunk()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
