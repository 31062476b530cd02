// SPDX-License-Identifier: Apache-2.0

package logstore

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/hashicorp/raft"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sealBytes is the length of the checksum in front of an entry's extensions and
// behind a stable value.
const sealBytes = 4

// sum is the checksum of what raft and the state machine rely on. AppendedAt is
// for people and not covered.
func sum(l *raft.Log, extensions []byte) uint32 {
	var head [25]byte
	binary.BigEndian.PutUint64(head[0:], l.Index)
	binary.BigEndian.PutUint64(head[8:], l.Term)
	head[16] = byte(l.Type)
	binary.BigEndian.PutUint64(head[17:], uint64(len(l.Data)))
	c := crc32.Update(0, castagnoli, head[:])
	c = crc32.Update(c, castagnoli, l.Data)
	return crc32.Update(c, castagnoli, extensions)
}

// seal returns the entry as it is stored: with its checksum in front of the
// extensions. The data is shared, not copied.
func seal(l *raft.Log) *raft.Log {
	s := *l
	s.Extensions = make([]byte, sealBytes, sealBytes+len(l.Extensions))
	binary.BigEndian.PutUint32(s.Extensions, sum(l, l.Extensions))
	s.Extensions = append(s.Extensions, l.Extensions...)
	return &s
}

// unseal checks a stored entry and takes the checksum off.
func unseal(index uint64, l *raft.Log) error {
	if l.Index != index {
		return fmt.Errorf("log entry %d says that it is entry %d: the file is damaged", index, l.Index)
	}
	if len(l.Extensions) < sealBytes {
		return fmt.Errorf("log entry %d has no checksum: the file is damaged or was not written by hastate", index)
	}
	want := binary.BigEndian.Uint32(l.Extensions)
	extensions := l.Extensions[sealBytes:]
	if len(extensions) == 0 {
		extensions = nil
	}
	if got := sum(l, extensions); got != want {
		return fmt.Errorf("log entry %d has checksum %08x, stored was %08x: the file is damaged", index, got, want)
	}
	l.Extensions = extensions
	return nil
}

// sealValue returns a stable value as it is stored.
func sealValue(key, value []byte) []byte {
	c := crc32.Update(crc32.Update(0, castagnoli, key), castagnoli, value)
	return binary.BigEndian.AppendUint32(append(make([]byte, 0, len(value)+sealBytes), value...), c)
}

// unsealValue checks a stable value and takes the checksum off.
func unsealValue(key, stored []byte) ([]byte, error) {
	if len(stored) < sealBytes {
		return nil, fmt.Errorf("stable value %q has no checksum: the file is damaged or was not written by hastate", key)
	}
	value, tail := stored[:len(stored)-sealBytes], stored[len(stored)-sealBytes:]
	c := crc32.Update(crc32.Update(0, castagnoli, key), castagnoli, value)
	if c != binary.BigEndian.Uint32(tail) {
		return nil, fmt.Errorf("stable value %q does not match its checksum: the file is damaged", key)
	}
	return value, nil
}
