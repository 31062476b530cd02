// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

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
