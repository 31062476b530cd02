// SPDX-License-Identifier: Apache-2.0

package logstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// This file reads a bbolt file by its documented layout, before bbolt maps it:
// bbolt walks a damaged file on a goroutine of its own, where a failed assertion
// or a fault beyond the end of a truncated file cannot be recovered and ends the
// process without a word about what to do.

const (
	metaMagic   = 0xED0CDAED
	metaVersion = 2

	pageHeader  = 16
	elementSize = 16
	metaSize    = 64
	bucketSize  = 16

	flagBranch = 0x01
	flagLeaf   = 0x02

	elementIsBucket = 0x01
	maxDepth        = 48
)

var errNoMeta = errors.New("no valid meta page")

var order = binary.NativeEndian

// boltMeta is what counts of a meta page.
type boltMeta struct {
	pageSize int64
	root     uint64
	pages    uint64 // high-water mark: pages at or above it do not exist
	txid     uint64
}

// boltFile walks one version of a bbolt file.
type boltFile struct {
	r    io.ReaderAt
	size int64
	meta boltMeta
	// seen has a bit for every page reached so far: a page reached twice is a cycle
	// or a shared subtree, and both are damage.
	seen []uint64
	// logs collects the indexes found in the bucket of log entries.
	logs ranges
}

// verifyBolt checks the structure of a bbolt file and returns the indexes of the
// log entries in it. It checks everything that bbolt follows blindly: page
// numbers, kinds, positions, sizes and the order of keys.
func verifyBolt(f *os.File) (ranges, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b := &boltFile{r: f, size: info.Size()}
	if b.meta, err = readMeta(f, b.size); err != nil {
		return nil, err
	}
	if need := int64(b.meta.pages) * b.meta.pageSize; b.size < need {
		return nil, fmt.Errorf("the file is truncated: %d bytes, its last transaction needs %d", b.size, need)
	}
	b.seen = make([]uint64, b.meta.pages/64+1)
	err = b.tree(b.meta.root, func(flags uint32, name, value []byte) error {
		if flags&elementIsBucket == 0 {
			return fmt.Errorf("the root holds %q, which is not a bucket", name)
		}
		return b.bucket(string(name), value)
	})
	return b.logs, err
}

func readMeta(r io.ReaderAt, size int64) (boltMeta, error) {
	first, err0 := metaAt(r, 0)
	pageSize := first.pageSize
	if err0 != nil {
		pageSize = int64(os.Getpagesize())
	}
	second, err1 := metaAt(r, pageSize)
	if err1 == nil && err0 != nil && second.pageSize != pageSize {
		err1 = fmt.Errorf("the page size is %d, expected %d", second.pageSize, pageSize)
	}
	switch {
	case err0 != nil && err1 != nil:
		return boltMeta{}, fmt.Errorf("%w in %d bytes: %w; %w", errNoMeta, size, err0, err1)
	case err0 != nil:
		return second, nil
	case err1 != nil || first.txid > second.txid:
		return first, nil
	}
	return second, nil
}

func metaAt(r io.ReaderAt, off int64) (boltMeta, error) {
	var page [pageHeader + metaSize]byte
	if _, err := r.ReadAt(page[:], off); err != nil {
		return boltMeta{}, fmt.Errorf("read meta page at %d: %w", off, err)
	}
	m := page[pageHeader:]
	if order.Uint32(m) != metaMagic || order.Uint32(m[4:]) != metaVersion {
		return boltMeta{}, fmt.Errorf("meta page at %d is not of a bbolt file", off)
	}
	h := fnv.New64a()
	_, _ = h.Write(m[:metaSize-8])
	if h.Sum64() != order.Uint64(m[metaSize-8:]) {
		return boltMeta{}, fmt.Errorf("meta page at %d has a wrong checksum", off)
	}
	meta := boltMeta{
		pageSize: int64(order.Uint32(m[8:])),
		root:     order.Uint64(m[16:]),
		pages:    order.Uint64(m[40:]),
		txid:     order.Uint64(m[48:]),
	}
	if meta.pageSize < 512 || meta.pageSize > 1<<24 || meta.pages < 3 || meta.pages > 1<<48/uint64(meta.pageSize) {
		return boltMeta{}, fmt.Errorf("meta page at %d says %d pages of %d bytes", off, meta.pages, meta.pageSize)
	}
	return meta, nil
}

// bucket walks one bucket given its value in the root: root page and sequence,
// followed by the only page itself if the root page is 0.
func (b *boltFile) bucket(name string, value []byte) error {
	if len(value) < bucketSize {
		return fmt.Errorf("bucket %q has %d bytes", name, len(value))
	}
	visit := func(flags uint32, key, _ []byte) error {
		if flags&elementIsBucket != 0 {
			return fmt.Errorf("bucket %q holds a bucket", name)
		}
		if name != "logs" {
			return nil
		}
		if len(key) != 8 {
			return fmt.Errorf("a log entry has a key of %d bytes", len(key))
		}
		index := binary.BigEndian.Uint64(key)
		if n := len(b.logs); n > 0 && b.logs[n-1].last+1 == index {
			b.logs[n-1].last = index
		} else {
			b.logs = append(b.logs, interval{index, index})
		}
		return nil
	}
	if root := order.Uint64(value); root != 0 {
		if err := b.tree(root, visit); err != nil {
			return fmt.Errorf("bucket %q: %w", name, err)
		}
		return nil
	}
	w := walk{file: b, visit: visit}
	if err := w.leaf(bytesPage(value[bucketSize:]), nil, nil); err != nil {
		return fmt.Errorf("bucket %q: %w", name, err)
	}
	return nil
}

func (b *boltFile) tree(root uint64, visit func(flags uint32, key, value []byte) error) error {
	w := walk{file: b, visit: visit}
	return w.node(root, nil, nil, 0)
}

// page is one page with its overflow pages.
type page interface {
	// at returns n bytes at off, or an error if they are not in the page.
	at(off, n int64) ([]byte, error)
}

type bytesPage []byte

func (p bytesPage) at(off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off+n > int64(len(p)) {
		return nil, fmt.Errorf("position %d+%d is outside an inline page of %d bytes", off, n, len(p))
	}
	return p[off : off+n], nil
}

type filePage struct {
	r     io.ReaderAt
	id    uint64
	start int64
	size  int64
	head  []byte // the first page of the run; overflow pages are read when asked for
}

func (p *filePage) at(off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off+n > p.size {
		return nil, fmt.Errorf("page %d: position %d+%d is outside its %d bytes", p.id, off, n, p.size)
	}
	if off+n <= int64(len(p.head)) {
		return p.head[off : off+n], nil
	}
	buf := make([]byte, n)
	if _, err := p.r.ReadAt(buf, p.start+off); err != nil {
		return nil, fmt.Errorf("read page %d: %w", p.id, err)
	}
	return buf, nil
}

// open reads a page and checks its header.
func (b *boltFile) open(id uint64) (*filePage, error) {
	if id < 2 || id >= b.meta.pages {
		return nil, fmt.Errorf("page %d is outside of the %d pages", id, b.meta.pages)
	}
	p := &filePage{r: b.r, id: id, start: int64(id) * b.meta.pageSize, head: make([]byte, b.meta.pageSize)}
	if _, err := b.r.ReadAt(p.head, p.start); err != nil {
		return nil, fmt.Errorf("read page %d: %w", id, err)
	}
	if got := order.Uint64(p.head); got != id {
		return nil, fmt.Errorf("page %d says that it is page %d", id, got)
	}
	run := uint64(order.Uint32(p.head[12:])) + 1
	if id+run > b.meta.pages {
		return nil, fmt.Errorf("page %d runs over %d pages, beyond the last page %d", id, run, b.meta.pages-1)
	}
	for i := id; i < id+run; i++ {
		bit := uint64(1) << (i % 64)
		if b.seen[i/64]&bit != 0 {
			return nil, fmt.Errorf("page %d is used twice", i)
		}
		b.seen[i/64] |= bit
	}
	p.size = int64(run) * b.meta.pageSize
	return p, nil
}

// walk visits the leaves of one tree in the order of their keys.
type walk struct {
	file  *boltFile
	visit func(flags uint32, key, value []byte) error
}

// node checks a page whose keys must lie in [lo, hi); nil is unbounded.
func (w *walk) node(id uint64, lo, hi []byte, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("page %d is deeper than %d levels", id, maxDepth)
	}
	p, err := w.file.open(id)
	if err != nil {
		return err
	}
	switch flags := order.Uint16(p.head[8:]); flags {
	case flagBranch:
		return w.branch(p, lo, hi, depth)
	case flagLeaf:
		if err := w.leaf(p, lo, hi); err != nil {
			return fmt.Errorf("page %d: %w", id, err)
		}
		return nil
	default:
		return fmt.Errorf("page %d is of kind %#x, neither branch nor leaf", id, flags)
	}
}

func (w *walk) branch(p *filePage, lo, hi []byte, depth int) error {
	count := int64(order.Uint16(p.head[10:]))
	if count == 0 {
		return fmt.Errorf("branch page %d is empty", p.id)
	}
	table, err := p.at(pageHeader, count*elementSize)
	if err != nil {
		return err
	}
	keys := make([][]byte, count)
	for i := range keys {
		e := table[i*elementSize:]
		off := pageHeader + int64(i)*elementSize + int64(order.Uint32(e))
		if keys[i], err = p.at(off, int64(order.Uint32(e[4:]))); err != nil {
			return err
		}
		if err := inOrder(keys[i], prior(keys, i, lo), hi, i == 0); err != nil {
			return fmt.Errorf("branch page %d, key %d: %w", p.id, i, err)
		}
	}
	for i := range keys {
		upper := hi
		if i+1 < len(keys) {
			upper = keys[i+1]
		}
		if err := w.node(order.Uint64(table[i*elementSize+8:]), keys[i], upper, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) leaf(p page, lo, hi []byte) error {
	head, err := p.at(0, pageHeader)
	if err != nil {
		return err
	}
	count := int64(order.Uint16(head[10:]))
	table, err := p.at(pageHeader, count*elementSize)
	if err != nil {
		return err
	}
	keys := make([][]byte, count)
	for i := range keys {
		e := table[i*elementSize:]
		flags, size := order.Uint32(e), int64(order.Uint32(e[12:]))
		off := pageHeader + int64(i)*elementSize + int64(order.Uint32(e[4:]))
		if keys[i], err = p.at(off, int64(order.Uint32(e[8:]))); err != nil {
			return err
		}
		if err := inOrder(keys[i], prior(keys, i, lo), hi, i == 0); err != nil {
			return fmt.Errorf("key %d: %w", i, err)
		}
		// Values are checked where they lie, and read only if they are buckets:
		// the entries themselves are checked by their own sums afterwards.
		off += int64(len(keys[i]))
		if size > 0 {
			if _, err := p.at(off+size-1, 1); err != nil {
				return err
			}
		}
		var value []byte
		if flags&elementIsBucket != 0 {
			if value, err = p.at(off, size); err != nil {
				return err
			}
		}
		if err := w.visit(flags, keys[i], value); err != nil {
			return err
		}
	}
	return nil
}

func prior(keys [][]byte, i int, lo []byte) []byte {
	if i == 0 {
		return lo
	}
	return keys[i-1]
}

// inOrder checks a key against its lower neighbour, which it may equal only if it
// is the first of its page, and against the first key after its page.
func inOrder(key, below, above []byte, first bool) error {
	if c := bytes.Compare(key, below); below != nil && (c < 0 || c == 0 && !first) {
		return fmt.Errorf("%x does not come after %x", key, below)
	}
	if above != nil && bytes.Compare(key, above) >= 0 {
		return fmt.Errorf("%x does not come before %x", key, above)
	}
	return nil
}
