// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"
)

// mapKV is the dumbest store.
type mapKV map[slotKey]proto.Message

func (m mapKV) get(t table, key string) proto.Message {
	if r, has := m[slotKey{t, key}]; has {
		return r
	}
	return nil
}
func (m mapKV) put(t table, key string, rec proto.Message) { m[slotKey{t, key}] = rec }
func (m mapKV) del(t table, key string)                    { delete(m, slotKey{t, key}) }

// FuzzEntry applies arbitrary entries to two states: they must agree, and the
// counts must be those of the records.
func FuzzEntry(f *testing.F) {
	for _, c := range goldenCommands() {
		b, err := proto.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append([]byte{0x12, byte(len(b))}, b...))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var encoded [2][]byte
		for i := range encoded {
			e, err := decodeEntry(data)
			if err != nil {
				return
			}
			store := mapKV{}
			s := newState(store)
			for index := uint64(1); index < 4; index++ {
				for _, c := range e.GetCommands() {
					r := s.apply(env{index: index, wall: e.GetWallUnixMs()}, proto.CloneOf(c))
					b, err := encodeRecord(r)
					if err != nil {
						t.Fatalf("result %v: %v", r, err)
					}
					encoded[i] = append(encoded[i], b...)
				}
			}
			var tables [tableCount]int
			for k := range store {
				tables[k.t]++
			}
			if tables != s.counts.tables || uint64(len(s.events)) != s.revision {
				t.Fatalf("counts %v, records %v; revision %d, events %d", s.counts.tables, tables, s.revision, len(s.events))
			}
		}
		if !bytes.Equal(encoded[0], encoded[1]) {
			t.Fatal("the same entries gave different results")
		}
	})
}

func FuzzClientRecord(f *testing.F) {
	f.Add((&writer{number: 7, name: "w", ackedBelow: 2, highestSeq: 5, answered: []answer{{2, []byte{8, 1}}, {5, nil}}}).encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		w, err := decodeWriter(data)
		if err != nil {
			return
		}
		again, err := decodeWriter(w.encode())
		if err != nil || !bytes.Equal(again.encode(), w.encode()) {
			t.Fatalf("%x is decoded as %+v, then as %+v, %v", data, w, again, err)
		}
	})
}

func FuzzRecord(f *testing.F) {
	f.Add(uint8(0), []byte("\n\x01g\x12\x01s"))
	f.Add(uint8(1), []byte{})
	f.Fuzz(func(t *testing.T, n uint8, data []byte) {
		rec, err := decodeRecord(table(n), data)
		if err != nil {
			return
		}
		b, err := encodeRecord(rec)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeRecord(table(n), b)
		if err != nil || !proto.Equal(rec, again) {
			t.Fatalf("%v was read back as %v, %v", rec, again, err)
		}
	})
}

func FuzzMeta(f *testing.F) {
	f.Add((&meta{applied: 1, term: 2, revision: 3, clusterID: "c", configuration: []byte("x"), configurationIndex: 4}).encode())
	f.Add([]byte(metaMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := decodeMeta(data)
		if err != nil {
			return
		}
		if _, err := decodeMeta(m.encode()); err != nil {
			t.Fatal(err)
		}
	})
}
