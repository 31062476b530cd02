// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// The archive, all numbers big endian:
//
//	magic            8 bytes
//	format           4 bytes
//	header length    4 bytes
//	header           pb.ArchiveHeader
//	header checksum  4 bytes, CRC32C of everything before it
//	state            header.state_bytes bytes
//	checksum         4 bytes, CRC32C of everything before it
//
// The first four fields stay as they are in every later format, so that a program
// that is too old can say so.
const (
	magic = "HASTATE\x1a"
	// Format is the newest version of the archive that this program reads and the
	// one that it writes.
	Format = 1
	// maxHeaderBytes bounds the header of an archive that is read.
	maxHeaderBytes = 64 << 10

	prefixBytes = len(magic) + 4 + 4
	crcBytes    = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Stream is the state as of one moment, ready to be written out.
type Stream struct {
	// Index and Term of the last log entry that the state includes, and its
	// revision.
	Index, Term, Revision uint64
	// Size is how many bytes Body writes.
	Size      int64
	ClusterID string
	Body      Body
}

// Body writes the bytes of a state, once. Close ends its read transaction.
type Body interface {
	io.WriterTo
	Close() error
}

// Source is the state machine.
type Source interface {
	BeginStream() (Stream, error)
}

// SourceFunc makes a function a Source.
type SourceFunc func() (Stream, error)

// BeginStream calls f.
func (f SourceFunc) BeginStream() (Stream, error) { return f() }

// NewHeader is the header of an archive of s. backup marks one that SaveSnapshot
// writes; version is that of the program.
func NewHeader(s Stream, backup bool, created time.Time, version string) *pb.ArchiveHeader {
	return &pb.ArchiveHeader{
		Format:        Format,
		ClusterId:     s.ClusterID,
		Index:         s.Index,
		Term:          s.Term,
		Revision:      s.Revision,
		StateBytes:    uint64(s.Size),
		Backup:        backup,
		CreatedUnixMs: created.UnixMilli(),
		Version:       version,
	}
}

// ArchiveSize is the exact size of the archive that WriteArchive makes of h.
// Raft sends a snapshot's size ahead of it and refuses one that differs.
func ArchiveSize(h *pb.ArchiveHeader) int64 {
	return int64(prefixBytes) + int64(proto.Size(h)) + 2*crcBytes + int64(h.GetStateBytes())
}

// head encodes everything before the state.
func head(h *pb.ArchiveHeader) ([]byte, error) {
	if h.GetFormat() != Format {
		return nil, fmt.Errorf("%w: archive format %d cannot be written, only %d", hastate.ErrInvalid, h.GetFormat(), Format)
	}
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("encode archive header: %w", err)
	}
	if len(encoded) > maxHeaderBytes {
		return nil, &hastate.LimitError{Limit: "archive header bytes", Maximum: maxHeaderBytes, Actual: uint64(len(encoded))}
	}
	b := append(make([]byte, 0, prefixBytes+len(encoded)+crcBytes), magic...)
	b = binary.BigEndian.AppendUint32(b, Format)
	b = binary.BigEndian.AppendUint32(b, uint32(len(encoded)))
	b = append(b, encoded...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)), nil
}

// summed counts and sums up what passes through to w.
type summed struct {
	w   io.Writer
	crc uint32
	n   int64
}

func (s *summed) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.crc = crc32.Update(s.crc, castagnoli, p[:n])
	s.n += int64(n)
	return n, err
}

// WriteArchive writes an archive of a state and returns how many bytes it wrote.
// The state must have exactly h.StateBytes bytes. A failed archive is refused by
// every reader, because its checksum is missing.
func WriteArchive(w io.Writer, h *pb.ArchiveHeader, state io.WriterTo) (int64, error) {
	buffered := bufio.NewWriterSize(w, 128<<10)
	out := &summed{w: buffered}
	first, err := head(h)
	if err != nil {
		return 0, err
	}
	if _, err := out.Write(first); err != nil {
		return out.n, fmt.Errorf("write archive header: %w", err)
	}
	if _, err := state.WriteTo(out); err != nil {
		return out.n, fmt.Errorf("write archive state: %w", err)
	}
	if got := uint64(out.n) - uint64(len(first)); got != h.GetStateBytes() {
		return out.n, fmt.Errorf("write archive state: it has %d bytes, %d were announced", got, h.GetStateBytes())
	}
	if _, err := out.Write(binary.BigEndian.AppendUint32(nil, out.crc)); err != nil {
		return out.n, fmt.Errorf("write archive checksum: %w", err)
	}
	if err := buffered.Flush(); err != nil {
		return out.n, fmt.Errorf("write archive: %w", err)
	}
	return out.n, nil
}

// Info is what Inspect finds out about an archive.
type Info struct {
	Header *pb.ArchiveHeader
	// Size of the whole archive in bytes.
	Size int64
}

// Inspect reads a whole archive and checks it.
func Inspect(r io.Reader) (Info, error) {
	a, err := NewReader(r)
	if err != nil {
		return Info{}, err
	}
	if _, err := io.Copy(io.Discard, a); err != nil {
		return Info{}, err
	}
	return Info{Header: a.Header(), Size: a.size}, nil
}

// RestoreMeta is what raft.Restore has to be given with an archive: raft copies
// exactly the bytes of its reader into the snapshot store, refuses them if their
// number is not Size, and gives the state an index above Index and above its log.
// Have the archive inspected first: raft aborts all requests that are under way
// before it looks at it.
func RestoreMeta(info Info) *raft.SnapshotMeta {
	return &raft.SnapshotMeta{
		Version: raft.SnapshotVersionMax,
		ID:      "backup",
		Index:   info.Header.GetIndex(),
		Term:    info.Header.GetTerm(),
		Size:    info.Size,
	}
}
