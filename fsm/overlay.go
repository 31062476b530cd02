// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"github.com/google/btree"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"
)

const (
	treeDegree = 32
	// itemOverhead is about what an item costs beside its record's bytes.
	itemOverhead = 160
)

// item is a record above the file. A nil rec says that it was deleted.
type item struct {
	key  string
	rec  proto.Message
	size int
}

func itemLess(a, b item) bool { return a.key < b.key }

// layer is one generation of changes: the active one takes them, a sealed one
// is being written to the file and never changes.
type layer struct {
	trees [tableCount]*btree.BTreeG[item]
	// bytes is about what the layer holds in memory.
	bytes int
}

func newLayer() *layer {
	l := &layer{}
	for t := range l.trees {
		l.trees[t] = btree.NewG(treeDegree, itemLess)
	}
	return l
}

func (l *layer) set(t table, it item) {
	it.size = itemOverhead + len(it.key)
	if it.rec != nil {
		it.size += proto.Size(it.rec)
	}
	old, replaced := l.trees[t].ReplaceOrInsert(it)
	if replaced {
		l.bytes -= old.size
	}
	l.bytes += it.size
}

// copy is the layer as it is now; both may be used and changed afterwards.
// Nobody may use l meanwhile.
func (l *layer) copy() *layer {
	c := &layer{bytes: l.bytes}
	for t := range l.trees {
		c.trees[t] = l.trees[t].Clone()
	}
	return c
}

// view is the merged state of layers over a file. With copied layers it is a
// snapshot; with live ones it is valid while the Machine's lock is held.
type view struct {
	// layers, newest first.
	layers []*layer
	tx     *bolt.Tx
}

// get returns nil if there is no such record.
func (v *view) get(t table, key string) (proto.Message, error) {
	for _, l := range v.layers {
		if it, found := l.trees[t].Get(item{key: key}); found {
			return it.rec, nil
		}
	}
	b := v.tx.Bucket(bucketNames[t]).Get([]byte(key))
	if b == nil {
		return nil, nil
	}
	return decodeStored(t, key, b)
}

// ascend calls fn for the records of a table from a key on, in order of key,
// until fn returns false. load decodes the record.
func (v *view) ascend(t table, from string, fn func(key string, load func() (proto.Message, error)) bool) {
	sources := make([]source, 0, len(v.layers)+1)
	for _, l := range v.layers {
		sources = append(sources, &layerSource{tree: l.trees[t]})
	}
	sources = append(sources, &fileSource{t: t, cursor: v.tx.Bucket(bucketNames[t]).Cursor()})
	for _, s := range sources {
		s.seek(from)
	}
	for {
		best := newestLowest(sources)
		if best == nil {
			return
		}
		key, _ := best.at()
		if !best.deleted() && !fn(key, best.load) {
			return
		}
		for _, s := range sources {
			if k, valid := s.at(); valid && k == key {
				s.next()
			}
		}
	}
}

// newestLowest is the first source that stands at the lowest key.
func newestLowest(sources []source) source {
	var best source
	var lowest string
	for _, s := range sources {
		if k, valid := s.at(); valid && (best == nil || k < lowest) {
			best, lowest = s, k
		}
	}
	return best
}

// source is one ordered part of a view.
type source interface {
	seek(from string)
	at() (key string, valid bool)
	next()
	deleted() bool
	load() (proto.Message, error)
}

type layerSource struct {
	tree  *btree.BTreeG[item]
	cur   item
	valid bool
}

func (s *layerSource) seek(from string) {
	s.valid = false
	s.tree.AscendGreaterOrEqual(item{key: from}, func(it item) bool {
		s.cur, s.valid = it, true
		return false
	})
}

func (s *layerSource) at() (string, bool) { return s.cur.key, s.valid }

// next seeks the smallest key above the current one.
func (s *layerSource) next() { s.seek(s.cur.key + "\x00") }

func (s *layerSource) deleted() bool { return s.cur.rec == nil }

func (s *layerSource) load() (proto.Message, error) { return s.cur.rec, nil }

type fileSource struct {
	t      table
	cursor *bolt.Cursor
	key    string
	value  []byte
	valid  bool
}

func (s *fileSource) set(k, v []byte) { s.key, s.value, s.valid = string(k), v, k != nil }

func (s *fileSource) seek(from string) { s.set(s.cursor.Seek([]byte(from))) }

func (s *fileSource) at() (string, bool) { return s.key, s.valid }

func (s *fileSource) next() { s.set(s.cursor.Next()) }

func (s *fileSource) deleted() bool { return false }

func (s *fileSource) load() (proto.Message, error) { return decodeStored(s.t, s.key, s.value) }
