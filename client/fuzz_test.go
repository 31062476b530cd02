// SPDX-License-Identifier: Apache-2.0

package client

import (
	"errors"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// FuzzPipelineResult reads any result that a node may send for an operation: all but
// the code OK is an error.
func FuzzPipelineResult(f *testing.F) {
	for _, r := range []*pb.PipelineResult{
		{Id: 1, Results: []*pb.SessionOpResult{{Revision: 3}}},
		{Id: 1, Code: uint32(codes.Unavailable), Message: "m", Details: [][]byte{{1, 2}, nil}},
		{Id: 1, Code: 4_000_000_000, Message: "m"},
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &pb.PipelineResult{}
		if proto.Unmarshal(data, r) != nil {
			return
		}
		err := resultError(r)
		if (err == nil) != (r.GetCode() == uint32(codes.OK)) {
			t.Fatalf("%v gives %v", r, err)
		}
		if err == nil {
			return
		}
		_ = err.Error()
		_, _, _, _ = passing(err), vague(err), forbidden(err), queueFull(err)
		if errors.Is(err, hastate.ErrOutcomeUnknown) && notDone(err) {
			t.Fatalf("%v is both unknown and certainly not done", err)
		}
	})
}

// FuzzPrimary reads any two primaries that nodes may tell of: which of them is newer
// does not depend on who is asked.
func FuzzPrimary(f *testing.F) {
	for _, p := range []*pb.Primary{{Group: "g", NodeId: "n1", Epoch: 3, Phase: pb.GroupPhase_GROUP_PHASE_SERVING, Address: "a:1"}, {Phase: 99}} {
		b, err := proto.Marshal(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, []byte(nil))
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		a, b := &pb.Primary{}, &pb.Primary{}
		if proto.Unmarshal(first, a) != nil || proto.Unmarshal(second, b) != nil {
			return
		}
		p, q := fromProto(a), fromProto(b)
		if p.before(p) || p.before(q) && q.before(p) {
			t.Fatalf("%+v and %+v are before each other", p, q)
		}
		if p.equal(q) != q.equal(p) || !p.equal(p) {
			t.Fatalf("%+v and %+v", p, q)
		}
		if p.Serving() && p.NodeID == "" {
			t.Fatalf("%v is taken for a primary that serves", a)
		}
	})
}
