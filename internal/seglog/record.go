// SPDX-License-Identifier: Apache-2.0

package seglog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate/internal/indexes"
)

// formatVersion is that of the segments. Those of a newer one are refused.
const formatVersion = 1

// The kinds of records.
const (
	kindHeader = 1
	kindEntry  = 2
	kindDelete = 3
	kindValue  = 4
)

const (
	// MaxValueBytes bounds a name and a value each.
	MaxValueBytes = 4 << 10
	// MaxValues bounds the named values.
	MaxValues = 16
	// maxRuns bounds the runs that a header names.
	maxRuns = 4096
	// maxBody bounds the records of one append.
	maxBody = 512 << 20

	entryHead = 1 + 8 + 8 + 1 + 8 + 4 + 4
	// noTime stands for the zero time.
	noTime = math.MinInt64
)

var errShort = errors.New("a record ends too early")

// value is a named value.
type value struct {
	name string
	data []byte
}

// header is the first record of a segment.
type header struct {
	segment uint32
	// capacity is the size of the file in sectors.
	capacity uint32
	// before is how far the segment before it goes; zero in the first one of all.
	before end
	// stored are the indexes that the log had when the segment was begun.
	stored indexes.Set
	values []value
}

// end is how far a segment goes.
type end struct {
	// sectors and appends of the segment that are whole.
	sectors, appends uint32
}

// eachRecord calls visit for every record of an append, with its offset in the body.
// The records share memory with body.
func eachRecord(body []byte, visit func(record any, offset, length int) error) error {
	for at := 0; at < len(body); {
		r, n, err := decodeRecord(body[at:])
		if err != nil {
			return err
		}
		if err := visit(r, at, n); err != nil {
			return err
		}
		at += n
	}
	return nil
}

// decodeRecord reads one record and says how long it is.
func decodeRecord(b []byte) (record any, length int, err error) {
	c := cursor{b: b}
	switch kind := c.byte(); kind {
	case kindHeader:
		record = decodeHeader(&c)
	case kindEntry:
		record = decodeEntry(&c)
	case kindDelete:
		record = indexes.Run{First: c.uint64(), Last: c.uint64()}
	case kindValue:
		record = value{name: string(c.bytes()), data: c.bytes()}
	default:
		return nil, 0, fmt.Errorf("there is a record of the unknown kind %d", kind)
	}
	if c.err != nil {
		return nil, 0, c.err
	}
	return record, len(b) - len(c.b), nil
}

// putEntry adds an entry. The sizes have been checked.
func putEntry(f *frame, l *raft.Log) {
	at := int64(noTime)
	if !l.AppendedAt.IsZero() {
		at = l.AppendedAt.UnixNano()
	}
	head := make([]byte, 0, entryHead)
	head = append(head, kindEntry)
	head = binary.BigEndian.AppendUint64(head, l.Index)
	head = binary.BigEndian.AppendUint64(head, l.Term)
	head = append(head, byte(l.Type))
	head = binary.BigEndian.AppendUint64(head, uint64(at))
	head = binary.BigEndian.AppendUint32(head, uint32(len(l.Extensions)))
	head = binary.BigEndian.AppendUint32(head, uint32(len(l.Data)))
	f.put(head)
	f.put(l.Extensions)
	f.put(l.Data)
}

func entryBytes(l *raft.Log) int { return entryHead + len(l.Extensions) + len(l.Data) }

func decodeEntry(c *cursor) *raft.Log {
	l := &raft.Log{Index: c.uint64(), Term: c.uint64(), Type: raft.LogType(c.byte())}
	if at := int64(c.uint64()); at != noTime {
		l.AppendedAt = time.Unix(0, at)
	}
	extensions, data := c.uint32(), c.uint32()
	l.Extensions, l.Data = c.take(int64(extensions)), c.take(int64(data))
	return l
}

func putDelete(f *frame, r indexes.Run) {
	b := binary.BigEndian.AppendUint64([]byte{kindDelete}, r.First)
	f.put(binary.BigEndian.AppendUint64(b, r.Last))
}

func putValue(f *frame, v value) {
	f.put(appendValue([]byte{kindValue}, v))
}

func appendValue(b []byte, v value) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(v.name)))
	b = append(b, v.name...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(v.data)))
	return append(b, v.data...)
}

func putHeader(f *frame, h header) {
	b := []byte{kindHeader}
	for _, n := range []uint32{formatVersion, h.segment, h.capacity, h.before.sectors, h.before.appends, uint32(len(h.stored))} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	for _, r := range h.stored {
		b = binary.BigEndian.AppendUint64(b, r.First)
		b = binary.BigEndian.AppendUint64(b, r.Last)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(h.values)))
	for _, v := range h.values {
		b = appendValue(b, v)
	}
	f.put(b)
}

func decodeHeader(c *cursor) header {
	if version := c.uint32(); c.err == nil && version != formatVersion {
		c.err = fmt.Errorf("it has format %d, this program knows format %d: start the version of hanode that wrote it", version, formatVersion)
		return header{}
	}
	h := header{segment: c.uint32(), capacity: c.uint32(), before: end{sectors: c.uint32(), appends: c.uint32()}}
	for range c.count(maxRuns) {
		r := indexes.Run{First: c.uint64(), Last: c.uint64()}
		if n := len(h.stored); c.err == nil && (r.First == 0 || r.Last < r.First || r.Last == math.MaxUint64 || n > 0 && r.First <= h.stored[n-1].Last+1) {
			c.err = errors.New("a header names indexes in no order")
		}
		h.stored = append(h.stored, r)
		if c.err != nil {
			return header{}
		}
	}
	for range c.count(MaxValues) {
		h.values = append(h.values, value{name: string(c.bytes()), data: c.bytes()})
		if c.err != nil {
			return header{}
		}
	}
	return h
}

// cursor reads from a record; after the first error it yields zeros.
type cursor struct {
	b   []byte
	err error
}

func (c *cursor) take(n int64) []byte {
	if c.err != nil || n > int64(len(c.b)) {
		if c.err == nil {
			c.err = errShort
		}
		c.b = nil
		return nil
	}
	if n == 0 {
		return nil
	}
	out := c.b[:n:n]
	c.b = c.b[n:]
	return out
}

func (c *cursor) byte() byte {
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) uint32() uint32 {
	if b := c.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) uint64() uint64 {
	if b := c.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// count reads a number of things, at most limit.
func (c *cursor) count(limit uint32) uint32 {
	n := c.uint32()
	if n > limit && c.err == nil {
		c.err = fmt.Errorf("a record says that it has %d parts, at most %d are possible", n, limit)
	}
	if c.err != nil {
		return 0
	}
	return n
}

// bytes reads a length and as many bytes, at most MaxValueBytes.
func (c *cursor) bytes() []byte { return c.take(int64(c.count(MaxValueBytes))) }
