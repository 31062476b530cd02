// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"
)

// Hash is a digest over all records, the de-duplication windows and the cluster
// id, and the log entry that it is of. It is the same on all nodes at the same
// index, whatever each has flushed. It reads everything; others go on meanwhile.
func (m *Machine) Hash() (index uint64, sum [32]byte) {
	h := sha256.New()
	v, end, err := m.snapshotView(func() {
		index = m.applied
		hashHead(h, m.state)
	})
	if err != nil {
		m.haltOn(err)
		return 0, sum
	}
	err = hashTables(h, v)
	if e := end(); err == nil {
		err = e
	}
	if err != nil {
		m.haltOn(err)
		return 0, sum
	}
	copy(sum[:], h.Sum(nil))
	return index, sum
}

// hashHead covers what is kept beside the tables.
func hashHead(h hash.Hash, s *state) {
	hashBytes(h, []byte(s.clusterID))
	h.Write(binary.BigEndian.AppendUint64(nil, s.revision))
	for _, n := range slices.Sorted(maps.Keys(s.clients)) {
		hashBytes(h, s.clients[n].encode())
	}
}

func hashTables(h hash.Hash, v *view) error {
	for t := range tableCount {
		h.Write([]byte{byte(t)})
		var bad error
		v.ascend(t, "", func(key string, load func() (proto.Message, error)) bool {
			rec, err := load()
			if err != nil {
				bad = err
				return false
			}
			b, err := encodeRecord(rec)
			if err != nil {
				bad = err
				return false
			}
			hashBytes(h, []byte(key))
			hashBytes(h, b)
			return true
		})
		if bad != nil {
			return bad
		}
	}
	return nil
}

// hashBytes adds bytes so that they cannot run into the next ones.
func hashBytes(h hash.Hash, b []byte) {
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(b))))
	h.Write(b)
}
