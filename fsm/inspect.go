// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"bytes"
	"encoding/binary"
	"fmt"

	bolt "go.etcd.io/bbolt"
)

// inspect reads a whole state file, checks the order of the keys, every checksum
// and that no record is missing, counts the records and loads what a Machine keeps in memory.
func inspect(tx *bolt.Tx) (contents, error) {
	c := contents{counts: counts{sessions: map[string]int{}}, clients: map[uint64]*writer{}}
	b := tx.Bucket(bucketMeta)
	if b == nil {
		return c, fmt.Errorf("%w: it is not a state file of hastate", ErrDamaged)
	}
	var err error
	if c.meta, err = decodeMeta(b.Get(keyMeta)); err != nil {
		return c, err
	}
	var found tally
	for t, name := range bucketNames {
		err := eachKey(tx, name, func(k, v []byte) error {
			found.add(v)
			if _, err := unsealed(table(t), string(k), v); err != nil {
				return err
			}
			c.counts.add(table(t), string(k), 1)
			return nil
		})
		if err != nil {
			return c, err
		}
	}
	err = eachKey(tx, bucketClients, func(k, v []byte) error {
		found.add(v)
		v, err := unsealed(tableClients, string(k), v)
		if err != nil {
			return err
		}
		w, err := decodeWriter(v)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if !bytes.Equal(k, clientKey(w.number)) {
			return fmt.Errorf("%w: the record of client %d has the key %x", ErrDamaged, w.number, k)
		}
		c.clients[w.number] = w
		for _, a := range w.answered {
			c.answeredBytes += len(a.result)
		}
		return nil
	})
	if err != nil {
		return c, err
	}
	if c.meta.untallied {
		c.meta.tally = found
	}
	if c.meta.tally != found {
		return c, fmt.Errorf("%w: it has %d records, %d were written, or they are not those that were written last", ErrDamaged, found.records, c.meta.tally.records)
	}
	return c, nil
}

// eachKey walks a bucket.
func eachKey(tx *bolt.Tx, name []byte, fn func(k, v []byte) error) error {
	b := tx.Bucket(name)
	if b == nil {
		return fmt.Errorf("%w: bucket %s is missing", ErrDamaged, name)
	}
	var last []byte
	cur := b.Cursor()
	for k, v := cur.First(); k != nil; k, v = cur.Next() {
		if last != nil && bytes.Compare(last, k) >= 0 {
			return fmt.Errorf("%w: keys of bucket %s are out of order", ErrDamaged, name)
		}
		last = append(last[:0], k...)
		if err := fn(k, v); err != nil {
			return err
		}
	}
	return nil
}

// clientKey is the key of a client record.
func clientKey(number uint64) []byte { return binary.BigEndian.AppendUint64(nil, number) }
