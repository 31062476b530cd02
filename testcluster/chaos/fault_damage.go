// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/hastate/hastate/internal/boltfile"
)

// The layout of bbolt's pages, as far as damage is aimed.
const (
	boltHead    = 16 // of every page: id, kind, number of elements, overflow pages
	boltElement = 16
	boltMeta    = 64
	boltLeaf    = 0x02
)

// layout is where the used part of a bbolt file is: the rest was allocated ahead,
// and damage to it is none.
type layout struct {
	page int64
	// used are the bytes below the high-water mark.
	used int64
	// live are the positions of the pages of the newest version; leaves those of
	// them that hold records.
	live, leaves []int64
	// keys are those of each bucket, in order.
	keys map[string][]string
}

// reads notes where whole pages are read.
type reads struct {
	io.ReaderAt
	page int64
	at   []int64
}

func (r *reads) ReadAt(p []byte, off int64) (int, error) {
	if int64(len(p)) == r.page && off%r.page == 0 {
		r.at = append(r.at, off)
	}
	return r.ReaderAt.ReadAt(p, off)
}

// layoutOf looks at a bbolt file whose process has ended. It must be whole.
func layoutOf(f *os.File) (layout, error) {
	info, err := f.Stat()
	if err != nil {
		return layout{}, err
	}
	l := layout{keys: map[string][]string{}}
	if l.used, err = boltfile.Size(f, info.Size()); err != nil {
		return l, fmt.Errorf("look for the used part of %s: %w", f.Name(), err)
	}
	first, err := read(f, boltHead, boltMeta)
	if err != nil {
		return l, err
	}
	l.page = int64(binary.NativeEndian.Uint32(first[8:]))
	if l.page < 512 { // the first meta page may be one that a kill has torn
		l.page = int64(os.Getpagesize())
	}
	walk := &reads{ReaderAt: f, page: l.page}
	visit := func(bucket, key []byte) error {
		if key != nil {
			l.keys[string(bucket)] = append(l.keys[string(bucket)], string(key))
		}
		return nil
	}
	if err := boltfile.Verify(walk, info.Size(), visit); err != nil {
		return l, fmt.Errorf("%s is damaged before anybody damaged it: %w", f.Name(), err)
	}
	slices.Sort(walk.at)
	l.live = slices.Compact(walk.at)
	for _, at := range l.live {
		head, err := read(f, at, boltHead)
		if err != nil {
			return l, err
		}
		if kind, n := binary.NativeEndian.Uint16(head[8:]), binary.NativeEndian.Uint16(head[10:]); kind == boltLeaf && n > 0 {
			l.leaves = append(l.leaves, at)
		}
	}
	if len(l.leaves) == 0 {
		return l, fmt.Errorf("%s holds nothing that could be damaged", f.Name())
	}
	return l, nil
}

func read(f io.ReaderAt, at, n int64) ([]byte, error) {
	b := make([]byte, n)
	if _, err := f.ReadAt(b, at); err != nil {
		return nil, fmt.Errorf("read %d bytes at %d: %w", n, at, err)
	}
	return b, nil
}

// records is where the keys and values of a leaf page are.
func (l layout) records(f io.ReaderAt, leaf int64) (from, to int64, err error) {
	head, err := read(f, leaf, boltHead)
	if err != nil {
		return 0, 0, err
	}
	n := int64(binary.NativeEndian.Uint16(head[10:]))
	last := leaf + boltHead + (n-1)*boltElement
	e, err := read(f, last, boltElement)
	if err != nil {
		return 0, 0, err
	}
	size := func(at int) int64 { return int64(binary.NativeEndian.Uint32(e[at:])) }
	return last + boltElement, last + size(4) + size(8) + size(12), nil
}

// tear damages the end of what is used of a file, as a write that was not finished
// would. The meta pages are left: what is torn there takes back a transaction that
// was acknowledged, which no crash does and no node could notice.
func tear(f *os.File, d *draw) (string, error) {
	how, pages, share := d.IntN(3), int64(1+d.IntN(4)), d.Float64()
	l, err := layoutOf(f)
	if err != nil {
		return "", err
	}
	if how == 0 { // inside the last used pages: everything behind is gone too
		at := max(2*l.page, l.used-pages*l.page) + int64(share*float64(l.page-1))
		return fmt.Sprintf("it is cut off at byte %d, %d are used", at, l.used), f.Truncate(at)
	}
	// The last page of the newest version; those behind it are of older ones.
	last := l.live[len(l.live)-1]
	at := max(2*l.page, last-(pages-1)*l.page)
	n := last + l.page - at
	if how == 1 {
		return fmt.Sprintf("%d bytes at %d are zero, %d are used", n, at, l.used), overwrite(f, at, make([]byte, n))
	}
	junk := make([]byte, n)
	for i := range junk {
		junk[i] = byte(d.Uint32())
	}
	return fmt.Sprintf("%d bytes at %d are overwritten, %d are used", n, at, l.used), overwrite(f, at, junk)
}

// overwrite writes something else than there was.
func overwrite(f *os.File, at int64, with []byte) error {
	was, err := read(f, at, int64(len(with)))
	if err != nil {
		return err
	}
	if bytes.Equal(was, with) {
		return errors.New("there is already what was to be written: nothing is damaged")
	}
	_, err = f.WriteAt(with, at)
	return err
}
