// SPDX-License-Identifier: Apache-2.0

package boltfile

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

const (
	metaMagic   = 0xED0CDAED
	metaVersion = 2
	metaSize    = 64
)

var (
	errNoMeta = errors.New("no valid meta page")
	// errHead: a meta page is right but for what stands before it.
	errHead = errors.New("the head of a page is damaged")
)

// meta is what counts of a meta page.
type meta struct {
	pageSize int64
	root     uint64
	pages    uint64 // high-water mark: pages at or above it do not exist
	txid     uint64
}

// Size is how many bytes of a bbolt file are in use: the rest was allocated ahead.
func Size(r io.ReaderAt, size int64) (int64, error) {
	m, err := readMeta(r, size)
	return int64(m.pages) * m.pageSize, err
}

// readMeta returns the newest valid meta page. bbolt writes the two in turn, and a
// power loss may tear the one that is being written, so one of them may be invalid:
// then nobody was told that its transaction was done. But one flipped byte is no
// torn write. It hides a transaction that was acknowledged, and is refused.
func readMeta(r io.ReaderAt, size int64) (meta, error) {
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
	case errors.Is(err0, errHead), errors.Is(err1, errHead):
		return meta{}, errors.Join(err0, err1)
	case err0 != nil && err1 != nil:
		return meta{}, fmt.Errorf("%w in %d bytes: %w; %w", errNoMeta, size, err0, err1)
	case err0 != nil:
		return second, notFlipped(r, 0, second, err0)
	case err1 != nil:
		return first, notFlipped(r, pageSize, first, err1)
	case first.txid > second.txid:
		return first, nil
	}
	return second, nil
}

// notFlipped returns an error if the invalid meta page at off would, but for one
// byte, be one that is newer than the valid one.
func notFlipped(r io.ReaderAt, off int64, valid meta, why error) error {
	var page [pageHeader + metaSize]byte
	if _, err := r.ReadAt(page[:], off); err != nil {
		return fmt.Errorf("read meta page at %d: %w", off, err)
	}
	m := page[pageHeader:]
	for i, was := range m {
		for x := range 255 {
			m[i] = was ^ byte(x+1)
			if found, err := decodeMeta(m); err == nil && found.txid > valid.txid {
				return fmt.Errorf("%w, because of byte %d: the newest transaction would be lost", why, i)
			}
		}
		m[i] = was
	}
	return nil
}

func metaAt(r io.ReaderAt, off int64) (meta, error) {
	var page [pageHeader + metaSize]byte
	if _, err := r.ReadAt(page[:], off); err != nil {
		return meta{}, fmt.Errorf("read meta page at %d: %w", off, err)
	}
	m, err := decodeMeta(page[pageHeader:])
	if err != nil {
		return meta{}, fmt.Errorf("meta page at %d %w", off, err)
	}
	if flags := order.Uint16(page[8:]); flags != flagMeta || order.Uint64(page[:]) != uint64(min(off, 1)) {
		return m, fmt.Errorf("%w: the meta page at %d says that it is page %d of kind %#x", errHead, off, order.Uint64(page[:]), flags)
	}
	return m, nil
}

func decodeMeta(m []byte) (meta, error) {
	if order.Uint32(m) != metaMagic || order.Uint32(m[4:]) != metaVersion {
		return meta{}, errors.New("is not of a bbolt file")
	}
	h := fnv.New64a()
	_, _ = h.Write(m[:metaSize-8])
	if h.Sum64() != order.Uint64(m[metaSize-8:]) {
		return meta{}, errors.New("has a wrong checksum")
	}
	found := meta{
		pageSize: int64(order.Uint32(m[8:])),
		root:     order.Uint64(m[16:]),
		pages:    order.Uint64(m[40:]),
		txid:     order.Uint64(m[48:]),
	}
	if found.pageSize < 512 || found.pageSize > 1<<24 || found.pages < 3 || found.pages > 1<<48/uint64(found.pageSize) {
		return meta{}, fmt.Errorf("says %d pages of %d bytes", found.pages, found.pageSize)
	}
	return found, nil
}
