// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// TestAppliedEntriesAreSkipped guards Machine.seen: entries that the state
// includes must change nothing when Raft delivers them again.
func TestAppliedEntriesAreSkipped(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	m := open(t, quiet(path))
	var logs []*raft.Log
	for i, c := range []*pb.Command{
		openClient("a"),
		sessions(opAppend(&pb.AppendRequest{Group: "g", Id: "s", Data: []byte("once")})),
		report("g", "n1"),
		cmdGrant(&pb.Grant{Group: "g", Holder: "n1"}),
		cmdRelease(&pb.Release{Group: "g", Holder: "n1", Epoch: 4}),
		put("g", "t", "v"),
	} {
		logs = append(logs, logOf(t, uint64(i+1), c))
	}
	for _, l := range logs {
		m.Apply(l)
	}
	before, revision := hashOf(t, m), m.Revision()

	check := func(when string) {
		t.Helper()
		for i, r := range m.ApplyBatch(logs) {
			if r != nil {
				t.Errorf("%s: entry %d answered %v, want nil", when, i+1, r)
			}
		}
		if got := hashOf(t, m); got != before || m.Revision() != revision {
			t.Errorf("%s: delivering applied entries again changed the state", when)
		}
		if c := m.Changed(); c == nil {
			t.Error("no channel")
		}
	}
	check("before a flush")
	closeMachine(t, m)
	m = open(t, quiet(path))
	defer func() { closeMachine(t, m) }()
	check("after a restart")
}

func TestConfigurationIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	m := open(t, quiet(path))
	if c, index := m.Configuration(); len(c.Servers) != 0 || index != 0 {
		t.Fatalf("a new machine has configuration %v at %d", c, index)
	}
	one := raft.Configuration{Servers: []raft.Server{{ID: "n1", Address: "n1"}}}
	two := raft.Configuration{Servers: []raft.Server{{ID: "n1", Address: "n1"}, {ID: "n2", Address: "n2"}}}
	m.StoreConfiguration(1, one)
	changed := m.Changed()
	m.ApplyBatch([]*raft.Log{
		logOf(t, 2, put("g", "s", "v")),
		{Index: 3, Term: 2, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(two)},
	})
	<-changed
	closeMachine(t, m)
	m = open(t, quiet(path))
	defer func() { closeMachine(t, m) }()
	m.StoreConfiguration(1, one) // Applied before: changes nothing.
	if c, index := m.Configuration(); len(c.Servers) != 2 || index != 3 {
		t.Errorf("configuration %v at %d, want two servers at 3", c, index)
	}
	if index, term := m.Applied(); index != 3 || term != 2 {
		t.Errorf("applied %d of term %d, want 3 of term 2", index, term)
	}
}

func TestUnknownCommandHalts(t *testing.T) {
	unknownOp := protowire.AppendTag(nil, 99, protowire.BytesType)
	unknownOp = protowire.AppendBytes(unknownOp, []byte("future"))
	entry := func(cmd []byte) []byte {
		b := protowire.AppendTag(nil, 2, protowire.BytesType)
		return protowire.AppendBytes(b, cmd)
	}
	mixed, err := proto.Marshal(&pb.Entry{Commands: []*pb.Command{put("g", "s", "v")}})
	if err != nil {
		t.Fatal(err)
	}
	op, err := proto.Marshal(sessions(&pb.SessionOp{}))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"command without operation":         entry(nil),
		"operation of a newer version":      entry(unknownOp),
		"known, then unknown":               append(mixed, entry(unknownOp)...),
		"newer field of the entry":          append([]byte(nil), unknownOp...),
		"session operation of newer format": entry(op),
		"not protobuf":                      {0xff, 0xff},
	} {
		t.Run(name, func(t *testing.T) {
			var halted []error
			o := quiet(filepath.Join(t.TempDir(), "state.db"))
			o.Halt = func(err error) { halted = append(halted, err) }
			m := open(t, o)
			defer m.Close()
			r := m.Apply(&raft.Log{Index: 1, Term: 1, Type: raft.LogCommand, Data: data})
			if _, isErr := r.(error); !isErr || len(halted) != 1 {
				t.Fatalf("response %v, halted %v: want an error and one halt", r, halted)
			}
			if index, _ := m.Applied(); index != 0 || m.Revision() != 0 {
				t.Errorf("the entry was applied in part: index %d, revision %d", index, m.Revision())
			}
			// It must not go on with the next entry either.
			if r := m.Apply(logOf(t, 2, put("g", "s", "v"))); !errors.Is(r.(error), halted[0]) {
				t.Errorf("the next entry was answered with %v", r)
			}
			if _, err := m.Snapshot(); err == nil {
				t.Error("a halted machine gave a snapshot")
			}
		})
	}
}

func TestHaltPanicsByDefault(t *testing.T) {
	m := open(t, quiet(filepath.Join(t.TempDir(), "state.db")))
	defer m.Close()
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	m.Apply(&raft.Log{Index: 1, Type: raft.LogCommand, Data: []byte{0xff}})
}

func TestEmptyEntryIsApplied(t *testing.T) {
	m := newMachine(t)
	applyAt(t, m, 7)
	if index, _ := m.Applied(); index != 7 {
		t.Errorf("applied %d, want 7", index)
	}
}
