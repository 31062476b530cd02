// SPDX-License-Identifier: Apache-2.0

package logstore

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hastate/hastate"
)

// folder makes a data folder with a log of a kind, and says what the log holds.
func folder(t *testing.T, kind Kind) (dir, want string) {
	t.Helper()
	dir = t.TempDir()
	b := open(t, Options{Path: PathIn(dir, kind), Kind: kind})
	b.put(1, 1, 300)
	b.del(1, 20)
	b.put(2, 320, 700) // a snapshot was installed in between
	big := entry(2, 701)
	big.Data, big.Extensions = bytes.Repeat([]byte("0123456789"), 200_000), []byte("x")
	if err := errors.Join(b.StoreLog(big), b.SetUint64(voteTerm, 2), b.Set(voteCandidate, []byte("n1")), b.SetUint64([]byte("CurrentTerm"), 3)); err != nil {
		t.Fatal(err)
	}
	want = contents(t, b.Store)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, want
}

func holds(t *testing.T, dir string, kind Kind, want string) {
	t.Helper()
	found, err := Find(dir)
	if err != nil || found != kind {
		t.Fatalf("the folder has a log of the kind %q: %v", found, err)
	}
	b := open(t, Options{Path: PathIn(dir, kind), Kind: kind})
	if contents(t, b.Store) != want {
		t.Error("the log is not what it was")
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Errorf("the folder has %v: %v", files, err)
	}
}

func TestMigrate_ThereAndBack(t *testing.T) {
	for i, kind := range Kinds {
		dir, want := folder(t, kind)
		other := Kinds[1-i]
		m, err := Migrate(dir, other, nil)
		if err != nil {
			t.Fatal(err)
		}
		if m.From != kind || m.To != other || m.First != 21 || m.Last != 701 || m.Entries != 280+381+1 {
			t.Errorf("%+v", m)
		}
		holds(t, dir, other, want)
		if _, err := Migrate(dir, kind, nil); err != nil {
			t.Fatal(err)
		}
		holds(t, dir, kind, want)
	}
}

// TestMigrate_Interrupted stops after each step that can be seen on the disk.
func TestMigrate_Interrupted(t *testing.T) {
	for i, kind := range Kinds {
		other := Kinds[1-i]
		whole := func(t *testing.T, dir string) {
			t.Helper()
			if err := copyLog(Options{Path: PathIn(dir, kind), Kind: kind}, Options{Path: PathIn(dir, other) + newSuffix, Kind: other}); err != nil {
				t.Fatal(err)
			}
		}
		rename := func(t *testing.T, from, to string) {
			t.Helper()
			if err := os.Rename(from, to); err != nil {
				t.Fatal(err)
			}
		}
		for name, c := range map[string]struct {
			stop   func(t *testing.T, dir string)
			starts bool // the node starts with the old log meanwhile
		}{
			"while it copies": {func(t *testing.T, dir string) {
				t.Helper()
				b := open(t, Options{Path: PathIn(dir, other) + newSuffix, Kind: other})
				b.put(1, 1, 3)
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
			}, true},
			"with the copy whole": {whole, true},
			"with the old log aside": {func(t *testing.T, dir string) {
				t.Helper()
				whole(t, dir)
				rename(t, PathIn(dir, kind), PathIn(dir, kind)+oldSuffix)
			}, false},
			"with the new log in its place": {func(t *testing.T, dir string) {
				t.Helper()
				whole(t, dir)
				rename(t, PathIn(dir, kind), PathIn(dir, kind)+oldSuffix)
				rename(t, PathIn(dir, other)+newSuffix, PathIn(dir, other))
			}, false},
		} {
			t.Run(string(kind)+" "+name+", and back", func(t *testing.T) {
				dir, want := folder(t, kind)
				c.stop(t, dir)
				// The old kind is wanted after all: there may be nothing to do.
				if _, err := Migrate(dir, kind, nil); (err == nil) == c.starts {
					t.Fatal(err)
				}
				holds(t, dir, kind, want)
			})
			t.Run(string(kind)+" "+name, func(t *testing.T) {
				dir, want := folder(t, kind)
				c.stop(t, dir)
				switch found, err := Find(dir); {
				case c.starts && (err != nil || found != kind):
					t.Fatalf("%q, %v", found, err)
				case !c.starts && (!errors.Is(err, hastate.ErrPrecondition) || !strings.Contains(err.Error(), "migrate-log")):
					t.Fatalf("a node would start: %q, %v", found, err)
				}
				if _, err := Migrate(dir, other, nil); err != nil {
					t.Fatal(err)
				}
				holds(t, dir, other, want)
			})
		}
	}
}

func TestMigrate_Refuses(t *testing.T) {
	dir, want := folder(t, Bolt)
	for name, err := range map[string]error{
		"the kind that it is": second(Migrate(dir, Bolt, nil)),
		"no log":              second(Migrate(t.TempDir(), Segments, nil)),
	} {
		if !errors.Is(err, hastate.ErrPrecondition) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := second(Migrate(dir, "paper", nil)); !errors.Is(err, hastate.ErrInvalid) {
		t.Errorf("an unknown kind: %v", err)
	}
	holds(t, dir, Bolt, want)
	// Two logs: nobody knows which of them is the newer one.
	if err := os.Mkdir(PathIn(dir, Segments), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Find(dir); !errors.Is(err, hastate.ErrPrecondition) {
		t.Errorf("two logs: %v", err)
	}
}

// TestMigrate_KeepsADamagedLog: the old log stays as it is.
func TestMigrate_KeepsADamagedLog(t *testing.T) {
	dir, _ := folder(t, Bolt)
	path := filepath.Join(dir, "raft.db")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.LastIndex(b, []byte("entry 77 of term 1"))
	b[at] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Migrate(dir, Segments, nil); !errors.Is(err, hastate.ErrPrecondition) {
		t.Fatalf("it was taken: %v", err)
	}
	if found, err := Find(dir); err != nil || found != Bolt {
		t.Errorf("%q, %v", found, err)
	}
}

func second[A, B any](_ A, b B) B { return b }
