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
	"github.com/hastate/hastate/snapshot"
)

// beginStream flushes the state and begins to read it, for the snapshot store.
func (n *Node) beginStream() (snapshot.Stream, error) {
	s, err := n.machine.BeginStream()
	if err != nil {
		return snapshot.Stream{}, err
	}
	return snapshot.Stream{Index: s.Index, Term: s.Term, Revision: s.Revision, Size: s.Size, ClusterID: s.ClusterID, Body: s}, nil
}

// archives saves and restores the whole state for an operator.
type archives struct{ n *Node }

// Save writes an archive of the state as this node has applied it.
func (a archives) Save(_ context.Context, w io.Writer) (err error) {
	s, err := a.n.beginStream()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Body.Close()) }()
	_, err = snapshot.WriteArchive(w, snapshot.NewHeader(s, true, time.Now(), a.n.cfg.Version), s.Body)
	return err
}

// restoreTimeout bounds the wait for raft to take an archive.
const restoreTimeout = 10 * time.Minute

// Restore replaces the state of the cluster by an archive. The archive is stored
// aside and verified whole before raft sees any of it. Leader only, one at a time
// (ErrPrecondition).
func (a archives) Restore(_ context.Context, r io.Reader) (records uint64, err error) {
	n := a.n
	if n.raft.State() != raft.Leader {
		return 0, n.notLeader()
	}
	if !n.restoring.TryLock() {
		return 0, fmt.Errorf("%w: another archive is being restored: wait for its end", hastate.ErrPrecondition)
	}
	defer n.restoring.Unlock()
	path := filepath.Join(n.cfg.DataDir, "upload.archive")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, fmt.Errorf("store the archive aside: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(path)) }()
	if _, err := io.Copy(f, r); err != nil {
		return 0, fmt.Errorf("store the archive aside: %w", err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return 0, fmt.Errorf("read the archive: %w", err)
	}
	info, err := snapshot.Inspect(f)
	if err != nil {
		return 0, fmt.Errorf("%w: the archive cannot be used, nothing was changed: %w", hastate.ErrInvalid, err)
	}
	if !info.Header.GetBackup() {
		return 0, fmt.Errorf("%w: this archive was made for a transfer between nodes: use one of 'hactl snapshot save'", hastate.ErrInvalid)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return 0, fmt.Errorf("read the archive: %w", err)
	}
	if err := n.raft.Restore(snapshot.RestoreMeta(info), f, restoreTimeout); err != nil {
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
	id, header, ok := n.snapshots.Pending()
	if !ok {
		return nil
	}
	if n.machine.Flushed() < header.GetIndex() {
		n.log.Info("finishing the restore of a snapshot", "index", header.GetIndex())
		_, rc, err := n.snapshots.Open(id)
		if err != nil {
			return err
		}
		if err := n.machine.Restore(rc); err != nil {
			return errors.Join(fmt.Errorf("finish the restore of a snapshot: %w", err), rc.Close())
		}
	}
	return n.snapshots.Restored(header.GetIndex())
}

// Problems is what is wrong with this node, one line each.
func (n *Node) Problems() []string {
	var lines []string
	if why := n.problemOfJoin(); why != "" {
		lines = append(lines, why)
	}
	if ok, why := n.Ready(); !ok && !slices.Contains(lines, why) {
		lines = append(lines, why)
	}
	return lines
}
