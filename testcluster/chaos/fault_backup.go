// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const (
	// maxBackup bounds the archive of a run's state.
	maxBackup = 64 << 20
	// backupChunk is how much of it is sent at once.
	backupChunk = 64 << 10
)

// damagedBackup restores a backup of which bits were flipped, and which is older
// than what was acknowledged meanwhile. It must be refused and change nothing: the
// histories would show a state that went back.
func damagedBackup(ctx context.Context, s *stage, d *draw) (broken, error) {
	b := broken{what: "a damaged backup is restored", hold: d.lease / 2}
	archive, err := s.saveBackup(ctx)
	if err != nil {
		return b, fmt.Errorf("save a backup: %w", err)
	}
	n := 1 + d.IntN(2) // more of them would hit a record each time, which has a checksum of its own
	flipped := map[int]bool{}
	for len(flipped) < n {
		// A bit for each byte: none of them is flipped back.
		if at := d.IntN(len(archive)); !flipped[at] {
			archive[at] ^= 1 << d.IntN(8)
			flipped[at] = true
		}
	}
	b.what = fmt.Sprintf("a backup of %d bytes, of which %d bits are flipped, is restored", len(archive), n)
	b.then = func(ctx context.Context) error {
		err := s.restoreBackup(ctx, archive)
		switch {
		case err == nil:
			return errors.New("a damaged backup was restored")
		case errors.Is(err, hastate.ErrInvalid), errors.Is(err, hastate.ErrPrecondition): // also: a newer format
			return nil
		}
		return err
	}
	return b, nil
}

func (s *stage) saveBackup(ctx context.Context) (archive []byte, err error) {
	err = s.call(ctx, client.Repeatable, moveTimeout, func(ctx context.Context, cc grpc.ClientConnInterface) error {
		archive = nil
		stream, err := pb.NewClusterServiceClient(cc).SaveSnapshot(ctx, &pb.SaveSnapshotRequest{})
		if err != nil {
			return err
		}
		for {
			msg, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if archive = append(archive, msg.GetChunk()...); len(archive) > maxBackup {
				return fmt.Errorf("the backup has more than %d bytes", maxBackup)
			}
		}
	})
	if err == nil && len(archive) == 0 {
		err = errors.New("the backup is empty")
	}
	return archive, err
}

func (s *stage) restoreBackup(ctx context.Context, archive []byte) error {
	return s.order(ctx, moveTimeout, func(ctx context.Context, cc grpc.ClientConnInterface) error {
		stream, err := pb.NewClusterServiceClient(cc).RestoreSnapshot(ctx)
		if err != nil {
			return err
		}
		for rest := archive; len(rest) > 0; {
			n := min(len(rest), backupChunk)
			if err := stream.Send(&pb.RestoreSnapshotRequest{Chunk: rest[:n]}); errors.Is(err, io.EOF) {
				break // it was answered before its end
			} else if err != nil {
				return err
			}
			rest = rest[n:]
		}
		_, err = stream.CloseAndRecv()
		return err
	})
}
