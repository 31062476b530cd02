// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"

	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Reader reads an archive. Read yields the bytes of the state and nothing else; it
// returns io.EOF only after the length and the checksum have been found right, so
// whoever reads up to io.EOF has a whole, undamaged state.
type Reader struct {
	r      io.Reader
	header *pb.ArchiveHeader
	crc    uint32
	left   uint64 // bytes of the state that are still to come
	size   int64  // of the whole archive
	err    error  // sticky
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: the archive is damaged: %w", hastate.ErrInvalid, fmt.Errorf(format, args...))
}

// NewReader reads and checks the header of an archive.
func NewReader(r io.Reader) (*Reader, error) {
	a := &Reader{r: r}
	prefix := make([]byte, prefixBytes)
	if err := a.full(prefix, "header"); err != nil {
		return nil, err
	}
	if string(prefix[:len(magic)]) != magic {
		return nil, fmt.Errorf("%w: this is not an archive of hastate", hastate.ErrInvalid)
	}
	format := binary.BigEndian.Uint32(prefix[len(magic):])
	length := binary.BigEndian.Uint32(prefix[len(magic)+4:])
	if format == 0 || length > maxHeaderBytes && format <= Format {
		return nil, damaged("format %d, header of %d bytes", format, length)
	}
	if format > Format {
		return nil, fmt.Errorf("%w: the archive has format %d, this program reads up to %d: use a newer program", hastate.ErrPrecondition, format, Format)
	}
	encoded := make([]byte, length)
	if err := a.full(encoded, "header"); err != nil {
		return nil, err
	}
	if err := a.checksum("header"); err != nil {
		return nil, err
	}
	a.header = &pb.ArchiveHeader{}
	if err := proto.Unmarshal(encoded, a.header); err != nil {
		return nil, damaged("decode header: %w", err)
	}
	if got := a.header.GetFormat(); got != format {
		return nil, damaged("format %d and %d", format, got)
	}
	a.left = a.header.GetStateBytes()
	if a.left > math.MaxInt64/2 {
		return nil, damaged("it says that the state has %d bytes", a.left)
	}
	a.size = int64(prefixBytes) + int64(length) + 2*crcBytes + int64(a.left)
	return a, nil
}

// full reads len(p) bytes that belong to the checksum.
func (a *Reader) full(p []byte, what string) error {
	if err := a.exactly(p, what); err != nil {
		return err
	}
	a.crc = crc32.Update(a.crc, castagnoli, p)
	return nil
}

func (a *Reader) exactly(p []byte, what string) error {
	if _, err := io.ReadFull(a.r, p); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return damaged("it ends within its %s", what)
	} else if err != nil {
		return fmt.Errorf("read archive %s: %w", what, err)
	}
	return nil
}

// checksum reads a checksum and compares it with that of everything before it.
func (a *Reader) checksum(what string) error {
	want := a.crc
	var p [crcBytes]byte
	if err := a.full(p[:], what); err != nil {
		return err
	}
	if got := binary.BigEndian.Uint32(p[:]); got != want {
		return damaged("the %s has checksum %08x, expected %08x", what, want, got)
	}
	return nil
}

// Header is the header of the archive, the caller's to keep.
func (a *Reader) Header() *pb.ArchiveHeader { return proto.CloneOf(a.header) }

// Read reads the state.
func (a *Reader) Read(p []byte) (int, error) {
	if a.err != nil {
		return 0, a.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if a.left == 0 {
		a.err = a.finish()
		return 0, a.err
	}
	if uint64(len(p)) > a.left {
		p = p[:a.left]
	}
	n, err := a.r.Read(p)
	a.crc = crc32.Update(a.crc, castagnoli, p[:n])
	a.left -= uint64(n)
	switch {
	case err == nil, errors.Is(err, io.EOF) && a.left == 0:
		return n, nil
	case errors.Is(err, io.EOF):
		a.err = damaged("it ends within its state, %d bytes are missing", a.left)
	default:
		a.err = fmt.Errorf("read archive state: %w", err)
	}
	return n, a.err
}

// finish checks what follows the state and returns io.EOF if all is right.
func (a *Reader) finish() error {
	if err := a.checksum("state"); err != nil {
		return err
	}
	var p [1]byte
	switch n, err := io.ReadFull(a.r, p[:]); {
	case n > 0:
		return damaged("something follows its end")
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("read archive: %w", err)
	}
	return io.EOF
}
