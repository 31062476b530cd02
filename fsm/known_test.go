// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"errors"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// newer is a field that this program does not know.
func newer() protoreflect.RawFields {
	return protowire.AppendVarint(protowire.AppendTag(nil, 19_000, protowire.VarintType), 1)
}

// TestKnown_EveryPlace puts an unknown field into every message that a command can
// hold, however deep, and into no other: each must be refused, by proposers and when
// the log is read.
func TestKnown_EveryPlace(t *testing.T) {
	places := 0
	for _, cmd := range commandsOfAllKinds() {
		if err := CheckCommand(cmd); err != nil {
			t.Fatalf("%v: %v", cmd, err)
		}
		each(cmd.ProtoReflect(), func(m protoreflect.Message) {
			places++
			m.SetUnknown(newer())
			defer m.SetUnknown(nil)
			if err := CheckCommand(cmd); !errors.Is(err, errUnknownCommand) {
				t.Errorf("an unknown field of %s is proposed: %v", m.Descriptor().FullName(), err)
			}
			data, err := proto.Marshal(&pb.Entry{Commands: []*pb.Command{cmd}})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := decodeEntry(data); !errors.Is(err, errUnknownCommand) {
				t.Errorf("an unknown field of %s in the log is passed over: %v", m.Descriptor().FullName(), err)
			}
		})
	}
	if places < 40 {
		t.Errorf("only %d places were tried", places)
	}
}

// commandsOfAllKinds are commands of each kind, with a message in every field that
// takes one.
func commandsOfAllKinds() []*pb.Command {
	var all []*pb.Command
	ops := (&pb.Command{}).ProtoReflect().Descriptor().Oneofs().ByName("op").Fields()
	for i := range ops.Len() {
		cmd := &pb.Command{Request: &pb.RequestId{}}
		fill(cmd.ProtoReflect().Mutable(ops.Get(i)).Message(), 0)
		all = append(all, cmd)
		if ops.Get(i).Name() != "sessions" {
			continue
		}
		kinds := (&pb.SessionOp{}).ProtoReflect().Descriptor().Oneofs().ByName("op").Fields()
		for j := range kinds.Len() {
			op := &pb.SessionOp{}
			fill(op.ProtoReflect().Mutable(kinds.Get(j)).Message(), 0)
			all = append(all, &pb.Command{Op: &pb.Command_Sessions{Sessions: &pb.SessionOps{Ops: []*pb.SessionOp{op}}}})
		}
	}
	return all
}

// fill gives a message a value in every field that holds messages.
func fill(m protoreflect.Message, depth int) {
	const deepest = 8
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case depth > deepest:
		case f.IsMap() && f.MapValue().Message() != nil:
			v := m.NewField(f).Map().NewValue()
			fill(v.Message(), depth+1)
			m.Mutable(f).Map().Set(protoreflect.ValueOfString("k").MapKey(), v)
		case f.IsMap() || f.Message() == nil:
		case f.IsList():
			fill(m.Mutable(f).List().AppendMutable().Message(), depth+1)
		default:
			fill(m.Mutable(f).Message(), depth+1)
		}
	}
}

// each calls do for a message and for every one in it.
func each(m protoreflect.Message, do func(protoreflect.Message)) {
	do(m)
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap() && f.MapValue().Message() != nil:
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				each(v.Message(), do)
				return true
			})
		case f.IsMap() || f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				each(v.List().Get(i).Message(), do)
			}
		default:
			each(v.Message(), do)
		}
		return true
	})
}
