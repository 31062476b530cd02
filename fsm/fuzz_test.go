// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "github.com/hastate/hastate/proto/hastate/v1"
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
		b, err := proto.Marshal(&pb.Entry{WallUnixMs: 1, Commands: []*pb.Command{c}})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var encoded [2][]byte
		var stores [2]mapKV
		for i := range encoded {
			e, err := decodeEntry(data)
			if err != nil {
				return
			}
			store := mapKV{}
			stores[i] = store
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
		for k, rec := range stores[0] {
			other := stores[1][k]
			if other == nil || !proto.Equal(rec, other) {
				t.Fatalf("the same entries gave %v and %v", rec, other)
			}
			// What is stored can be stored: it is read back as it was.
			b, err := encodeRecord(rec)
			if err != nil {
				t.Fatal(err)
			}
			if back, err := decodeRecord(k.t, b); err != nil || !proto.Equal(back, rec) {
				t.Fatalf("%v is read back as %v, %v", rec, back, err)
			}
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
	if old, err := hex.DecodeString(metaOfFormat1); err == nil {
		f.Add(old)
	}
	// The checksum keeps arbitrary bytes out: it is put right for half of them.
	f.Add(append([]byte("right"), (&meta{clusterID: "c"}).encode()...))
	f.Fuzz(func(t *testing.T, data []byte) {
		if body, asked := bytes.CutPrefix(data, []byte("right")); asked && len(body) >= sumBytes {
			body = body[:len(body)-sumBytes]
			data = binary.BigEndian.AppendUint32(bytes.Clone(body), crc32.Checksum(body, castagnoli))
		}
		m, err := decodeMeta(data)
		if err != nil {
			return
		}
		again, err := decodeMeta(m.encode())
		m.untallied = false // it is written in the newest format
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Fatalf("%+v was read back as %+v, %v", m, again, err)
		}
	})
}

// FuzzStored reads a value of the state file: what is accepted is what would be
// written at this place, and at no other.
func FuzzStored(f *testing.F) {
	f.Add(uint8(0), "g\x00s", sealed(tableSessions, "g\x00s", []byte("\n\x01g\x12\x01s")))
	f.Add(uint8(1), "g", []byte("abc"))
	f.Fuzz(func(t *testing.T, n uint8, key string, stored []byte) {
		v, err := unsealed(table(n), key, stored)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("it is not called damaged: %v", err)
			}
			v = stored
		} else if !bytes.Equal(sealed(table(n), key, bytes.Clone(v)), stored) {
			t.Fatalf("%x is accepted and written otherwise", stored)
		}
		again := sealed(table(n), key, bytes.Clone(v))
		if _, err := unsealed(table(n)+1, key, again); err == nil {
			t.Fatal("it is accepted in another table")
		}
		if _, err := unsealed(table(n), key+"x", again); err == nil {
			t.Fatal("it is accepted under another key")
		}
	})
}

// FuzzRestore restores damaged states, with a header and without, as snapshots and
// as backups: what is refused changes nothing and leaves nothing behind, what is
// taken is a state that was written, and goes on.
func FuzzRestore(f *testing.F) {
	good, states := aged(f)
	header := func(m meta) *pb.ArchiveHeader {
		return &pb.ArchiveHeader{ClusterId: m.clusterID, Index: m.applied, Term: m.term, Revision: m.revision, StateBytes: uint64(len(good))}
	}
	path := filepath.Join(memoryDir(f), "good.db")
	if err := os.WriteFile(path, good, 0o600); err != nil {
		f.Fatal(err)
	}
	found, err := inspectFile(path)
	if err != nil {
		f.Fatal(err)
	}
	for mode := range uint8(4) {
		f.Add(mode, []byte(nil), uint32(0))
		f.Add(mode, []byte{0, 0, 64, 10, 1}, uint32(0))
		f.Add(mode, []byte(nil), uint32(5000))
	}
	f.Fuzz(func(t *testing.T, mode uint8, damage []byte, cut uint32) {
		data := damagedCopy(good, damage, cut)
		var h *pb.ArchiveHeader
		if mode%4 > 0 {
			h = header(found.meta)
			h.Backup = mode%4 == 2
			h.StateBytes = uint64(len(data)) - uint64(mode/4)
		}
		dir := memoryDir(t)
		m := open(t, quiet(filepath.Join(dir, "state.db")))
		defer closeMachine(t, m)
		must(t, m, put("old", "s", "v"))
		before := hashOf(t, m)
		if err := restore(m, h, data); err != nil {
			if hashOf(t, m) != before {
				t.Fatal("a refused state has changed the old one")
			}
		} else if !h.GetBackup() {
			copyFile(t, filepath.Join(dir, "state.db"), filepath.Join(dir, "copy"))
			if _, known := states[dump(t, filepath.Join(dir, "copy"))]; !known {
				t.Fatal("the state is none that was written")
			}
		}
		if _, err := os.Stat(restorePath(filepath.Join(dir, "state.db"))); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("it leaves something behind: %v", err)
		}
		must(t, m, put("new", "s", "v"))
		flush(t, m)
	})
}
