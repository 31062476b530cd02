// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/hastate/hastate"
)

// used is the state file without what is allocated at its end but not in use.
func used(t testing.TB, path string) []byte {
	t.Helper()
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	var size int64
	err = db.View(func(tx *bolt.Tx) error {
		size = tx.Size()
		return nil
	})
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data[:size]
}

// filled makes a state file with some records.
func filled(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state.db")
	m := open(t, quiet(path))
	must(t, m, initCluster("c1"), openClient("a"), report("g", "n1"))
	for i := range 200 {
		must(t, m, put("g", fmt.Sprintf("s%03d", i), strings.Repeat("v", 300)))
	}
	closeMachine(t, m)
	return path
}

func TestOpenRefusesOtherProcess(t *testing.T) {
	path := filled(t)
	m := open(t, quiet(path))
	defer func() { closeMachine(t, m) }()
	start := time.Now()
	_, err := Open(quiet(path))
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), path) {
		t.Errorf("second open: %v", err)
	}
	if d := time.Since(start); d > 10*lockTimeout {
		t.Errorf("it took %v", d)
	}
}

func TestOpenRefusesNewerFormat(t *testing.T) {
	path := filled(t)
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		b := (&meta{applied: 1}).encode()
		binary.BigEndian.PutUint32(b[len(metaMagic):], formatVersion+1)
		binary.BigEndian.PutUint32(b[len(b)-4:], crc32.Checksum(b[:len(b)-4], castagnoli))
		return tx.Bucket(bucketMeta).Put(keyMeta, b)
	})
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(quiet(path)); !errors.Is(err, ErrNewerFormat) || errors.Is(err, ErrDamaged) {
		t.Errorf("open: %v", err)
	}
}

func TestOpenRefusesDamage(t *testing.T) {
	good := used(t, filled(t))
	page := os.Getpagesize()
	cases := map[string][]byte{
		"empty":          {},
		"one page":       good[:page],
		"cut in half":    good[:len(good)/2],
		"last page gone": good[:3*page],
		"text":           []byte(strings.Repeat("not a database\n", 5000)),
		"zeroes":         append(append([]byte(nil), good[:2*page]...), make([]byte, len(good)-2*page)...),
	}
	meta := append([]byte(nil), good...)
	for at := 0; ; {
		i := strings.Index(string(meta[at:]), metaMagic)
		if i < 0 {
			break
		}
		at += i + len(metaMagic) + 8
		meta[at] ^= 1
	}
	cases["a bit of the meta record"] = meta
	for name, data := range cases {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.db")
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Open(quiet(path))
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "join again") {
				t.Errorf("open: %v", err)
			}
		})
	}
}

// TestOpenSurvivesAnyDamage overwrites random pieces: Open may find the file
// good (the piece was not in use) or not, but must not crash.
func TestOpenSurvivesAnyDamage(t *testing.T) {
	good := used(t, filled(t))
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	path := filepath.Join(t.TempDir(), "state.db")
	refused := 0
	for range 60 {
		data := append([]byte(nil), good...)
		at, n := rnd.IntN(len(data)), 1+rnd.IntN(2000)
		for i := at; i < min(at+n, len(data)); i++ {
			data[i] = byte(rnd.Uint32())
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := inspectFile(path); err != nil {
			refused++
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewerFormat) {
				t.Errorf("damage at %d: %v", at, err)
			}
		}
	}
	if refused == 0 {
		t.Error("no damage was found")
	}
}

func TestOpenOptions(t *testing.T) {
	if _, err := Open(Options{}); !errors.Is(err, hastate.ErrInvalid) {
		t.Errorf("no path: %v", err)
	}
	if _, err := Open(Options{Path: filepath.Join(t.TempDir(), "missing", "state.db")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	if _, err := Open(Options{Path: filepath.Join(t.TempDir(), "s"), FlushBytes: -1}); !errors.Is(err, hastate.ErrInvalid) {
		t.Errorf("negative size: %v", err)
	}
}

func TestOpenRemovesStaleFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	for _, p := range []string{restorePath(path), path + ".new"} {
		if err := os.WriteFile(p, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	closeMachine(t, open(t, quiet(path)))
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestEverythingSurvivesARestart(t *testing.T) {
	path := filled(t)
	m := open(t, quiet(path))
	before := hashOf(t, m)
	revision := m.Revision()
	if m.ClusterID() != "c1" || revision == 0 {
		t.Errorf("cluster %q, revision %d", m.ClusterID(), revision)
	}
	must(t, m, with(2, 1, 0, put("g", "s000", "new")))
	after := hashOf(t, m)
	if after == before {
		t.Error("a write did not change the hash")
	}
	closeMachine(t, m)
	m = open(t, quiet(path))
	defer func() { closeMachine(t, m) }()
	if hashOf(t, m) != after {
		t.Error("the restart changed the state")
	}
	if m.Flushed() != 202 {
		t.Errorf("flushed %d", m.Flushed())
	}
}
