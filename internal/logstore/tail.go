// SPDX-License-Identifier: Apache-2.0

package logstore

import "github.com/hashicorp/raft"

// entryOverhead is what an entry costs beside its data: the struct and its slot.
const entryOverhead = 128

func entryBytes(l *raft.Log) int64 {
	return int64(len(l.Data)+len(l.Extensions)) + entryOverhead
}

// tail is the cache of the newest entries: contiguous, ending at the entry that
// was stored last, bounded in bytes. The entries share their data with those that
// raft stored; raft never changes an entry after it was stored.
type tail struct {
	limit   int64
	bytes   int64
	base    uint64     // index of entries[head]
	head    int        // slots before it are evicted and zero
	entries []raft.Log // entries[head:] are base, base+1, ...
}

func (t *tail) len() int { return len(t.entries) - t.head }

// end is the index after the newest cached entry.
func (t *tail) end() uint64 { return t.base + uint64(t.len()) }

func (t *tail) get(index uint64, out *raft.Log) bool {
	if t.len() == 0 || index < t.base || index >= t.end() {
		return false
	}
	*out = t.entries[t.head+int(index-t.base)]
	return true
}

// add appends an entry that has been stored. Whatever the cache had at or above
// its index is dropped: after an overwrite in the middle the entries above it are
// read from disk.
func (t *tail) add(l *raft.Log) {
	if t.len() == 0 || l.Index < t.base || l.Index > t.end() {
		t.clear()
		t.base = l.Index
	}
	t.cut(l.Index)
	t.entries = append(t.entries, *l)
	t.bytes += entryBytes(l)
	for t.bytes > t.limit && t.len() > 0 {
		t.evict()
	}
}

func (t *tail) evict() {
	t.bytes -= entryBytes(&t.entries[t.head])
	t.entries[t.head] = raft.Log{}
	t.head++
	t.base++
	// Keep the dead slots below the live ones, at a constant cost per entry.
	if t.head > t.len() {
		n := copy(t.entries, t.entries[t.head:])
		clear(t.entries[n:])
		t.entries, t.head = t.entries[:n], 0
	}
}

// cut drops index and everything above it.
func (t *tail) cut(index uint64) {
	if t.len() == 0 || index >= t.end() {
		return
	}
	if index <= t.base {
		t.clear()
		return
	}
	from := t.head + int(index-t.base)
	for i := from; i < len(t.entries); i++ {
		t.bytes -= entryBytes(&t.entries[i])
	}
	clear(t.entries[from:])
	t.entries = t.entries[:from]
}

func (t *tail) clear() {
	clear(t.entries)
	t.entries, t.head, t.bytes = t.entries[:0], 0, 0
}

// remove drops first..last. A hole in the middle drops everything above it too.
func (t *tail) remove(first, last uint64) {
	if t.len() == 0 || last < t.base || first >= t.end() {
		return
	}
	if first > t.base {
		t.cut(first)
		return
	}
	for t.len() > 0 && t.base <= last {
		t.evict()
	}
}
