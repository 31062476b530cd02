// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const (
	metaSuffix = ".meta"
	dataSuffix = ".data"
	tmpSuffix  = ".tmp"

	metaMagic   = "HASNAP1\n"
	maxMetaSize = 1 << 20
)

// record is one snapshot as it is stored in its meta file.
type record struct {
	// Sequence numbers the snapshots of a store in the order in which they were
	// begun; it makes the ID unique. Order numbers them as they became durable.
	Sequence uint64 `json:"sequence"`
	Order    uint64 `json:"order"`
	ID       string `json:"id"`
	Index    uint64 `json:"index"`
	Term     uint64 `json:"term"`

	Configuration      []server `json:"configuration"`
	ConfigurationIndex uint64   `json:"configuration_index"`

	// Installed says that the snapshot was received, Received that its state still is
	// in the data file and not in the state file.
	Installed bool `json:"installed,omitempty"`
	Received  bool `json:"received,omitempty"`
	// Size of the data file.
	Size int64 `json:"size,omitempty"`
	// StateIndex, StateTerm and Backup are what the state machine is told about a
	// received state. They are above Index and Term if the sender had moved on when
	// it streamed its state.
	StateIndex uint64 `json:"state_index,omitempty"`
	StateTerm  uint64 `json:"state_term,omitempty"`
	Backup     bool   `json:"backup,omitempty"`
	// Durable is the index up to which the state file went when a live snapshot was
	// taken: a state file that goes less far is not the one that it stands for.
	Durable uint64 `json:"durable,omitempty"`
}

type server struct {
	ID       string `json:"id"`
	Address  string `json:"address"`
	Suffrage int    `json:"suffrage"`
}

func newRecord(sequence, index, term uint64, c raft.Configuration, configurationIndex uint64) record {
	r := record{
		Sequence: sequence, ID: fmt.Sprintf("%016x-%d-%d", sequence, term, index),
		Index: index, Term: term, ConfigurationIndex: configurationIndex,
	}
	for _, s := range c.Servers {
		r.Configuration = append(r.Configuration, server{string(s.ID), string(s.Address), int(s.Suffrage)})
	}
	return r
}

// meta is the record as raft sees it.
func (r *record) meta() *raft.SnapshotMeta {
	m := &raft.SnapshotMeta{
		Version: raft.SnapshotVersionMax, ID: r.ID, Index: r.Index, Term: r.Term,
		ConfigurationIndex: r.ConfigurationIndex, Size: r.Size,
	}
	for _, s := range r.Configuration {
		m.Configuration.Servers = append(m.Configuration.Servers, raft.Server{
			ID: raft.ServerID(s.ID), Address: raft.ServerAddress(s.Address), Suffrage: raft.ServerSuffrage(s.Suffrage),
		})
	}
	return m
}

// reach is the index of the state that the snapshot stands for.
func (r *record) reach() (index, term uint64) {
	if r.StateIndex > r.Index {
		return r.StateIndex, r.StateTerm
	}
	return r.Index, r.Term
}

// present is the header of the state as the state machine has to take it over.
//
// A backup comes with the index it was made at, in another log perhaps; raft has
// given it a new one, and that counts. A state that another node sent counts from
// its own index, which is at or above the snapshot's.
func (r *record) present(h *pb.ArchiveHeader) *pb.ArchiveHeader {
	h = proto.CloneOf(h)
	if h.GetBackup() || h.GetIndex() < r.Index {
		h.Index, h.Term = r.Index, r.Term
	}
	return h
}

// newestFirst orders records as raft wants them.
func newestFirst(a, b *record) int {
	return cmp.Or(cmp.Compare(b.Index, a.Index), cmp.Compare(b.Term, a.Term), cmp.Compare(b.Sequence, a.Sequence))
}

// encode is the meta file: magic, length, JSON, CRC32C of all before it.
func (r *record) encode() ([]byte, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode snapshot %s: %w", r.ID, err)
	}
	b := append([]byte(metaMagic), binary.BigEndian.AppendUint32(nil, uint32(len(body)))...)
	b = append(b, body...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)), nil
}

func decodeRecord(b []byte) (*record, error) {
	const front = len(metaMagic) + 4
	if len(b) < front+crcBytes || string(b[:len(metaMagic)]) != metaMagic {
		return nil, fmt.Errorf("it is no snapshot record of hastate")
	}
	body, sum := b[front:len(b)-crcBytes], b[len(b)-crcBytes:]
	if n := binary.BigEndian.Uint32(b[len(metaMagic):]); int64(n) != int64(len(body)) {
		return nil, fmt.Errorf("it has %d bytes, %d were written", len(body), n)
	}
	if crc32.Checksum(b[:len(b)-crcBytes], castagnoli) != binary.BigEndian.Uint32(sum) {
		return nil, fmt.Errorf("its checksum is wrong")
	}
	r := &record{}
	if err := json.Unmarshal(body, r); err != nil {
		return nil, fmt.Errorf("decode it: %w", err)
	}
	return r, nil
}

// save writes the record's meta file, durably: the moment at which a snapshot
// begins to exist.
func (r *record) save(d folder) error {
	b, err := r.encode()
	if err != nil {
		return err
	}
	if err := d.write(r.ID+metaSuffix, b); err != nil {
		return fmt.Errorf("write snapshot record %s: %w", r.ID, err)
	}
	return nil
}

// arrange returns the records newest first, without those that an installed one has
// replaced. What raft installs comes from the leader and is the cluster's history: a
// snapshot that was here before with a higher index is not part of it, and would be
// taken for the newest at the next start, beside a state that is not its own.
func arrange(records []*record) []*record {
	kept := slices.DeleteFunc(slices.Clone(records), func(o *record) bool {
		return slices.ContainsFunc(records, func(r *record) bool {
			return r.Installed && o.Order < r.Order && o.Index > r.Index
		})
	})
	slices.SortFunc(kept, newestFirst)
	return kept
}
