// SPDX-License-Identifier: Apache-2.0

package seglog

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate/internal/indexes"
)

// paper is a segment's file that is written by hand.
type paper struct {
	segment uint32
	bytes   []byte
	end     end
}

func newPaper(segment uint32) *paper {
	return &paper{segment: segment, bytes: make([]byte, minSegmentBytes)}
}

// put writes an append where the next one goes, under a number.
func (p *paper) put(number uint32, records ...func(*frame)) *paper {
	var f frame
	f.reset()
	for _, r := range records {
		r(&f)
	}
	copy(p.bytes[p.end.sectors*sectorBytes:], f.seal(p.segment, number, p.end.sectors))
	p.end.sectors += f.sectors()
	p.end.appends = number + 1
	return p
}

// next writes an append as it comes.
func (p *paper) next(records ...func(*frame)) *paper { return p.put(p.end.appends, records...) }

func (p *paper) sector(n uint32) []byte { return sectorAt(p.bytes, n) }

func head(h header) func(*frame) { return func(f *frame) { putHeader(f, h) } }
func del(first, last uint64) func(*frame) {
	return func(f *frame) { putDelete(f, indexes.Run{First: first, Last: last}) }
}

func val(name, data string) func(*frame) {
	return func(f *frame) { putValue(f, value{name, []byte(data)}) }
}

func ent(index uint64, size int) func(f *frame) {
	return func(f *frame) { putEntry(f, &raft.Log{Index: index, Term: 1, Data: make([]byte, size)}) }
}

// openPapers opens a log of such files.
func openPapers(t *testing.T, papers ...*paper) (*Log, error) {
	t.Helper()
	files := map[string][]byte{}
	for _, p := range papers {
		files[fileName(p.segment)] = p.bytes
	}
	dir := filepath.Join(t.TempDir(), "log")
	lay(t, dir, files)
	return Open(Options{Dir: dir, SegmentBytes: minSegmentBytes})
}

// TestScan_RefusesWhatNoCrashLeaves: each case is wrong in one way only, so that each
// check is seen to be there.
func TestScan_RefusesWhatNoCrashLeaves(t *testing.T) {
	one := func() *paper { return newPaper(1).next(head(header{segment: 1})).next(ent(1, 900)).next(ent(2, 10)) }
	after := func(p *paper, first, last uint64, values ...value) header {
		return header{segment: p.segment + 1, before: p.end, stored: indexes.Set{{First: first, Last: last}}, values: values}
	}
	for name, c := range map[string]struct {
		files func() []*paper
		words string
	}{
		"a hole below a newer append": {func() []*paper {
			p := one()
			clear(p.bytes[1*sectorBytes : 3*sectorBytes])
			return []*paper{p}
		}, "append 1 is not whole"},
		"half of an older append": {func() []*paper {
			p := one()
			clear(p.sector(2))
			return []*paper{p}
		}, "append 1 is not whole"},
		"a skipped number":   {func() []*paper { return []*paper{one().put(4, ent(3, 10))} }, "append 4 instead of 3"},
		"a number once more": {func() []*paper { return []*paper{one().put(2, ent(3, 10))} }, "append 2 instead of 3"},
		"a sector at another place": {func() []*paper {
			p := one()
			copy(p.sector(4), p.sector(3))
			return []*paper{p}
		}, "checksum of sector 4"},
		"a sector of a later segment": {func() []*paper {
			p := one()
			q := newPaper(7)
			q.end.sectors = p.end.sectors
			copy(p.sector(p.end.sectors), q.put(3, ent(3, 10)).sector(p.end.sectors))
			return []*paper{p}
		}, "checksum of sector 4"},
		"a length that leads out of the file": {func() []*paper {
			p := one()
			big := newPaper(1)
			big.end = end{p.end.sectors, p.end.appends}
			big.next(ent(3, 10))
			s := big.sector(p.end.sectors)
			s[1] = 0xff
			frameSeal(s, 1, 3, p.end.sectors)
			copy(p.sector(p.end.sectors), s)
			return []*paper{p}
		}, "says that it has"},
		"no header":       {func() []*paper { return []*paper{newPaper(1).next(ent(1, 10))} }, "begins with a header"},
		"a second header": {func() []*paper { return []*paper{one().next(head(header{segment: 1}))} }, "has no other"},
		"a header of another segment": {func() []*paper {
			return []*paper{newPaper(1).next(head(header{segment: 2}))}
		}, "says that it is segment 2"},
		"a file that has lost its end": {func() []*paper {
			p := newPaper(1).next(head(header{segment: 1, capacity: minSegmentBytes / sectorBytes})).next(ent(1, 10))
			p.bytes = p.bytes[:8*sectorBytes]
			return []*paper{p}
		}, "its end is lost"},
		"an index of 0": {func() []*paper { return []*paper{one().next(ent(0, 10))} }, "index 0"},
		"a kind that is not known": {func() []*paper {
			return []*paper{one().next(func(f *frame) { f.put([]byte{99}) })}
		}, "unknown kind 99"},
		"a newer format": {func() []*paper {
			p := newPaper(1).next(head(header{segment: 1}))
			p.sector(0)[lengthBytes+1+3] = formatVersion + 1
			frameSeal(p.sector(0), 1, 0, 0)
			return []*paper{p}
		}, "format 2"},
		"a segment that has lost its end": {func() []*paper {
			p := one().next(val("a", "x")).next(val("a", "x"))
			q := newPaper(2).next(head(after(p, 1, 2, value{"a", []byte("x")})))
			clear(p.sector(p.end.sectors - 1))
			return []*paper{p, q}
		}, "the segment before it has"},
		"a header with other indexes": {func() []*paper {
			p := one()
			return []*paper{p, newPaper(2).next(head(after(p, 1, 3)), del(3, 3))}
		}, "the log had the indexes"},
		"a header with another value": {func() []*paper {
			p := one().next(val("a", "x"))
			return []*paper{p, newPaper(2).next(head(after(p, 1, 2, value{"a", []byte("y")})))}
		}, "another value"},
		"a header without a value": {func() []*paper {
			p := one().next(val("a", "x"))
			return []*paper{p, newPaper(2).next(head(after(p, 1, 2)))}
		}, "0 values"},
		"an entry of a segment that has gone": {func() []*paper {
			p := one()
			return []*paper{newPaper(2).next(head(after(p, 1, 2)))}
		}, "entry 1 is in none"},
		"an empty one between two": {func() []*paper {
			p := one()
			h := after(p, 1, 2)
			h.segment = 3
			return []*paper{p, newPaper(2), newPaper(3).next(head(h))}
		}, "0000000002.seg before it is empty"},
		"a number that is missing": {func() []*paper {
			p := one()
			h := after(p, 1, 2)
			h.segment = 3
			return []*paper{p, newPaper(3).next(head(h))}
		}, "0000000002.seg is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := openPapers(t, c.files()...)
			if err == nil {
				shut(t, l)
			}
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), c.words) {
				t.Errorf("%v; want %q", err, c.words)
			}
		})
	}
}

func frameSeal(sector []byte, segment, number, position uint32) {
	f := frame{buf: sector, n: int(uint32(sector[0])<<24|uint32(sector[1])<<16|uint32(sector[2])<<8|uint32(sector[3])) + lengthBytes}
	f.seal(segment, number, position)
}

// TestScan_TakesWhatACrashLeaves: the good cases of the same kind.
func TestScan_TakesWhatACrashLeaves(t *testing.T) {
	for name, c := range map[string]struct {
		change func(p *paper)
		last   uint64
	}{
		"everything":                {func(*paper) {}, 2},
		"the newest append is gone": {func(p *paper) { clear(p.bytes[3*sectorBytes : 5*sectorBytes]) }, 1},
		"its first sector is gone":  {func(p *paper) { clear(p.sector(3)) }, 1},
		"its second sector is gone": {func(p *paper) { clear(p.sector(4)) }, 1},
		"sectors of an earlier use": {func(p *paper) {
			q := newPaper(0)
			q.segment = 0
			q.end.sectors = 5
			copy(p.bytes[5*sectorBytes:], q.put(9, ent(9, 2000)).bytes[5*sectorBytes:])
		}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPaper(1).next(head(header{segment: 1})).next(ent(1, 900)).next(ent(2, 900))
			c.change(p)
			l, err := openPapers(t, p)
			if err != nil {
				t.Fatal(err)
			}
			if got := l.Stored().Last(); got != c.last {
				t.Errorf("the log ends with %d, want %d", got, c.last)
			}
			shut(t, l)
		})
	}
}

// TestSettle_WritesOnceMore: a failed fsync leaves pages that can be read, count as
// clean and are not on the disk. Only to write them again brings them there.
func TestSettle_WritesOnceMore(t *testing.T) {
	dir := t.TempDir()
	s, err := createSegment(dir, 1, minSegmentBytes)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.file.Close() }()
	read := newPaper(1).next(head(header{segment: 1})).next(ent(1, 900)).bytes
	held, err := scan(read, 1, func(found) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if err := s.settle(read, held); err != nil { // the disk has zeros
		t.Fatal(err)
	}
	disk, err := os.ReadFile(filepath.Join(dir, fileName(1)))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(disk[sectorBytes:3*sectorBytes], read[sectorBytes:3*sectorBytes]) {
		t.Error("the newest append was not written again")
	}
}

// TestLog_FailStop: after a failed write nothing is written any more.
func TestLog_FailStop(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	l := open(t, dir)
	if err := l.Store([]*raft.Log{{Index: 1, Term: 1}}); err != nil {
		t.Fatal(err)
	}
	in := l.segments[0]
	good := in.file
	broken, err := os.Open(good.Name()) // for reading only
	if err != nil {
		t.Fatal(err)
	}
	in.file = broken
	if err := l.Store([]*raft.Log{{Index: 2, Term: 1}}); err == nil {
		t.Fatal("it was stored")
	}
	in.file = good
	defer func() { _ = broken.Close() }()
	for what, err := range map[string]error{
		"Store": l.Store([]*raft.Log{{Index: 2, Term: 1}}), "Delete": l.Delete(1, 1), "SetValues": l.SetValues([]string{"a"}, [][]byte{nil}),
	} {
		if err == nil {
			t.Errorf("%s was done after a failed write", what)
		}
	}
	var e raft.Log
	if err := l.Entry(1, &e); err != nil {
		t.Errorf("what was durable cannot be read: %v", err)
	}
	if l.Stored().Last() != 1 {
		t.Errorf("the log has %v", l.Stored())
	}
}

// TestLog_OneDeleteFreesAll: all that is dead goes at once.
func TestLog_OneDeleteFreesAll(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	l := open(t, dir)
	for i := range uint64(100) {
		if err := l.Store([]*raft.Log{{Index: i + 1, Term: 1, Data: make([]byte, 9000)}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Delete(1, 99); err != nil {
		t.Fatal(err)
	}
	if n := len(l.segments); n > 2 {
		t.Errorf("%d segments are in use for one entry", n)
	}
	shut(t, l)
	// Closing stops what makes files; the next one to open goes on with it.
	l = open(t, dir)
	if err := l.tidy(); err != nil {
		t.Fatal(err)
	}
	if files := images(t, dir); len(files) > 4 {
		t.Errorf("%d files are left for one entry", len(files))
	}
}

// TestLog_ADamagedEntryIsNotServed: a bit that flips while the log is open.
func TestLog_ADamagedEntryIsNotServed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	l := open(t, dir)
	if err := l.Store([]*raft.Log{{Index: 1, Term: 1, Data: make([]byte, 900)}}); err != nil {
		t.Fatal(err)
	}
	where := l.contents.at[1]
	for _, offset := range []int64{100, sectorBytes + 100} {
		at := int64(where.position)*sectorBytes + offset
		if _, err := l.segments[0].file.WriteAt([]byte{1}, at); err != nil {
			t.Fatal(err)
		}
		var e raft.Log
		if err := l.Entry(1, &e); !errors.Is(err, ErrDamaged) {
			t.Errorf("it was served: %v", err)
		}
		if _, err := l.segments[0].file.WriteAt([]byte{0}, at); err != nil {
			t.Fatal(err)
		}
	}
}
