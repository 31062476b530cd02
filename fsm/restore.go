// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
	bolt "go.etcd.io/bbolt"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// restorePath is where a state is received.
func restorePath(path string) string { return path + ".restore" }

// headered is a snapshot that comes with the header of its archive. Reading it
// gives the state file alone, and an error in place of io.EOF if its checksum is
// wrong.
type headered interface{ Header() *pb.ArchiveHeader }

// ownState is a snapshot that may be a stream of this Machine's own state file.
type ownState interface{ Live() bool }

// behind looks for an interface behind the wrappers that Raft puts around a
// snapshot.
func behind[T any](rc io.ReadCloser) (found T, has bool) {
	for {
		if found, has = rc.(T); has {
			return found, true
		}
		w, wraps := rc.(raft.ReadCloserWrapper)
		if !wraps {
			return found, false
		}
		rc = w.WrappedReadCloser()
	}
}

// Restore replaces the state by that of a snapshot. The new file is written
// aside, synced and looked through before it takes the place of the old one, so
// that a restore that fails changes nothing. Readers go on; watchers have to
// list afresh. When it returns, the state is on the disk.
func (m *Machine) Restore(rc io.ReadCloser) (err error) {
	defer func() { err = errors.Join(err, rc.Close()) }()
	if own, has := behind[ownState](rc); has && own.Live() {
		return nil // The state is there already.
	}
	var h *pb.ArchiveHeader
	if archive, has := behind[headered](rc); has {
		h = archive.Header()
	}
	temp := restorePath(m.opts.Path)
	db, found, err := m.receive(rc, h, temp)
	if err != nil {
		return errors.Join(fmt.Errorf("restore the state: %w", err), removeStale(temp))
	}
	if err := m.replace(db, found, h, temp); err != nil {
		return err
	}
	return m.flush() // The index of the header, if it is above that of the file.
}

// receive writes a state file aside and opens it.
func (m *Machine) receive(r io.Reader, h *pb.ArchiveHeader, temp string) (*bolt.DB, contents, error) {
	if err := writeAside(r, h, temp); err != nil {
		return nil, contents{}, err
	}
	found, err := inspectFile(temp)
	if err != nil {
		return nil, contents{}, err
	}
	if err := checkHeader(h, found.meta); err != nil {
		return nil, contents{}, err
	}
	if h.GetBackup() {
		if err := m.rebaseFile(temp, h, found.meta); err != nil {
			return nil, contents{}, err
		}
		if found, err = inspectFile(temp); err != nil {
			return nil, contents{}, err
		}
	}
	db, err := openFile(temp)
	return db, found, err
}

// writeAside copies r into a new, synced file.
func writeAside(r io.Reader, h *pb.ArchiveHeader, temp string) error {
	if err := removeStale(temp); err != nil {
		return err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return fmt.Errorf("write the state aside: %w", err)
	}
	n, err := io.Copy(f, r)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write the state aside: %w", err)
	}
	if h != nil && uint64(n) != h.GetStateBytes() {
		return fmt.Errorf("%w: the state has %d bytes, its header says %d", ErrDamaged, n, h.GetStateBytes())
	}
	return nil
}

// checkHeader compares what the header says with what the state says of itself.
func checkHeader(h *pb.ArchiveHeader, found meta) error {
	switch {
	case h == nil:
		return nil
	case h.GetClusterId() != found.clusterID:
		return fmt.Errorf("%w: the state is of cluster %q, its header says %q", ErrDamaged, found.clusterID, h.GetClusterId())
	case h.GetRevision() != found.revision:
		return fmt.Errorf("%w: the state has revision %d, its header says %d", ErrDamaged, found.revision, h.GetRevision())
	}
	return nil
}

// replace puts the received file in the place of the current one.
func (m *Machine) replace(db *bolt.DB, found contents, h *pb.ArchiveHeader, temp string) error {
	m.flushing.Lock()
	defer m.flushing.Unlock()
	m.mu.RLock()
	failed := m.failed
	m.mu.RUnlock()
	if failed != nil {
		return errors.Join(failed, db.Close(), removeStale(temp))
	}
	if err := os.Rename(temp, m.opts.Path); err != nil {
		return errors.Join(fmt.Errorf("restore the state: %w", err), db.Close(), removeStale(temp))
	}
	if err := syncDir(filepath.Dir(m.opts.Path)); err != nil {
		// The old file is gone, and the new one may be after a power loss.
		return errors.Join(m.halt(err), db.Close())
	}
	m.mu.Lock()
	old := m.db
	m.adopt(db, found)
	if h.GetIndex() > m.applied {
		// The entries between are Raft's own, no-ops and barriers: the state
		// includes them.
		m.applied, m.term = h.GetIndex(), h.GetTerm()
	}
	m.ring.reset(m.state.revision)
	if m.expiry != nil {
		m.expiry.restart()
	}
	m.mu.Unlock()
	m.changed.wake()
	m.progress.wake()
	// Streams of the old state may still be under way: closing waits for them.
	m.tasks.Go(func() {
		if err := old.Close(); err != nil {
			m.opts.Logger.Warn("close the replaced state file", "error", err)
		}
	})
	return nil
}

// rebaseFile makes a backup's state one of this cluster, now.
func (m *Machine) rebaseFile(path string, h *pb.ArchiveHeader, archived meta) (err error) {
	if applied, _ := m.Applied(); h.GetIndex() <= applied {
		return fmt.Errorf("%w: a backup must be restored behind log entry %d, its header says %d", hastate.ErrInvalid, applied, h.GetIndex())
	}
	db, err := openFile(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var live meta
	v, end, err := m.snapshotView(func() {
		live = meta{
			clusterID: m.state.clusterID, revision: m.state.revision,
			configuration: m.configuration, configurationIndex: m.configurationIndex,
		}
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	live.applied, live.term = h.GetIndex(), h.GetTerm()
	live.revision = max(live.revision, archived.revision) + 1
	return db.Update(func(tx *bolt.Tx) error {
		r := rebase{tx: tx, live: v, meta: live, wall: h.GetCreatedUnixMs()}
		return r.run()
	})
}
