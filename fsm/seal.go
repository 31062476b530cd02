// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"
)

// sumBytes is the length of the checksum behind each value of the state file.
// bbolt has none for its pages: without it a flipped bit would be a different
// state, which the node would serve, and hand on in snapshots.
const sumBytes = 4

// tableClients stands for the bucket of the writers in checksums.
const tableClients = tableCount

// sumOf covers the place of a value too.
func sumOf(t table, key string, value []byte) uint32 {
	c := crc32.Update(0, castagnoli, []byte{byte(t)})
	c = crc32.Update(c, castagnoli, []byte(key))
	return crc32.Update(c, castagnoli, value)
}

// sealed is a value as it is in the file.
func sealed(t table, key string, value []byte) []byte {
	return binary.BigEndian.AppendUint32(value, sumOf(t, key, value))
}

// unsealed checks a value of the file and takes the checksum off.
func unsealed(t table, key string, stored []byte) ([]byte, error) {
	n := len(stored) - sumBytes
	if n < 0 || sumOf(t, key, stored[:n]) != binary.BigEndian.Uint32(stored[n:]) {
		return nil, fmt.Errorf("%w: the checksum of record %q of table %d is wrong", ErrDamaged, key, t)
	}
	return stored[:n], nil
}

// decodeStored reads a record of the state file.
func decodeStored(t table, key string, stored []byte) (proto.Message, error) {
	b, err := unsealed(t, key, stored)
	if err != nil {
		return nil, err
	}
	return decodeRecord(t, b)
}

// tally counts the records of a state file and adds up their checksums. Each
// record can be right and the file wrong all the same: a flipped bit in a page
// makes bbolt pass over records, or take an older version of a page, which is still
// in the file, for the current one.
type tally struct{ records, sum uint64 }

func (t *tally) add(stored []byte) {
	t.records++
	t.sum += storedSum(stored)
}

func (t *tally) take(stored []byte) {
	t.records--
	t.sum -= storedSum(stored)
}

// storedSum is the checksum of a value of the file as it is there.
func storedSum(stored []byte) uint64 {
	if len(stored) < sumBytes {
		return 0
	}
	return uint64(binary.BigEndian.Uint32(stored[len(stored)-sumBytes:]))
}

// put writes a sealed value. A nil value deletes.
func (t *tally) put(b *bolt.Bucket, key, value []byte) error {
	if old := b.Get(key); old != nil {
		t.take(old)
	}
	if value == nil {
		return b.Delete(key)
	}
	t.add(value)
	return b.Put(key, value)
}

// tallyOf goes through all records of a file.
func tallyOf(tx *bolt.Tx) (tally, error) {
	var t tally
	err := tx.ForEach(func(name []byte, b *bolt.Bucket) error {
		if bytes.Equal(name, bucketMeta) {
			return nil
		}
		return b.ForEach(func(_, v []byte) error {
			t.add(v)
			return nil
		})
	})
	return t, err
}
