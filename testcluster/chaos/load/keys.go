// SPDX-License-Identifier: Apache-2.0

package load

import (
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/hastate/hastate/testcluster/chaos/record"
)

// Bounds of one session's history. Each unknown outcome may be put anywhere after
// its call, which makes the search for an order exponential in them; long
// histories make it slow; long streams make each event of a watch long.
const (
	maxUnknowns    = 6
	maxKeyOps      = 600
	maxStreamBytes = 1 << 10
	maxOwnBytes    = 2 << 10
)

// key is one session. The fields below id are guarded by the book's mutex.
type key struct {
	group, id string
	stream    bool // appended to

	slot          int
	ops, unknowns int
	bytes         uint64
}

// book says which sessions are written at present.
type book struct {
	groups             []string
	prefix             string
	kvKeys, streamKeys int

	mu      sync.Mutex // guards all below
	chapter int
	// generation tells the sessions of one slot and chapter apart.
	generation int
	slots      []*key
}

func newBook(o Options) *book {
	b := &book{groups: o.Groups, prefix: o.Prefix, kvKeys: o.KVKeys, streamKeys: o.StreamKeys}
	b.next()
	return b
}

// next begins a new chapter, with fresh sessions, and returns its number.
func (b *book) next() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.chapter++
	b.slots = nil
	for _, g := range b.groups {
		for i := range b.kvKeys + b.streamKeys {
			k := &key{group: g, stream: i >= b.kvKeys, slot: len(b.slots)}
			b.slots = append(b.slots, k)
			b.name(k)
		}
	}
	return b.chapter
}

// name gives a session an id of its own. mu is held.
func (b *book) name(k *key) {
	kind := "kv"
	if k.stream {
		kind = "stream"
	}
	b.generation++
	k.id = fmt.Sprintf("%sc%03d-%s-%05d", b.prefix, b.chapter, kind, b.generation)
}

// pick draws one of the sessions.
func (b *book) pick(rng *rand.Rand) (k *key, chapter int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.slots[rng.IntN(len(b.slots))], b.chapter
}

// done takes in the end of an operation. A session whose history has become hard
// to judge is replaced.
func (b *book) done(k *key, op record.Op) {
	b.mu.Lock()
	defer b.mu.Unlock()
	k.ops++
	k.bytes = max(k.bytes, op.EndOffset)
	if op.Outcome == record.Unknown && op.Kind != record.Get {
		k.unknowns++
	}
	if k.unknowns <= maxUnknowns && k.ops < maxKeyOps && (!k.stream || k.bytes <= maxStreamBytes) {
		return
	}
	if k.slot < len(b.slots) && b.slots[k.slot] == k {
		fresh := &key{group: k.group, stream: k.stream, slot: k.slot}
		b.name(fresh)
		b.slots[k.slot] = fresh
	}
}
