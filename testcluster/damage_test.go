// SPDX-License-Identifier: Apache-2.0

package testcluster

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate/internal/logstore"
	"github.com/hastate/hastate/internal/wait"
	"github.com/hastate/hastate/node"
)

// damage is something that happens to a file.
type damage struct {
	// file is relative to the data folder; a pattern.
	file string
	what string
	do   func(t *testing.T, path string)
	// sometimes: it may hit a part that nobody reads. Then the node starts and its
	// state is right.
	sometimes bool
}

// truncate cuts a file off. A file of bbolt has a long tail that is not used yet, so
// it is the beginning that counts.
func truncate(size int64) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		t.Helper()
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
	}
}

// used is about how much of a bbolt file is in use here.
const used = 128 << 10

// flip changes bits at random places of a file.
func flip(r *rand.Rand, n int) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		t.Helper()
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for range n {
			data[r.IntN(min(len(data), used))] ^= 1 << r.IntN(8)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// flipWhere changes one bit of a text that is in the file.
func flipWhere(text string) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		t.Helper()
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for at, found := 0, 0; ; found++ {
			i := strings.Index(string(data[at:]), text)
			if i < 0 {
				if found == 0 {
					t.Fatalf("%s has no %q", path, text)
				}
				break
			}
			at += i
			data[at] ^= 0x04
			at++
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A node whose files are damaged does not start, says which file and what to do,
// and the others go on. Damage that does no harm does none.
func TestDamage(t *testing.T) {
	for _, kind := range logstore.Kinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			testDamage(t, kind)
		})
	}
}

func testDamage(t *testing.T, kind logstore.Kind) {
	t.Helper()
	c := New(t, Options{NoInstances: true, Configure: func(c *node.Config) {
		eager(c)
		c.LogStore = kind
	}})
	log := "raft.db"
	if kind == logstore.Segments {
		log = "raft.seg/*1.seg"
	}
	leader := c.WaitLeader()
	victim := c.Others(leader)[0]
	for i := range 60 {
		put(t, leader, fmt.Sprintf("s-%02d", i), fmt.Sprintf("mark-of-%02d", i))
	}
	wait.Until(t, Patience, func() error {
		if s := victim.Node().Raft().Stats()["last_snapshot_index"]; s == "0" {
			return errors.New("no snapshot yet")
		}
		return nil
	})
	caughtUp(t, victim, leader)
	victim.Crash()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	cases := []damage{
		{file: "node.json", what: "cut off", do: truncate(20)},
		{file: "node.json", what: "emptied", do: truncate(0)},
		{file: log, what: "cut off", do: truncate(12 << 10)},
		{file: log, what: "emptied", do: truncate(0)},
		{file: log, what: "an entry changed", do: flipWhere("mark-of-59")},
		{file: "state.db", what: "cut off", do: truncate(12 << 10)},
		{file: "state.db", what: "emptied", do: truncate(0)},
		{file: "state.db", what: "a record changed", do: flipWhere("mark-of-07")},
		{file: "snapshots/*.meta", what: "cut off", do: truncate(20)},
		{file: "snapshots/*.meta", what: "bits flipped", do: flip(r, 1)},
	}
	for n := range 8 {
		cases = append(cases,
			damage{file: log, what: "bits flipped", do: flip(r, 1<<n), sometimes: true},
			damage{file: "state.db", what: "bits flipped", do: flip(r, 1<<n), sometimes: true})
	}
	dir := victim.Config().DataDir
	aside := dir + "-aside"
	copyFolder(t, aside, dir)
	started := 0
	for i, d := range cases {
		// What the others do meanwhile, the victim has to catch up with.
		put(t, c.WaitLeader(), "while", fmt.Sprint("down ", i))
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		copyFolder(t, dir, aside)
		files, err := filepath.Glob(filepath.Join(dir, d.file))
		if err != nil || len(files) == 0 {
			t.Fatalf("no %s: %v", d.file, err)
		}
		d.do(t, files[len(files)-1])
		err = victim.TryStart()
		switch {
		case err == nil && !d.sometimes:
			t.Fatalf("%s %s: the node started", d.file, d.what)
		case err == nil:
			started++
			caughtUp(t, victim, c.WaitLeader())
			c.checkStates()
			victim.Crash()
		default:
			says(t, err, filepath.Base(files[len(files)-1]), d)
		}
	}
	t.Logf("%d of %d damaged folders were good enough", started, len(cases))
	// Removed and emptied, it joins again.
	change(t, c.Client(), remove(victim.ID))
	gone(t, victim.ID, c.Running()...)
	victim.Wipe()
	victim.Start()
	suffrage(t, victim.ID, raft.Voter, c.Running()...)
}

// says checks that an error names the file and what helps.
func says(t *testing.T, err error, file string, d damage) {
	t.Helper()
	text := err.Error()
	if !strings.Contains(text, file) {
		t.Errorf("%s %s: %q does not name the file", d.file, d.what, text)
	}
	for _, advice := range []string{"join again", "restore", "newer version", "newer hanode"} {
		if strings.Contains(text, advice) {
			return
		}
	}
	t.Errorf("%s %s: %q does not say what to do", d.file, d.what, text)
}

func copyFolder(t *testing.T, to, from string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), data, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}
