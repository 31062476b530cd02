// SPDX-License-Identifier: Apache-2.0

package seglog

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate/internal/indexes"
)

// FuzzRecord: a record of any bytes is an error or is read whole, and what is read and
// written again is the same bytes.
func FuzzRecord(f *testing.F) {
	add := func(put func(*frame)) {
		var fr frame
		fr.reset()
		put(&fr)
		f.Add(unframe(nil, fr.buf)[lengthBytes:fr.n])
	}
	add(func(fr *frame) { putEntry(fr, randomEntry(rand.New(rand.NewPCG(1, 1)), 7)) })
	add(func(fr *frame) { putDelete(fr, indexes.Run{First: 3, Last: 9}) })
	add(func(fr *frame) { putValue(fr, value{"CurrentTerm", []byte("12345678")}) })
	add(func(fr *frame) {
		putHeader(fr, header{segment: 3, capacity: 9, before: end{7, 2}, stored: indexes.Set{{First: 1, Last: 2}, {First: 5, Last: 9}}, values: []value{{"a", []byte("b")}}})
	})
	f.Fuzz(func(t *testing.T, b []byte) {
		record, n, err := decodeRecord(b)
		if err != nil {
			return
		}
		var fr frame
		fr.reset()
		switch r := record.(type) {
		case header:
			putHeader(&fr, r)
		case *raft.Log:
			putEntry(&fr, r)
		case indexes.Run:
			putDelete(&fr, r)
		case value:
			putValue(&fr, r)
		}
		if got := unframe(nil, fr.buf)[lengthBytes:fr.n]; !bytes.Equal(got, b[:n]) {
			t.Fatalf("%x became %x", b[:n], got)
		}
	})
}

// FuzzScan: a segment of any bytes is an error or yields appends; it neither panics nor
// takes memory.
func FuzzScan(f *testing.F) {
	dir := filepath.Join(f.TempDir(), "log")
	l := open(f, dir)
	m, rnd := newModel(), rand.New(rand.NewPCG(3, 3))
	for range 12 {
		m.step(f, l, rnd)
	}
	shut(f, l)
	for _, b := range images(f, dir) {
		f.Add(b[:16<<10], true)
	}
	f.Fuzz(func(t *testing.T, b []byte, mend bool) {
		b = bytes.Clone(b[:len(b)/sectorBytes*sectorBytes])
		if mend { // checksums that are right let the input get further
			for p := range uint32(len(b) / sectorBytes) {
				s := sectorAt(b, p)
				sum := checksum(s, p)
				s[atChecksum], s[atChecksum+1], s[atChecksum+2], s[atChecksum+3] = byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum)
			}
		}
		c, in := newContents(), &segment{number: 1}
		held, err := scan(b, 1, func(a found) error { return c.replay(in, a, end{}, true) })
		if err != nil {
			return
		}
		if int(held.sectors+held.torn)*sectorBytes > len(b) || held.appends > held.sectors {
			t.Fatalf("%+v of %d bytes", held, len(b))
		}
		if in.live != len(c.at) {
			t.Fatalf("%d entries are said to lie in the segment, and %d do", in.live, len(c.at))
		}
	})
}
