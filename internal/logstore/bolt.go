// SPDX-License-Identifier: Apache-2.0

package logstore

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/hastate/hastate/internal/indexes"
)

// deleteChunk is how many indexes one transaction of bbolt removes. Between two of
// them a waiting StoreLogs gets its turn: a compaction of thousands of entries in one
// transaction would stall raft's main loop.
const deleteChunk = 512

// bolt is the backend of raft-boltdb. What it writes carries checksums, for neither
// bbolt nor raft-boltdb has any on it.
type bolt struct {
	db    *raftboltdb.BoltStore
	found indexes.Set
}

func (b *bolt) stored() indexes.Set             { return b.found }
func (b *bolt) remove(first, last uint64) error { return b.db.DeleteRange(first, last) }
func (b *bolt) chunk() uint64                   { return deleteChunk }
func (b *bolt) close() error                    { return b.db.Close() }

func (b *bolt) store(logs []*raft.Log) error {
	sealed := make([]*raft.Log, len(logs))
	for i, l := range logs {
		sealed[i] = seal(l)
	}
	return b.db.StoreLogs(sealed)
}

func (b *bolt) read(index uint64, out *raft.Log) error {
	var l raft.Log
	if err := b.db.GetLog(index, &l); err != nil {
		return err
	}
	if err := unseal(index, &l); err != nil {
		return err
	}
	*out = l
	return nil
}

// set puts one value after the other: raft-boltdb has no transaction of several.
func (b *bolt) set(values []stableValue) error {
	for _, v := range values {
		if err := b.db.Set(v.key, sealValue(v.key, v.value)); err != nil {
			return err
		}
	}
	return nil
}

func (b *bolt) get(key []byte) ([]byte, error) {
	stored, err := b.db.Get(key)
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return nil, errNoValue
	}
	if err != nil {
		return nil, fmt.Errorf("read stable value %q: %w", key, err)
	}
	return unsealValue(key, stored)
}
