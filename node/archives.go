// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/fsm"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/snapshot"
)

// source gives the snapshot store the state file.
type source struct{ m *fsm.Machine }

// BeginStream flushes the state and begins to read it.
func (s source) BeginStream() (snapshot.Stream, error) {
	st, err := s.m.BeginStream()
	if err != nil {
		return nil, err
	}
	return stream{st}, nil
}

// stream gives a StateStream the form that the snapshot store asks for.
type stream struct{ *fsm.StateStream }

func (s stream) Position() snapshot.Position {
	return snapshot.Position{Index: s.Index, Term: s.Term, Revision: s.Revision, Size: s.Size, ClusterID: s.ClusterID}
}

// archives saves and restores the whole state for an operator.
type archives struct{ n *Node }

// Save writes an archive of the state as this node has applied it.
func (a archives) Save(_ context.Context, w io.Writer) (err error) {
	s, err := a.n.machine.BeginStream()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return snapshot.WriteArchive(w, &pb.ArchiveHeader{
		ClusterId: s.ClusterID, Index: s.Index, Term: s.Term, Revision: s.Revision, Backup: true,
		CreatedUnixMs: time.Now().UnixMilli(), Version: a.n.cfg.Version,
	}, stream{s})
}

// restoreTimeout bounds the wait for raft to take an archive.
const restoreTimeout = 10 * time.Minute

// Restore replaces the state of the cluster by an archive. The archive is stored
// aside and verified whole before raft sees any of it. Leader only.
func (a archives) Restore(_ context.Context, r io.Reader) (records uint64, err error) {
	n := a.n
	if n.raft.State() != raft.Leader {
		return 0, n.notLeader()
	}
	path := filepath.Join(n.cfg.DataDir, "upload.archive")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, fmt.Errorf("store the archive aside: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(path)) }()
	size, err := io.Copy(f, r)
	if err != nil {
		return 0, fmt.Errorf("store the archive aside: %w", err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return 0, fmt.Errorf("read the archive: %w", err)
	}
	header, err := snapshot.Verify(f)
	if err != nil {
		return 0, fmt.Errorf("%w: the archive cannot be used, nothing was changed: %w", hastate.ErrInvalid, err)
	}
	if !header.GetBackup() {
		return 0, fmt.Errorf("%w: this archive was made for a transfer between nodes: use one of 'hactl snapshot save'", hastate.ErrInvalid)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return 0, fmt.Errorf("read the archive: %w", err)
	}
	meta := &raft.SnapshotMeta{Version: raft.SnapshotVersionMax, Index: header.GetIndex(), Term: header.GetTerm(), Size: size}
	if err := n.raft.Restore(meta, f, restoreTimeout); err != nil {
		if errors.Is(err, raft.ErrNotLeader) {
			return 0, n.notLeader()
		}
		return 0, &hastate.OutcomeUnknownError{Reason: "restore: " + err.Error()}
	}
	return uint64(n.machine.Records()), nil //nolint:gosec // a count
}

// finishRestore completes the restore of a received snapshot that a crash
// interrupted. Raft takes a snapshot on disk as applied without asking the state
// machine, so this must be done before Raft starts.
func (n *Node) finishRestore() error {
	pending, ok, err := n.snapshots.Pending()
	if err != nil || !ok {
		return err
	}
	applied, _ := n.machine.Applied()
	if n.machine.Flushed() < pending.Index || applied < pending.Index {
		n.log.Info("finishing the restore of a snapshot", "index", pending.Index)
		_, rc, err := n.snapshots.Open(pending.ID)
		if err != nil {
			return err
		}
		if err := n.machine.Restore(rc); err != nil {
			return errors.Join(fmt.Errorf("finish the restore of a snapshot: %w", err), rc.Close())
		}
	}
	return n.snapshots.Restored(pending.Index)
}

// Problems is what is wrong with this node, one line each.
func (n *Node) Problems() []string {
	n.mu.Lock()
	lines := make([]string, 0, len(n.problems))
	for _, text := range n.problems {
		lines = append(lines, text)
	}
	n.mu.Unlock()
	slices.Sort(lines)
	if ok, why := n.Ready(); !ok && !slices.Contains(lines, why) {
		lines = append(lines, why)
	}
	return lines
}
