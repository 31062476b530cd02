// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// archiveChunkBytes is the size of one message of an archive.
const archiveChunkBytes = 256 << 10

func (a *app) snapshotCmd() *cobra.Command {
	save := &cobra.Command{
		Use: "save FILE", Short: "Save the whole state into a new file", Args: cobra.ExactArgs(1),
		Long: `Save the whole state into a new file. --timeout (default 10s) is how long to wait
for its first byte; the transfer itself may take 10 minutes more.`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.saveSnapshot(cmd, args[0]) },
	}
	var yes bool
	restore := &cobra.Command{
		Use: "restore FILE", Short: "Replace sessions, groups and models by those of an archive", Args: cobra.ExactArgs(1),
		Long: `Replace the sessions, groups and models of the cluster by those of an archive.
Members and the id of the cluster stay.`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.restoreSnapshot(cmd, args[0], yes) },
	}
	restore.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return noun("snapshot", "Save, restore and inspect archives of the state", save, restore, a.snapshotInspectCmd())
}

func (a *app) saveSnapshot(cmd *cobra.Command, path string) error {
	if _, err := os.Lstat(path); err == nil {
		return adviceError{fmt.Errorf("file %s: %w", path, hastate.ErrAlreadyExists), "choose another name: an archive is not overwritten"}
	}
	if dir := filepath.Dir(path); !isFolder(dir) {
		return adviceError{fmt.Errorf("folder %s does not exist: %w", dir, hastate.ErrNotFound), "make it, or choose another file"}
	}
	begin := cmp.Or(a.timeout, client.DefaultTimeout)
	a.timeout = begin + archiveTimeout
	var size int64
	err := a.with(cmd, archiveTimeout, func(ctx context.Context, c *client.Client) error {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		// Only the transfer may take long, not the wait for its first byte.
		waiting := time.AfterFunc(begin, func() { cancel(context.DeadlineExceeded) })
		defer waiting.Stop()
		// Once, because an archive may take longer than one attempt.
		return c.Call(ctx, client.Once, func(ctx context.Context, cc grpc.ClientConnInterface) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			stream, err := pb.NewClusterServiceClient(cc).SaveSnapshot(ctx, &pb.SaveSnapshotRequest{})
			if err != nil {
				return err
			}
			archive := &archiveReader{stream: stream, begun: func() { waiting.Stop() }}
			err = writeFile(path, archive, func(f *os.File) error {
				_, err := checkArchive(f)
				return err
			})
			size = archive.size
			return err
		})
	})
	if errors.Is(err, hastate.ErrOutcomeUnknown) {
		// Nothing was to be changed, so nothing is unknown.
		var unknown *hastate.OutcomeUnknownError
		text := err.Error()
		if errors.As(err, &unknown) {
			text = unknown.Reason
		}
		if size == 0 {
			text = fmt.Sprintf("no node began to send within %v: %s", begin, text)
		} else {
			text = "the transfer broke off: " + text
		}
		err = adviceError{errors.New(text), "no file was written: see hactl status, and run it again"}
	}
	if err != nil {
		return fmt.Errorf("save snapshot: %w", err)
	}
	return a.printArchive(path, size, "saved")
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func (a *app) printArchive(path string, size int64, verb string) error {
	if a.format != formatTable {
		return a.printJSON(fmt.Appendf(nil, `{"file":%q,"bytes":%d}`, filepath.ToSlash(path), size), false)
	}
	return a.printTable(func(t table) { t.line("%s: %d bytes %s", path, size, verb) })
}

// archiveReader reads an archive from the stream of a node.
type archiveReader struct {
	stream grpc.ServerStreamingClient[pb.SaveSnapshotResponse]
	begun  func() // called with the first bytes
	chunk  []byte
	size   int64
}

func (r *archiveReader) Read(p []byte) (int, error) {
	for len(r.chunk) == 0 {
		msg, err := r.stream.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) && r.size == 0 {
				return 0, io.ErrUnexpectedEOF
			}
			return 0, err // io.EOF ends it
		}
		r.chunk = msg.GetChunk()
		if r.size == 0 && len(r.chunk) > 0 {
			r.begun()
		}
		r.size += int64(len(r.chunk))
	}
	n := copy(p, r.chunk)
	r.chunk = r.chunk[n:]
	return n, nil
}

func (a *app) restoreSnapshot(cmd *cobra.Command, path string, yes bool) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	defer func() { _ = f.Close() }() // only read from
	info, err := checkArchive(f)
	if err != nil {
		return fmt.Errorf("restore snapshot %s: %w", path, err)
	}
	question := fmt.Sprintf("replace the sessions, groups and models of the cluster by those of %s (cluster %s, revision %d, written %s)?",
		path, info.Header.GetClusterId(), info.Header.GetRevision(), stamp(info.Header.GetCreatedUnixMs()))
	if err := a.confirm(yes, question); err != nil {
		return err
	}
	resp, err := call(a, cmd, client.Once, archiveTimeout,
		func(ctx context.Context, cc grpc.ClientConnInterface) (*pb.RestoreSnapshotResponse, error) {
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				return nil, err
			}
			return sendArchive(ctx, cc, bufio.NewReaderSize(f, archiveChunkBytes))
		})
	if err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	return a.print(resp, func(t table) { t.line("%d records restored", resp.GetRecords()) })
}

func sendArchive(ctx context.Context, cc grpc.ClientConnInterface, archive io.Reader) (*pb.RestoreSnapshotResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := pb.NewClusterServiceClient(cc).RestoreSnapshot(ctx)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, archiveChunkBytes)
	for {
		n, err := io.ReadFull(archive, buf)
		if n > 0 {
			// io.EOF: the node has answered early; the reply says why.
			if sendErr := stream.Send(&pb.RestoreSnapshotRequest{Chunk: buf[:n]}); errors.Is(sendErr, io.EOF) {
				break
			} else if sendErr != nil {
				return nil, sendErr
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read archive: %w", err)
		}
	}
	return stream.CloseAndRecv()
}
