// SPDX-License-Identifier: Apache-2.0

package boltfile

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

const (
	pageHeader  = 16
	elementSize = 16
	bucketSize  = 16

	flagBranch = 0x01
	flagLeaf   = 0x02
	flagMeta   = 0x04

	// maxKeySize is bbolt's.
	maxKeySize = 32 << 10

	elementIsBucket = 0x01
	maxDepth        = 48
)

var order = binary.NativeEndian

// Visit is called for each bucket, with a nil key, and for each key in it after
// that, in order. The slices are valid during the call. An error ends the walk.
type Visit func(bucket, key []byte) error

// file walks one version of a bbolt file.
type file struct {
	r    io.ReaderAt
	meta meta
	// seen has a bit for every page reached so far: a page reached twice is a cycle
	// or a shared subtree, and both are damage.
	seen []uint64
	keys Visit
}

// Verify checks the structure of a bbolt file of size bytes: everything that
// bbolt follows blindly, which is page numbers, kinds, positions, sizes and the
// order of keys, and that each page is filled as bbolt fills it, without a gap, so
// that a page cannot have lost or gained an element. It takes memory for one page
// at each level and a bit for each page, reads every page in use but not the values
// on overflow pages, and knows nothing of what the values are: those need checksums
// of their own.
//
// It does not notice a page that is taken for an older version of itself. Buckets in buckets, which hastate does not
// make, are refused.
func Verify(r io.ReaderAt, size int64, keys Visit) error {
	m, err := readMeta(r, size)
	if err != nil {
		return err
	}
	f := &file{r: r, meta: m, keys: keys}
	if need := int64(m.pages) * m.pageSize; size < need {
		return fmt.Errorf("the file is truncated: %d bytes, its last transaction needs %d", size, need)
	}
	f.seen = make([]uint64, m.pages/64+1)
	return f.tree(m.root, func(flags uint32, name, value []byte) error {
		if flags != elementIsBucket {
			return fmt.Errorf("the root holds %q, which is not a bucket", name)
		}
		return f.bucket(name, value)
	})
}

// bucket walks one bucket given its value in the root: root page and sequence,
// followed by the only page itself if the root page is 0.
func (f *file) bucket(name, value []byte) error {
	if len(value) < bucketSize {
		return fmt.Errorf("bucket %q has %d bytes", name, len(value))
	}
	if err := f.keys(name, nil); err != nil {
		return err
	}
	visit := func(flags uint32, key, _ []byte) error {
		if flags != 0 {
			return fmt.Errorf("bucket %q holds %q of kind %#x", name, key, flags)
		}
		return f.keys(name, key)
	}
	if root := order.Uint64(value); root != 0 {
		if err := f.tree(root, visit); err != nil {
			return fmt.Errorf("bucket %q: %w", name, err)
		}
		return nil
	}
	w := walk{file: f, visit: visit}
	if err := w.inline(value[bucketSize:]); err != nil {
		return fmt.Errorf("bucket %q: %w", name, err)
	}
	return nil
}

func (f *file) tree(root uint64, visit func(flags uint32, key, value []byte) error) error {
	w := walk{file: f, visit: visit}
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
func (f *file) open(id uint64) (*filePage, error) {
	if id < 2 || id >= f.meta.pages {
		return nil, fmt.Errorf("page %d is outside of the %d pages", id, f.meta.pages)
	}
	p := &filePage{r: f.r, id: id, start: int64(id) * f.meta.pageSize, head: make([]byte, f.meta.pageSize)}
	if _, err := f.r.ReadAt(p.head, p.start); err != nil {
		return nil, fmt.Errorf("read page %d: %w", id, err)
	}
	if got := order.Uint64(p.head); got != id {
		return nil, fmt.Errorf("page %d says that it is page %d", id, got)
	}
	run := uint64(order.Uint32(p.head[12:])) + 1
	if id+run > f.meta.pages {
		return nil, fmt.Errorf("page %d runs over %d pages, beyond the last page %d", id, run, f.meta.pages-1)
	}
	for i := id; i < id+run; i++ {
		bit := uint64(1) << (i % 64)
		if f.seen[i/64]&bit != 0 {
			return nil, fmt.Errorf("page %d is used twice", i)
		}
		f.seen[i/64] |= bit
	}
	p.size = int64(run) * f.meta.pageSize
	return p, nil
}

// walk visits the leaves of one tree in the order of their keys.
type walk struct {
	file  *file
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
	next := pageHeader + count*elementSize
	for i := range keys {
		e := table[i*elementSize:]
		if keys[i], err = keyAt(p, i, order.Uint32(e), order.Uint32(e[4:]), next); err != nil {
			return fmt.Errorf("branch page %d: %w", p.id, err)
		}
		next += int64(len(keys[i]))
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

// keyAt reads the key of element i. bbolt writes keys and values one after the
// other, from the end of the table of elements on: so the first position says how
// many elements there are, and each one how long the element before it is.
func keyAt(p page, i int, pos, size uint32, next int64) ([]byte, error) {
	off := pageHeader + int64(i)*elementSize + int64(pos)
	if off != next {
		return nil, fmt.Errorf("key %d is at position %d, but the one before it ends at %d", i, off, next)
	}
	if size == 0 || size > maxKeySize {
		return nil, fmt.Errorf("key %d has %d bytes", i, size)
	}
	return p.at(off, int64(size))
}

// inline checks the page that a small bucket consists of, which it fills.
func (w *walk) inline(p bytesPage) error {
	head, err := p.at(0, pageHeader)
	if err != nil {
		return err
	}
	if flags := order.Uint16(head[8:]); flags != flagLeaf {
		return fmt.Errorf("its page is of kind %#x, not a leaf", flags)
	}
	end, err := w.elements(p, nil, nil)
	if err == nil && end != int64(len(p)) {
		return fmt.Errorf("its page has %d bytes, its elements end at %d", len(p), end)
	}
	return err
}

func (w *walk) leaf(p *filePage, lo, hi []byte) error {
	end, err := w.elements(p, lo, hi)
	if err != nil || end > pageHeader {
		return err
	}
	// Only an empty bucket has an empty leaf. bbolt fills the rest of a page with
	// zeros; an element begins with something else.
	rest, err := p.at(pageHeader, elementSize)
	if err == nil && !bytes.Equal(rest, make([]byte, elementSize)) {
		return fmt.Errorf("it counts no elements but has some")
	}
	return err
}

// elements checks the elements of a leaf page and returns where they end.
func (w *walk) elements(p page, lo, hi []byte) (int64, error) {
	head, err := p.at(0, pageHeader)
	if err != nil {
		return 0, err
	}
	count := int64(order.Uint16(head[10:]))
	table, err := p.at(pageHeader, count*elementSize)
	if err != nil {
		return 0, err
	}
	keys := make([][]byte, count)
	next := pageHeader + count*elementSize
	for i := range keys {
		e := table[i*elementSize:]
		flags, size := order.Uint32(e), int64(order.Uint32(e[12:]))
		if keys[i], err = keyAt(p, i, order.Uint32(e[4:]), order.Uint32(e[8:]), next); err != nil {
			return 0, err
		}
		if err := inOrder(keys[i], prior(keys, i, lo), hi, i == 0); err != nil {
			return 0, fmt.Errorf("key %d: %w", i, err)
		}
		// Values are checked where they lie, and read only if they are buckets:
		// what is in them is checked by its own sums afterwards.
		next += int64(len(keys[i]))
		if size > 0 {
			if _, err := p.at(next+size-1, 1); err != nil {
				return 0, err
			}
		}
		var value []byte
		if flags&elementIsBucket != 0 {
			if value, err = p.at(next, size); err != nil {
				return 0, err
			}
		}
		if err := w.visit(flags, keys[i], value); err != nil {
			return 0, err
		}
		next += size
	}
	return next, nil
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
