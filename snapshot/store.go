// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// DefaultRetain is how many snapshots are kept.
const DefaultRetain = 2

// Options of a Store.
type Options struct {
	// Dir is made if it does not exist; its parent must exist.
	Dir string
	// Source is the state machine; it is asked when raft opens a live snapshot.
	Source Source
	Logger *slog.Logger
	// Retain is how many snapshots are kept; 0 is DefaultRetain.
	Retain int
	// Version of the program, for the headers of the archives.
	Version string
	// Now is the wall clock for the headers, for people; nil is time.Now.
	Now func() time.Time
	// OnReceived is called with index and term of a received snapshot when it is
	// durable and before raft can see it, and again at Open until the state machine
	// has taken it over. It makes the log agree with the snapshot
	// (logstore.ForgetDivergent). An error keeps the snapshot from raft.
	OnReceived func(index, term uint64) error
	// OnInstalled is called after OnReceived, and at Open for the newest snapshot:
	// with its index and term, for logstore.Base, and with the index of its state,
	// which may be above, for logstore.SnapshotInstalled.
	OnInstalled func(index, term, stateIndex uint64)
	// Fault is for tests; nil breaks nothing.
	Fault Fault
}

// Store is a raft.SnapshotStore. All methods are safe for concurrent use.
type Store struct {
	opts   Options
	logger *slog.Logger
	dir    folder

	// changing is held while a snapshot is published, taken over or removed, so
	// that the files and the list change together.
	changing sync.Mutex

	mu sync.Mutex
	// records are the visible snapshots, newest first. The records are never
	// changed, only replaced. Guarded by mu.
	records []*record
	// broken is why no snapshot is taken any more. Guarded by mu.
	broken error
	// sequence and order are the newest ones in use. Guarded by mu.
	sequence, order uint64
}

var _ raft.SnapshotStore = (*Store)(nil)

// Open reads the snapshots in the directory and removes what a crash has left
// behind. If there is a received snapshot that the state machine has not taken over,
// Pending says so: it has to be finished before raft is started, because raft does
// not restore at start and would take the state machine to be at its index.
func Open(opts Options) (*Store, error) {
	if opts.Dir == "" || opts.Source == nil {
		return nil, fmt.Errorf("%w: the snapshot store needs a directory and a state machine", hastate.ErrInvalid)
	}
	if opts.Retain <= 0 {
		opts.Retain = DefaultRetain
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	s := &Store{opts: opts, logger: opts.Logger, dir: folder{path: opts.Dir, fault: opts.Fault}}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	if err := os.Mkdir(opts.Dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("open snapshot store: %w", err)
	}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("open snapshot store %s: %w", opts.Dir, err)
	}
	if len(s.records) > 0 {
		newest := s.records[0]
		if err := s.announce(newest); err != nil {
			return nil, fmt.Errorf("open snapshot store %s: %w", opts.Dir, err)
		}
		s.logger.Info("snapshot store opened", "dir", opts.Dir, "newest", newest.ID, "pending", newest.Received)
	}
	return s, nil
}

// load fills records and removes leftovers.
func (s *Store) load() error {
	files, err := os.ReadDir(s.dir.path)
	if err != nil {
		return err
	}
	for _, f := range files {
		name := f.Name()
		switch {
		case strings.HasSuffix(name, tmpSuffix):
			s.logger.Warn("removing an unfinished snapshot", "file", name)
			if err := s.dir.remove(name); err != nil {
				return err
			}
		case strings.HasSuffix(name, metaSuffix):
			r, err := s.loadRecord(name)
			if err != nil {
				return fmt.Errorf("%w: the snapshot record %s cannot be used: %w; while a majority of the other nodes is up, move this node's data directory away and let the node join again", hastate.ErrPrecondition, name, err)
			}
			s.records = append(s.records, r)
			s.sequence, s.order = max(s.sequence, r.Sequence), max(s.order, r.Order)
		}
	}
	s.records = arrange(s.records)
	return s.trim()
}

func (s *Store) loadRecord(name string) (*record, error) {
	info, err := os.Stat(s.dir.file(name))
	if err != nil {
		return nil, err
	}
	if info.Size() > maxMetaSize {
		return nil, fmt.Errorf("it has %d bytes", info.Size())
	}
	b, err := os.ReadFile(s.dir.file(name))
	if err != nil {
		return nil, err
	}
	r, err := decodeRecord(b)
	if err != nil {
		return nil, err
	}
	if r.ID+metaSuffix != name {
		return nil, fmt.Errorf("it is that of %s", r.ID)
	}
	if r.Received {
		info, err := os.Stat(s.dir.file(r.ID + dataSuffix))
		if err != nil {
			return nil, fmt.Errorf("its data: %w", err)
		}
		if info.Size() != r.Size {
			return nil, fmt.Errorf("its data has %d bytes, %d were written", info.Size(), r.Size)
		}
	}
	return r, nil
}

// announce tells the log about a snapshot that raft is about to see.
func (s *Store) announce(r *record) error {
	if r.Received && s.opts.OnReceived != nil {
		if err := s.opts.OnReceived(r.Index, r.Term); err != nil {
			return fmt.Errorf("prepare the log for snapshot %s: %w", r.ID, err)
		}
	}
	if s.opts.OnInstalled != nil {
		reach, _ := r.reach()
		s.opts.OnInstalled(r.Index, r.Term, reach)
	}
	return nil
}

// Create begins a snapshot. raft calls it for its own and for received ones; what
// is called on the sink decides which it is.
func (s *Store) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, _ raft.Transport,
) (raft.SnapshotSink, error) {
	if version != raft.SnapshotVersionMax {
		return nil, fmt.Errorf("%w: snapshot version %d is not supported", hastate.ErrInvalid, version)
	}
	s.mu.Lock()
	s.sequence++
	r := newRecord(s.sequence, index, term, configuration, configurationIndex)
	s.mu.Unlock()
	return &Sink{store: s, record: r, id: r.ID, index: r.Index}, nil
}

// List returns the snapshots, newest first. The size of a live one is known only
// when it is opened.
func (s *Store) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var metas []*raft.SnapshotMeta
	for _, r := range s.records {
		metas = append(metas, r.meta())
	}
	return metas, nil
}

func (s *Store) find(id string) *record {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.records {
		if r.ID == id {
			return r
		}
	}
	return nil
}

// Open returns a snapshot with its exact size and an *Archive.
//
// A live snapshot is opened as the state is now. Its index may be above the
// snapshot's: the node that receives it gets the entries between the two once more
// through the log, and its state machine skips entries at or below the index of its
// state, which is in the archive. Raft never learns of the difference.
func (s *Store) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	r := s.find(id)
	if r == nil {
		return nil, nil, fmt.Errorf("open snapshot %s: %w", id, hastate.ErrNotFound)
	}
	open := s.openLive
	if r.Received {
		open = s.openReceived
	}
	a, err := open(r)
	if err != nil {
		return nil, nil, fmt.Errorf("open snapshot %s: %w", id, err)
	}
	meta := r.meta()
	meta.Size = a.size
	return meta, a, nil
}

// Pending returns the newest snapshot if it was received and the state machine has
// not taken it over, with the header to take it over by. If the state machine's
// durable index is at or above the header's, it has, and only Restored was missed;
// otherwise Open(id) is to be restored. Either way before raft is started.
func (s *Store) Pending() (id string, header *pb.ArchiveHeader, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.records) == 0 || !s.records[0].Received {
		return "", nil, false
	}
	r := s.records[0]
	index, term := r.reach()
	return r.ID, &pb.ArchiveHeader{Format: Format, Index: index, Term: term, Backup: r.Backup}, true
}

// Needs is the index up to which the state file must go, because the log may have
// been trimmed in favour of it. Raft does not look: it takes the state machine to be
// at the index of the newest snapshot, and a state file that is lost or older would
// be brought up to date with some of the entries missing.
func (s *Store) Needs() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var needs, newest uint64
	for _, r := range s.records {
		// The newest in the order of their making: it may have replaced a state that
		// went further.
		if r.Order >= newest {
			needs, newest = r.Durable, r.Order
		}
	}
	return needs
}

// Covers is the highest index that a received snapshot stands for: entries up to
// there may be in the state without ever having been in the log. One that this node
// has taken itself vouches for no log: its entries have been in it.
func (s *Store) Covers() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var covers uint64
	for _, r := range s.records {
		if reach, _ := r.reach(); r.Installed {
			covers = max(covers, reach)
		}
	}
	return covers
}

// Restored says that the state machine has taken over, durably, everything up to
// index, the one that the archive's header told it. The received snapshots up to
// there become live and their data is dropped.
func (s *Store) Restored(index uint64) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	s.mu.Lock()
	records := slices.Clone(s.records)
	s.mu.Unlock()
	for i, r := range records {
		reach, _ := r.reach()
		if !r.Received || reach > index {
			continue
		}
		live := *r
		live.Received, live.Size, live.Durable = false, 0, reach
		if err := live.save(s.dir); err != nil {
			return err
		}
		records[i] = &live
		s.mu.Lock()
		s.records = slices.Clone(records)
		s.mu.Unlock()
		// From here on the file is a leftover that Open removes.
		if err := s.dir.remove(r.ID + dataSuffix); err != nil {
			return fmt.Errorf("drop data of snapshot %s: %w", r.ID, err)
		}
		s.logger.Info("received snapshot taken over", "id", r.ID, "index", r.Index, "state_index", reach)
	}
	return nil
}

// add makes a durable snapshot visible and removes those that are in excess. It is
// called with changing held. Files that cannot be removed are tried again later: the
// snapshot itself is whole.
func (s *Store) add(r *record) {
	s.mu.Lock()
	s.records = arrange(append(s.records, r))
	s.mu.Unlock()
	if err := s.trim(); err != nil {
		s.logger.Warn("old snapshots cannot be removed", "dir", s.dir.path, "error", err)
	}
}

// retained are the newest n records, and the one that the state may still go further
// by than the log does (Covers): snapshots that were taken since may be of entries
// that the state had already.
func retained(records []*record, n int) []*record {
	kept := slices.Clone(records[:min(len(records), n)])
	var covering *record
	var covered uint64
	for _, r := range records {
		if reach, _ := r.reach(); r.Installed && reach > max(covered, records[0].Index) {
			covering, covered = r, reach
		}
	}
	if covering != nil && !slices.Contains(kept, covering) {
		kept = append(kept, covering)
	}
	return kept
}

// trim drops what is in excess, and the files that belong to no visible snapshot:
// received and never published, taken over since, or dropped.
func (s *Store) trim() error {
	s.mu.Lock()
	s.records = retained(s.records, s.opts.Retain)
	keep := map[string]bool{}
	for _, r := range s.records {
		keep[r.ID+metaSuffix] = true
		keep[r.ID+dataSuffix] = r.Received
	}
	s.mu.Unlock()
	files, err := os.ReadDir(s.dir.path)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range files {
		name := f.Name()
		if !keep[name] && (strings.HasSuffix(name, metaSuffix) || strings.HasSuffix(name, dataSuffix)) {
			errs = append(errs, s.dir.remove(name))
		}
	}
	return errors.Join(errs...)
}
