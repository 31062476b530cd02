// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// TestFlip_NewestEntries: what is told to be a bit of the newest entries is one of
// their data, and of no others'.
func TestFlip_NewestEntries(t *testing.T) {
	path := filepath.Join(t.TempDir(), "raft.db")
	store, err := raftboltdb.New(raftboltdb.Options{Path: path, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	payload := func(index int) []byte { return bytes.Repeat([]byte{byte(index)}, 1+index*7) }
	data := func(index int, payload []byte) []byte {
		return marshal(t, &pb.Entry{WallUnixMs: int64(index), Commands: []*pb.Command{
			{Op: &pb.Command_Renew{Renew: &pb.RenewBatch{Holder: "n1"}}},
			{Op: &pb.Command_Sessions{Sessions: &pb.SessionOps{Ops: []*pb.SessionOp{
				{Op: &pb.SessionOp_Append{Append: &pb.AppendRequest{Id: "id", Data: payload}}},
			}}}},
		}})
	}
	for i := 1; i <= 200; i++ {
		err = errors.Join(err, store.StoreLog(&raft.Log{Index: uint64(i), Term: 3, Data: data(i, payload(i)), Extensions: []byte("seal"), AppendedAt: time.Unix(1, 2)}))
	}
	if err := errors.Join(err, store.SetUint64([]byte("CurrentTerm"), 3), store.Close()); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	hit := 0
	for round := 1; round <= 30; round++ {
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		if what := flipped(t, path, round); !strings.HasSuffix(what, "of what the newest log entries write are flipped") {
			continue
		}
		hit++
		store, err := raftboltdb.New(raftboltdb.Options{Path: path, NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		changed := 0
		for i := 1; i <= 200; i++ {
			var l raft.Log
			if err := store.GetLog(uint64(i), &l); err != nil {
				t.Fatal(err)
			}
			if l.Index != uint64(i) || l.Term != 3 || string(l.Extensions) != "seal" {
				t.Errorf("round %d: entry %d became %+v", round, i, l)
			}
			got := entryPayloads(append([]byte("\xa4Data\xdb"), append(binary.BigEndian.AppendUint32(nil, uint32(len(l.Data))), l.Data...)...)) //nolint:gosec // small
			switch {
			case bytes.Equal(l.Data, data(i, payload(i))):
			case i <= 200-newestEntries, len(got) != 2, !bytes.Equal(l.Data, data(i, got[1])):
				t.Errorf("round %d: entry %d was hit elsewhere: %x", round, i, l.Data)
			default:
				changed++
			}
		}
		if err := store.Close(); err != nil || changed == 0 {
			t.Errorf("round %d: %d entries have other data, %v", round, changed, err)
		}
	}
	if hit < 8 {
		t.Errorf("%d of 30 rounds hit the newest entries", hit)
	}
}

// TestFlip_Sessions: the bits are those of values in the bucket of the sessions.
func TestFlip_Sessions(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoFreelistSync: true, NoSync: true, PageSize: 4096})
	if err != nil {
		t.Fatal(err)
	}
	value := func(bucket string, i int, payload string) []byte {
		return append(marshal(t, &pb.Session{Id: fmt.Sprintf("%s-%04d", bucket, i), Value: []byte(payload)}), "seal"...)
	}
	const payload = "what it holds;"
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range []string{"clients", bucketSessions, "history"} {
			b, err := tx.CreateBucket([]byte(name))
			for i := range 300 {
				err = errors.Join(err, b.Put(fmt.Appendf(nil, "%s-%04d", name, i), value(name, i, payload)))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	hit := 0
	for round := 1; round <= 30; round++ {
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		if what := flipped(t, path, round); !strings.HasSuffix(what, "of what sessions hold are flipped") {
			continue
		}
		hit++
		db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		changed := map[string]int{}
		err = db.View(func(tx *bbolt.Tx) error {
			return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
				for i := range 300 {
					got := b.Get(fmt.Appendf(nil, "%s-%04d", name, i))
					if bytes.Equal(got, value(string(name), i, payload)) {
						continue
					}
					changed[string(name)]++
					if !bytes.Equal(got, value(string(name), i, string(sessionPayload(got)[0]))) {
						t.Errorf("round %d: %q was hit elsewhere", round, got)
					}
				}
				return nil
			})
		})
		if err := errors.Join(err, db.Close()); err != nil || len(changed) != 1 || changed[bucketSessions] == 0 {
			t.Errorf("round %d: changed %v, %v", round, changed, err)
		}
	}
	if hit < 8 {
		t.Errorf("%d of 30 rounds hit sessions", hit)
	}
}

func flipped(t *testing.T, path string, round int) string {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	what, err := flip(f, newDraw(5, time.Second).round(round))
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return what
}

func marshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
