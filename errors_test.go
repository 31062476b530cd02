// SPDX-License-Identifier: Apache-2.0

package hastate_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// failing answers GetPrimary with the gRPC form of an error.
type failing struct {
	pb.UnimplementedGroupServiceServer
	err error
}

func (f *failing) GetPrimary(context.Context, *pb.GetPrimaryRequest) (*pb.GetPrimaryResponse, error) {
	return nil, hastate.ToStatus(f.err)
}

// wire returns a function that sends an error through a real gRPC connection.
func wire(t *testing.T) func(error) error {
	t.Helper()
	listener := bufconn.Listen(1 << 16)
	f := &failing{}
	server := grpc.NewServer()
	pb.RegisterGroupServiceServer(server, f)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///node",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		<-served
	})
	return func(err error) error {
		f.err = err
		_, got := pb.NewGroupServiceClient(conn).GetPrimary(t.Context(), &pb.GetPrimaryRequest{})
		return got
	}
}

func TestSentinels_ThereAndBack(t *testing.T) {
	send := wire(t)
	for _, tc := range []struct {
		err  error
		code codes.Code
		want error
	}{
		// A bare "not the leader" cannot name one.
		{hastate.ErrNotLeader, codes.Unavailable, hastate.ErrNoLeader},
		{hastate.ErrNoLeader, codes.Unavailable, hastate.ErrNoLeader},
		{hastate.ErrFenced, codes.FailedPrecondition, hastate.ErrFenced},
		{hastate.ErrOutcomeUnknown, codes.Aborted, hastate.ErrOutcomeUnknown},
		{hastate.ErrCompacted, codes.OutOfRange, hastate.ErrCompacted},
		{hastate.ErrLimit, codes.ResourceExhausted, hastate.ErrLimit},
		{hastate.ErrConflict, codes.FailedPrecondition, hastate.ErrConflict},
		{hastate.ErrClientExpired, codes.FailedPrecondition, hastate.ErrClientExpired},
		{hastate.ErrNotFound, codes.NotFound, hastate.ErrNotFound},
		{hastate.ErrAlreadyExists, codes.AlreadyExists, hastate.ErrAlreadyExists},
		{hastate.ErrInvalid, codes.InvalidArgument, hastate.ErrInvalid},
		{hastate.ErrPrecondition, codes.FailedPrecondition, hastate.ErrPrecondition},
		// UNAVAILABLE says nothing about who closed what.
		{hastate.ErrClosed, codes.Unavailable, nil},
	} {
		t.Run(tc.err.Error(), func(t *testing.T) {
			got := send(fmt.Errorf("put session: %w", tc.err))
			if code := status.Code(got); code != tc.code {
				t.Fatalf("code %v, want %v", code, tc.code)
			}
			back := hastate.FromStatus(got)
			for _, sentinel := range sentinels {
				if is, want := errors.Is(back, sentinel), errors.Is(tc.want, sentinel); is != want {
					t.Errorf("errors.Is(%v, %v) = %v, want %v", back, sentinel, is, want)
				}
			}
			// A node that passes the error on gives it the same form.
			if again := status.Code(hastate.ToStatus(back)); again != tc.code {
				t.Errorf("passed on with code %v, want %v", again, tc.code)
			}
		})
	}
}

var sentinels = []error{
	hastate.ErrNotLeader, hastate.ErrNoLeader, hastate.ErrFenced, hastate.ErrOutcomeUnknown,
	hastate.ErrCompacted, hastate.ErrLimit, hastate.ErrConflict, hastate.ErrClientExpired,
	hastate.ErrNotFound, hastate.ErrAlreadyExists, hastate.ErrInvalid, hastate.ErrClosed,
	hastate.ErrPrecondition,
}

func TestTypedErrors_ThereAndBack(t *testing.T) {
	send := wire(t)
	for _, tc := range []struct {
		err  error
		is   error
		code codes.Code
	}{
		{&hastate.NotLeaderError{LeaderID: "n2", LeaderAddress: "10.0.0.2:7001"}, hastate.ErrNotLeader, codes.Unavailable},
		{&hastate.NotLeaderError{}, hastate.ErrNoLeader, codes.Unavailable},
		{&hastate.FencedError{Group: "g", Epoch: 3, NewestEpoch: 9, Holder: "n1"}, hastate.ErrFenced, codes.FailedPrecondition},
		{&hastate.OutcomeUnknownError{Reason: "leadership lost"}, hastate.ErrOutcomeUnknown, codes.Aborted},
		{&hastate.CompactedError{Oldest: 5, Newest: 8}, hastate.ErrCompacted, codes.OutOfRange},
		{&hastate.LimitError{Limit: "session.value_bytes", Maximum: 1, Actual: 2}, hastate.ErrLimit, codes.ResourceExhausted},
		{&hastate.ConflictError{Key: "g/s", CurrentRevision: 4, CurrentOffset: 7, Reason: "revision"}, hastate.ErrConflict, codes.FailedPrecondition},
		{&hastate.ClientExpiredError{Client: 12}, hastate.ErrClientExpired, codes.FailedPrecondition},
	} {
		t.Run(fmt.Sprintf("%T/%v", tc.err, tc.is), func(t *testing.T) {
			got := send(fmt.Errorf("put session: %w", tc.err))
			if code := status.Code(got); code != tc.code {
				t.Fatalf("code %v, want %v", code, tc.code)
			}
			back := hastate.FromStatus(got)
			if !reflect.DeepEqual(back, tc.err) {
				t.Errorf("came back as %#v, want %#v", back, tc.err)
			}
			for _, sentinel := range sentinels {
				if is, want := errors.Is(back, sentinel), errors.Is(tc.is, sentinel); is != want {
					t.Errorf("errors.Is(%v, %v) = %v, want %v", back, sentinel, is, want)
				}
			}
		})
	}
}

func TestToStatus(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  error
		code codes.Code
	}{
		{"nil", nil, codes.OK},
		{"Status", status.Error(codes.PermissionDenied, "no"), codes.PermissionDenied},
		{"Deadline", fmt.Errorf("read: %w", context.DeadlineExceeded), codes.DeadlineExceeded},
		{"Canceled", context.Canceled, codes.Canceled},
		{"Other", errors.New("disk"), codes.Internal},
		// "Unknown" is the weaker promise and wins over "certainly not applied".
		{"Joined", errors.Join(&hastate.NotLeaderError{}, &hastate.OutcomeUnknownError{Reason: "x"}), codes.Aborted},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := status.Code(hastate.ToStatus(tc.err)); got != tc.code {
				t.Errorf("code %v, want %v", got, tc.code)
			}
		})
	}
}

func TestFromStatus_KeepsWhatItDoesNotKnow(t *testing.T) {
	if err := hastate.FromStatus(nil); err != nil {
		t.Errorf("nil became %v", err)
	}
	plain := errors.New("plain")
	if got := hastate.FromStatus(plain); !errors.Is(got, plain) {
		t.Errorf("a plain error became %v", got)
	}
	for _, code := range []codes.Code{codes.Unavailable, codes.Internal, codes.PermissionDenied, codes.DeadlineExceeded, codes.OutOfRange} {
		got := hastate.FromStatus(status.Error(code, "text"))
		if status.Code(got) != code {
			t.Errorf("%v became %v", code, status.Code(got))
		}
		for _, sentinel := range sentinels {
			if errors.Is(got, sentinel) {
				t.Errorf("%v without a detail matches %v", code, sentinel)
			}
		}
	}
}

func TestFromResult(t *testing.T) {
	for _, tc := range []struct {
		result *pb.Result
		want   error
	}{
		{&pb.Result{Code: pb.ResultCode_RESULT_CODE_OK}, nil},
		{
			&pb.Result{Code: pb.ResultCode_RESULT_CODE_CONFLICT, ConflictKey: "g/s", CurrentRevision: 1, CurrentOffset: 2, Message: "m"},
			&hastate.ConflictError{Key: "g/s", CurrentRevision: 1, CurrentOffset: 2, Reason: "m"},
		},
		{
			&pb.Result{Code: pb.ResultCode_RESULT_CODE_FENCED, Epoch: 9, Holder: "n2"},
			&hastate.FencedError{Group: "g", Epoch: 3, NewestEpoch: 9, Holder: "n2"},
		},
		{&pb.Result{Code: pb.ResultCode_RESULT_CODE_NOT_FOUND}, hastate.ErrNotFound},
		{&pb.Result{Code: pb.ResultCode_RESULT_CODE_ALREADY_EXISTS}, hastate.ErrAlreadyExists},
		{
			&pb.Result{Code: pb.ResultCode_RESULT_CODE_LIMIT, Limit: "l", LimitMaximum: 1, LimitActual: 2},
			&hastate.LimitError{Limit: "l", Maximum: 1, Actual: 2},
		},
		{&pb.Result{Code: pb.ResultCode_RESULT_CODE_INVALID}, hastate.ErrInvalid},
		{&pb.Result{Code: pb.ResultCode_RESULT_CODE_CLIENT_EXPIRED, Client: 7}, &hastate.ClientExpiredError{Client: 7}},
		{&pb.Result{Code: pb.ResultCode_RESULT_CODE_ALREADY_ACKED}, hastate.ErrInvalid},
		{&pb.Result{}, hastate.ErrInvalid},
		{nil, hastate.ErrInvalid},
	} {
		t.Run(tc.result.GetCode().String(), func(t *testing.T) {
			got := hastate.FromResult(tc.result, "g", 3)
			if !errors.Is(got, tc.want) && !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %#v, want %#v", got, tc.want)
			}
		})
	}
	for code := range pb.ResultCode_name {
		if err := hastate.FromResult(&pb.Result{Code: pb.ResultCode(code)}, "g", 3); (err == nil) != (code == int32(pb.ResultCode_RESULT_CODE_OK)) {
			t.Errorf("code %d gives %v", code, err)
		}
	}
}
