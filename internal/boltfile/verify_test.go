// SPDX-License-Identifier: Apache-2.0

package boltfile

import (
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
	"pgregory.net/rapid"
)

// TestTheCheckAgreesWithBbolt: what bbolt writes, in any shape, passes.
func TestTheCheckAgreesWithBbolt(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		path := filepath.Join(t.TempDir(), "any.db")
		db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoFreelistSync: rapid.Bool().Draw(rt, "nofreelist"), NoSync: true, PageSize: 1024 << rapid.IntRange(0, 3).Draw(rt, "size")})
		if err != nil {
			rt.Fatal(err)
		}
		for range rapid.IntRange(0, 5).Draw(rt, "transactions") {
			if err := db.Update(func(tx *bbolt.Tx) error {
				bk, err := tx.CreateBucketIfNotExists(rapid.SliceOfN(rapid.Byte(), 1, 10).Draw(rt, "bucket"))
				if err != nil {
					return err
				}
				for range rapid.IntRange(0, 60).Draw(rt, "keys") {
					k := rapid.SliceOfN(rapid.Byte(), 1, 20).Draw(rt, "key")
					if rapid.Bool().Draw(rt, "delete") {
						err = bk.Delete(k)
					} else {
						err = bk.Put(k, make([]byte, rapid.IntRange(0, 5000).Draw(rt, "value")))
					}
					if err != nil {
						return err
					}
				}
				return nil
			}); err != nil {
				rt.Fatal(err)
			}
		}
		if err := db.Close(); err != nil {
			rt.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			rt.Fatal(err)
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			rt.Fatal(err)
		}
		if err := Verify(f, info.Size(), func(_, _ []byte) error { return nil }); err != nil {
			rt.Fatal(err)
		}
	})
}
