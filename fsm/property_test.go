// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// node is a Machine that a test restarts and crashes.
type node struct {
	t    tb
	dir  string
	runs int
	m    *Machine
	log  []*raft.Log
}

func (n *node) path() string { return filepath.Join(n.dir, fmt.Sprintf("state%d.db", n.runs)) }

func (n *node) open() { n.m = open(n.t, quiet(n.path())) }

// crash continues with what is in the file, as after a power loss.
func (n *node) crash() {
	from := n.path()
	n.runs++
	copyFile(n.t, from, n.path())
	closeMachine(n.t, n.m)
	n.open()
}

// replay delivers the log again, from its first entry.
func (n *node) replay() {
	for _, l := range n.log {
		n.m.Apply(l)
	}
}

// disturb does one of the things that must not make a difference.
func (n *node) disturb(what int) {
	switch what {
	case 0:
		flush(n.t, n.m)
	case 1:
		closeMachine(n.t, n.m)
		n.open()
		n.replay()
	case 2:
		n.crash()
		n.replay()
	case 3:
		n.replay()
	}
}

func TestRandomCommandsAgainstModel(t *testing.T) {
	base := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(base, "case") //nolint:usetesting // one for each case of rapid, whose T has no TempDir
		if err != nil {
			t.Fatalf("make directory: %v", err)
		}
		n := &node{t: t, dir: dir}
		n.open()
		defer func() { closeMachine(t, n.m) }()
		m := newModel()
		gen := &generator{t: t, m: m}
		steps := rapid.IntRange(1, 40).Draw(t, "entries")
		for index := uint64(1); index <= uint64(steps); index++ {
			var cmds, copies []*pb.Command
			var expect []string
			for range rapid.IntRange(1, 3).Draw(t, "commands") {
				c := gen.command()
				cmds = append(cmds, c)
				copies = append(copies, proto.CloneOf(c))
				expect = append(expect, m.apply(index, c))
			}
			l := logOf(t, index, cmds...)
			n.log = append(n.log, l)
			rs, _ := n.m.Apply(l).([]*pb.Result)
			for i, r := range rs {
				if got := brief(copies[i], r); got != expect[i] {
					t.Fatalf("entry %d, command %v: result %v is %q, want %q", index, copies[i], r, got, expect[i])
				}
			}
			if k := rapid.IntRange(0, 24).Draw(t, "disturbance"); k < 4 {
				n.disturb(k)
			}
			m.compare(t, n.m)
		}
	})
}

func TestSameLogGivesSameHash(t *testing.T) {
	base := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(base, "case") //nolint:usetesting // one for each case of rapid, whose T has no TempDir
		if err != nil {
			t.Fatalf("make directory: %v", err)
		}
		calm := &node{t: t, dir: filepath.Join(dir, "calm")}
		rough := &node{t: t, dir: filepath.Join(dir, "rough")}
		for _, n := range []*node{calm, rough} {
			if err := os.Mkdir(n.dir, 0o700); err != nil {
				t.Fatalf("make directory: %v", err)
			}
			n.open()
			defer func() { closeMachine(t, n.m) }()
		}
		m := newModel()
		gen := &generator{t: t, m: m}
		steps := rapid.IntRange(1, 25).Draw(t, "entries")
		for index := uint64(1); index <= uint64(steps); index++ {
			c := gen.command()
			m.apply(index, c)
			l := logOf(t, index, c)
			for _, n := range []*node{calm, rough} {
				n.log = append(n.log, l)
				n.m.Apply(l)
			}
			if k := rapid.IntRange(0, 12).Draw(t, "disturbance"); k < 4 {
				rough.disturb(k)
			}
			if a, b := hashOf(t, calm.m), hashOf(t, rough.m); a != b {
				t.Fatalf("after entry %d the hashes differ: %x, %x", index, a, b)
			}
		}
	})
}
