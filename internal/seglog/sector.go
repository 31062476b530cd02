// SPDX-License-Identifier: Apache-2.0

package seglog

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
)

const (
	sectorBytes  = 512
	trailerBytes = 12 // segment, append, checksum
	payloadBytes = sectorBytes - trailerBytes
	// lengthBytes is that of the length in front of an append's records.
	lengthBytes = 4

	atSegment  = payloadBytes
	atAppend   = payloadBytes + 4
	atChecksum = payloadBytes + 8
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	zeroSector [sectorBytes]byte
)

// checksum is over the sector and, as the seed, its position in the file: a sector
// that was written to a wrong place is noticed.
func checksum(sector []byte, position uint32) uint32 {
	return crc32.Update(position, castagnoli, sector[:atChecksum])
}

// sectorState is what a sector is to the segment that it lies in.
type sectorState byte

const (
	// unwritten: zeros, or left over from an earlier use of the file.
	unwritten sectorState = iota
	// written by this segment.
	written
	// broken: its checksum is wrong, or it is of a later segment.
	broken
)

// classify looks at the sector at a position of a segment's file; number is that of
// the append that it belongs to, if it is written.
func classify(sector []byte, position, segment uint32) (state sectorState, number uint32) {
	if bytes.Equal(sector, zeroSector[:]) {
		return unwritten, 0
	}
	if binary.BigEndian.Uint32(sector[atChecksum:]) != checksum(sector, position) {
		return broken, 0
	}
	switch of := binary.BigEndian.Uint32(sector[atSegment:]); {
	case of == segment:
		return written, binary.BigEndian.Uint32(sector[atAppend:])
	case of < segment:
		return unwritten, 0
	}
	return broken, 0
}

// sectorsOf is how many sectors an append takes whose records have this many bytes.
func sectorsOf(body int) int { return (lengthBytes + body + payloadBytes - 1) / payloadBytes }

// frame lays the records of one append out over sectors. Its memory is used again.
type frame struct {
	// buf are whole sectors; their trailers are empty until seal.
	buf []byte
	// n are the bytes of payload so far, the length included.
	n int
}

// reset begins a new append.
func (f *frame) reset() {
	f.buf, f.n = f.buf[:0], 0
	f.put(zeroSector[:lengthBytes])
}

// put adds bytes.
func (f *frame) put(b []byte) {
	for len(b) > 0 {
		within := f.n % payloadBytes
		if within == 0 {
			f.buf = append(f.buf, zeroSector[:]...)
		}
		at := f.n/payloadBytes*sectorBytes + within
		n := copy(f.buf[at:at+payloadBytes-within], b)
		b, f.n = b[n:], f.n+n
	}
}

func (f *frame) sectors() uint32 { return uint32(len(f.buf) / sectorBytes) }

// seal fills in the length and the trailers.
func (f *frame) seal(segment, number, position uint32) []byte {
	binary.BigEndian.PutUint32(f.buf, uint32(f.n-lengthBytes))
	for i := range f.sectors() {
		sector := f.buf[i*sectorBytes : (i+1)*sectorBytes]
		binary.BigEndian.PutUint32(sector[atSegment:], segment)
		binary.BigEndian.PutUint32(sector[atAppend:], number)
		binary.BigEndian.PutUint32(sector[atChecksum:], checksum(sector, position+i))
	}
	return f.buf
}

// shrink gives up memory that a huge append has left.
func (f *frame) shrink() {
	if cap(f.buf) > 4<<20 {
		f.buf = nil
	}
}

// unframe takes the trailers out of sectors: the payload of all of them.
func unframe(out, sectors []byte) []byte {
	for ; len(sectors) >= sectorBytes; sectors = sectors[sectorBytes:] {
		out = append(out, sectors[:payloadBytes]...)
	}
	return out
}
