// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"google.golang.org/protobuf/proto"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// span is a run of bytes of a file.
type span struct{ from, to int64 }

// The buckets whose values are certain to be read again: entries of the log that a
// state file may not have yet, and the sessions. newestEntries is less than the log
// of a node under load gains between two flushes of the state.
const (
	bucketLog      = "logs"
	bucketSessions = "sessions"
	newestEntries  = 32
)

// flip flips 1 to 16 different bits of what is used of a file. All of them are in
// one place: anywhere, in keys and values, or, every other time, in bytes that only
// a client can judge. One that hits the tree, or makes a record that cannot be read,
// is found at once, and would hide those that only a checksum finds.
func flip(f *os.File, d *draw) (string, error) {
	n, place := 1+d.IntN(16), d.IntN(4)
	l, err := layoutOf(f)
	if err != nil {
		return "", err
	}
	what, spans := "of what is used", []span{{0, l.used}}
	switch place {
	case 0:
	case 1:
		what = "of records"
		spans = nil
		for _, leaf := range l.leaves {
			from, to, err := l.records(f, leaf)
			if err != nil {
				return "", err
			}
			spans = append(spans, span{from, to})
		}
	default:
		telling, err := l.telling(f)
		if err != nil {
			return "", err
		}
		if len(telling) > 0 { // else there is no session yet
			what, spans = "of what sessions hold", telling
			if len(l.keys[bucketLog]) > 0 {
				what = "of what the newest log entries write"
			}
		}
	}
	return fmt.Sprintf("%d bits %s are flipped", n, what), flipIn(f, d, n, spans)
}

// flipIn flips n different bits of some spans, which must have so many.
func flipIn(f *os.File, d *draw, n int, spans []span) error {
	total := int64(0)
	for _, s := range spans {
		total += s.to - s.from
	}
	if total*8 < int64(n) {
		return fmt.Errorf("%d bytes have no %d bits to flip", total, n)
	}
	flipped := map[[2]int64]bool{}
	for len(flipped) < n {
		at, bit := d.Int64N(total), d.Int64N(8)
		for _, s := range spans {
			if at < s.to-s.from {
				at += s.from
				break
			}
			at -= s.to - s.from
		}
		if flipped[[2]int64{at, bit}] {
			continue // it would be whole again
		}
		b, err := read(f, at, 1)
		if err != nil {
			return err
		}
		b[0] ^= 1 << bit
		if _, err := f.WriteAt(b, at); err != nil {
			return err
		}
		flipped[[2]int64{at, bit}] = true
	}
	return nil
}

// telling are the bytes that only a client can judge, where they are certain to be
// read again: what the newest log entries write to sessions, or what all sessions
// hold. Their records are found by their keys, which no other bucket of these files
// has.
func (l layout) telling(f io.ReaderAt) ([]span, error) {
	keys, payloads := l.keys[bucketSessions], sessionPayload
	if log := l.keys[bucketLog]; len(log) > 0 {
		keys, payloads = log[max(0, len(log)-newestEntries):], entryPayloads
	}
	wanted := map[string]bool{}
	for _, k := range keys {
		wanted[k] = true
	}
	var spans []span
	for _, leaf := range l.leaves {
		err := l.elements(f, leaf, func(key []byte, value span) error {
			if !wanted[string(key)] {
				return nil
			}
			b, err := read(f, value.from, value.to-value.from)
			if err != nil {
				return err
			}
			for _, payload := range payloads(b) {
				// Equal bytes before it would be a name, which is as good.
				if at := int64(bytes.Index(b, payload)); len(payload) > 0 && at >= 0 {
					spans = append(spans, span{value.from + at, value.from + at + int64(len(payload))})
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return spans, nil
}

// elements calls fn with the key of each element of a leaf, and where its value is.
func (l layout) elements(f io.ReaderAt, leaf int64, fn func(key []byte, value span) error) error {
	head, err := read(f, leaf, boltHead)
	if err != nil {
		return err
	}
	n := int64(binary.NativeEndian.Uint16(head[10:]))
	table, err := read(f, leaf+boltHead, n*boltElement)
	if err != nil {
		return err
	}
	for i := range n {
		e := table[i*boltElement:]
		size := func(at int) int64 { return int64(binary.NativeEndian.Uint32(e[at:])) }
		at := leaf + boltHead + i*boltElement + size(4)
		key, err := read(f, at, size(8))
		if err != nil {
			return err
		}
		if err := fn(key, span{at + size(8), at + size(8) + size(12)}); err != nil {
			return err
		}
	}
	return nil
}

// sessionPayload is what a session holds, given its record with the checksum behind.
func sessionPayload(stored []byte) [][]byte {
	const seal = 4
	var session pb.Session
	if len(stored) < seal || proto.Unmarshal(stored[:len(stored)-seal], &session) != nil {
		return nil
	}
	return [][]byte{session.GetValue()}
}

// entryPayloads is what a stored log entry writes to sessions.
func entryPayloads(stored []byte) (all [][]byte) {
	var entry pb.Entry
	if proto.Unmarshal(entryData(stored), &entry) != nil {
		return nil
	}
	for _, c := range entry.GetCommands() {
		for _, op := range c.GetSessions().GetOps() {
			all = append(all, op.GetPut().GetSession().GetValue(), op.GetAppend().GetData())
		}
	}
	return all
}

// entryData is the data of a log entry in its stored form, which is a MessagePack
// map: behind the name Data and the length.
func entryData(stored []byte) []byte {
	_, rest, found := bytes.Cut(stored, []byte("\xa4Data"))
	if !found || len(rest) < 5 {
		return nil
	}
	n, head := uint64(0), 0
	switch h := rest[0]; {
	case h&0xe0 == 0xa0:
		n, head = uint64(h&0x1f), 1
	case h == 0xd9, h == 0xc4:
		n, head = uint64(rest[1]), 2
	case h == 0xda, h == 0xc5:
		n, head = uint64(binary.BigEndian.Uint16(rest[1:])), 3
	case h == 0xdb, h == 0xc6:
		n, head = uint64(binary.BigEndian.Uint32(rest[1:])), 5
	}
	if n > uint64(len(rest)-head) {
		return nil
	}
	return rest[head : uint64(head)+n]
}
