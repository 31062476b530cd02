// SPDX-License-Identifier: Apache-2.0

package propose

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// FuzzEncodeEntry makes an entry of any two commands: it is the entry that the state
// machine decodes, and no larger than was counted.
func FuzzEncodeEntry(f *testing.F) {
	b, err := proto.Marshal(&pb.Command{Op: &pb.Command_OpenClient{OpenClient: &pb.OpenClient{Name: "w"}}, Request: &pb.RequestId{Client: 1, Seq: 2}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(int64(1_700_000_000_000), b, []byte(nil))
	f.Add(int64(-1), []byte{0x0a}, b)
	f.Fuzz(func(t *testing.T, wall int64, first, second []byte) {
		want := &pb.Entry{WallUnixMs: wall}
		var items []*item
		counted := entryOverhead
		for _, data := range [][]byte{first, second} {
			cmd := &pb.Command{}
			if proto.Unmarshal(data, cmd) != nil {
				return
			}
			it, err := newItem(cmd, time.Time{}, func(*pb.Result, error) {})
			if errors.Is(err, hastate.ErrLimit) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want.Commands = append(want.Commands, cmd)
			items = append(items, it)
			counted += it.size
		}
		out := encodeEntry(wall, items)
		got := &pb.Entry{}
		if err := proto.Unmarshal(out, got); err != nil || !proto.Equal(got, want) {
			t.Fatalf("%v was encoded as %v, %v", want, got, err)
		}
		if len(out) > counted {
			t.Fatalf("%d bytes, %d were counted", len(out), counted)
		}
	})
}

// FuzzAnswer tells a node of any error: the answer can be sent whatever the text is,
// and says of an error that is not known to be harmless that the outcome is unknown.
func FuzzAnswer(f *testing.F) {
	for kind := range uint8(6) {
		f.Add(kind, "disk \xff\x00 full", uint64(3))
	}
	f.Fuzz(func(t *testing.T, kind uint8, text string, n uint64) {
		errs := []error{
			errors.New(text), &hastate.OutcomeUnknownError{Reason: text}, &hastate.LimitError{Limit: text, Maximum: n, Actual: n},
			fmt.Errorf("%w: %s", hastate.ErrInvalid, text), &hastate.NotLeaderError{LeaderID: text, LeaderAddress: text}, fmt.Errorf("%s: %w", text, hastate.ErrNoLeader),
		}
		err := errs[int(kind)%len(errs)]
		a := writeAnswer(n, nil, err)
		b, merr := proto.Marshal(a)
		if merr != nil {
			t.Fatalf("%v cannot be sent: %v", err, merr)
		}
		got := &pb.ForwardResponse_Item{}
		if err := proto.Unmarshal(b, got); err != nil || !proto.Equal(got, a) {
			t.Fatalf("%v arrives as %v, %v", a, got, err)
		}
		harmless := IsNotLeader(err) || errors.Is(err, hastate.ErrLimit) || errors.Is(err, hastate.ErrInvalid)
		if got.GetId() != n || got.GetOutcomeUnknown() == harmless {
			t.Fatalf("%v is answered by %v", err, got)
		}
	})
}
