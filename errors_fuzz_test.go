// SPDX-License-Identifier: Apache-2.0

package hastate_test

import (
	"errors"
	"reflect"
	"testing"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// kindsOfError are all that an error can match.
var kindsOfError = []error{
	hastate.ErrNotLeader, hastate.ErrNoLeader, hastate.ErrFenced, hastate.ErrOutcomeUnknown, hastate.ErrCompacted,
	hastate.ErrLimit, hastate.ErrConflict, hastate.ErrClientExpired, hastate.ErrNotFound, hastate.ErrAlreadyExists,
	hastate.ErrInvalid, hastate.ErrPrecondition,
}

// sent is an error as a client gets it.
func sent(t *testing.T, err error) error {
	t.Helper()
	b, merr := proto.Marshal(status.Convert(hastate.ToStatus(err)).Proto())
	if merr != nil {
		t.Fatalf("%v cannot be sent: %v", err, merr)
	}
	st := &spb.Status{}
	if err := proto.Unmarshal(b, st); err != nil {
		t.Fatal(err)
	}
	return hastate.FromStatus(status.ErrorProto(st))
}

func matched(err error) (found []error) {
	for _, s := range kindsOfError {
		if errors.Is(err, s) {
			found = append(found, s)
		}
	}
	return found
}

// FuzzFromStatus takes any status that a server may send: an error stays an error, is
// of one kind at most, and is of the same kind when it is passed on.
func FuzzFromStatus(f *testing.F) {
	for _, err := range []error{
		&hastate.NotLeaderError{LeaderID: "n1", LeaderAddress: "a:1"}, &hastate.NotLeaderError{}, &hastate.FencedError{Group: "g", Epoch: 1, NewestEpoch: 2},
		&hastate.OutcomeUnknownError{Reason: "r"}, &hastate.CompactedError{Oldest: 1, Newest: 2}, &hastate.LimitError{Limit: "l", Maximum: 1, Actual: 2},
		&hastate.ConflictError{Key: "k"}, &hastate.ClientExpiredError{Client: 3}, hastate.ErrNotFound, hastate.ErrClosed, errors.New("any"),
	} {
		b, merr := proto.Marshal(status.Convert(hastate.ToStatus(err)).Proto())
		if merr != nil {
			f.Fatal(merr)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		st := &spb.Status{}
		if proto.Unmarshal(data, st) != nil {
			return
		}
		came := status.ErrorProto(st)
		got := hastate.FromStatus(came)
		if (got == nil) != (came == nil) {
			t.Fatalf("%v became %v", came, got)
		}
		if got == nil {
			return
		}
		_ = got.Error()
		kinds := matched(got)
		if len(kinds) > 1 {
			t.Fatalf("%v is of the kinds %v", got, kinds)
		}
		again := sent(t, got)
		if !reflect.DeepEqual(matched(again), kinds) {
			t.Fatalf("%v of the kinds %v was passed on as %v of %v", got, kinds, again, matched(again))
		}
	})
}

// FuzzFromResult takes any result of a command: all but OK is an error, of one kind,
// and keeps its kind on the way to a client.
func FuzzFromResult(f *testing.F) {
	for code := range pb.ResultCode_name {
		b, err := proto.Marshal(&pb.Result{Code: pb.ResultCode(code), Message: "m", Limit: "l", ConflictKey: "k"})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, "g", uint64(1))
	}
	f.Fuzz(func(t *testing.T, data []byte, group string, epoch uint64) {
		r := &pb.Result{}
		if proto.Unmarshal(data, r) != nil {
			return
		}
		err := hastate.FromResult(r, group, epoch)
		if (err == nil) != (r.GetCode() == pb.ResultCode_RESULT_CODE_OK) {
			t.Fatalf("%v gives %v", r, err)
		}
		if err == nil {
			return
		}
		kinds := matched(err)
		if len(kinds) != 1 {
			t.Fatalf("%v is of the kinds %v", err, kinds)
		}
		if got := matched(sent(t, err)); !reflect.DeepEqual(got, kinds) {
			t.Fatalf("%v of the kinds %v arrives as %v", err, kinds, got)
		}
	})
}
