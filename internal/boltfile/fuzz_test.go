// SPDX-License-Identifier: Apache-2.0

package boltfile

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"go.etcd.io/bbolt"
)

// small is a bbolt file of small pages with an inline bucket, a tree and a value on
// overflow pages.
func small(t testing.TB) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "small.db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{PageSize: 1024, NoFreelistSync: true, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	for round := range 2 {
		err = errors.Join(err, db.Update(func(tx *bbolt.Tx) error {
			few, err1 := tx.CreateBucketIfNotExists([]byte("few"))
			many, err2 := tx.CreateBucketIfNotExists([]byte("many"))
			if err := errors.Join(err1, err2); err != nil {
				return err
			}
			err := errors.Join(few.Put([]byte("a"), []byte("b")), many.Put([]byte("key 05x"), make([]byte, 1500)))
			for i := range 25 {
				err = errors.Join(err, many.Put(fmt.Appendf(nil, "key %02d", i), bytes.Repeat([]byte{byte(round)}, 60)))
			}
			return err
		}))
	}
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	size, err := Size(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return data[:size]
}

// FuzzVerify takes any bytes for a file: they are refused, or bbolt opens them,
// without a panic, and finds the same keys.
func FuzzVerify(f *testing.F) {
	good := small(f)
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add(good[:64])
	f.Add([]byte{})
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		var keys []string
		if err := Verify(bytes.NewReader(data), int64(len(data)), func(bucket, key []byte) error {
			if key != nil {
				keys = append(keys, fmt.Sprintf("%x/%x", bucket, key))
			}
			return nil
		}); err != nil {
			return
		}
		path := filepath.Join(dir, "any.db")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoFreelistSync: true, NoSync: true})
		if err != nil {
			t.Fatalf("bbolt refuses what was accepted: %v", err)
		}
		var found []string
		err = db.View(func(tx *bbolt.Tx) error {
			return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
				return b.ForEach(func(k, _ []byte) error {
					found = append(found, fmt.Sprintf("%x/%x", name, k))
					return nil
				})
			})
		})
		if err = errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(found, keys) {
			t.Fatalf("bbolt finds %d keys, the check %d", len(found), len(keys))
		}
	})
}

// FuzzDamage changes bytes of a good file that the arbitrary ones never come near:
// the same holds.
func FuzzDamage(f *testing.F) {
	good := small(f)
	f.Add(uint32(2*1024+10), byte(1), uint32(0), byte(0))
	f.Add(uint32(3*1024+24), byte(1), uint32(1024+40), byte(9))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, at uint32, x byte, at2 uint32, x2 byte) {
		data := bytes.Clone(good)
		data[int(at)%len(data)] ^= x
		data[int(at2)%len(data)] ^= x2
		if Verify(bytes.NewReader(data), int64(len(data)), func(_, _ []byte) error { return nil }) != nil {
			return
		}
		path := filepath.Join(dir, "damaged.db")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoFreelistSync: true, NoSync: true})
		if err != nil {
			t.Fatalf("bbolt refuses what was accepted: %v", err)
		}
		// A write moves pages about: what was wrong comes out.
		err = db.Update(func(tx *bbolt.Tx) error {
			return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error { return b.Put([]byte("new"), []byte("value")) })
		})
		err = errors.Join(err, db.View(func(tx *bbolt.Tx) error {
			for problem := range tx.Check() {
				t.Error(problem)
			}
			return nil
		}), db.Close())
		if err != nil {
			t.Fatal(err)
		}
	})
}
