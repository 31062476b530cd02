// SPDX-License-Identifier: Apache-2.0

package hastate

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// The sentinels. Test for them with errors.Is; the typed errors below match
// theirs and carry the particulars for errors.As.
var (
	// ErrNotLeader: this node cannot do it and nothing was done. Retry at the
	// leader that NotLeaderError names.
	ErrNotLeader = errors.New("not the leader")
	// ErrNoLeader: no leader is known and nothing was done. Retry later.
	ErrNoLeader = errors.New("no leader")
	// ErrFenced: the epoch is not the group's newest. Stop acting as primary.
	ErrFenced = errors.New("fenced")
	// ErrOutcomeUnknown: it may or may not have been done. Retry with the same
	// request id, or read back.
	ErrOutcomeUnknown = errors.New("outcome unknown")
	// ErrCompacted: the revision is no longer kept. List afresh.
	ErrCompacted = errors.New("revision compacted")
	// ErrLimit: something is larger, or more, than is allowed. Nothing was done.
	ErrLimit = errors.New("limit exceeded")
	// ErrConflict: a compare-and-set or append found another state. Nothing was
	// done.
	ErrConflict = errors.New("conflict")
	// ErrClientExpired: the writer's number is not known any more. This attempt
	// was not applied; an earlier attempt may have been.
	ErrClientExpired = errors.New("client expired")
	// ErrNotFound: there is no such record.
	ErrNotFound = errors.New("not found")
	// ErrAlreadyExists: the record exists and differs.
	ErrAlreadyExists = errors.New("already exists")
	// ErrInvalid: a field has no valid value. Nothing was done.
	ErrInvalid = errors.New("invalid argument")
	// ErrClosed: the thing was closed by its owner.
	ErrClosed = errors.New("closed")
	// ErrPrecondition: the state of the cluster does not allow it now; the text
	// says what to do. Nothing was done.
	ErrPrecondition = errors.New("precondition failed")
)

// NotLeaderError says where the leader is. It matches ErrNotLeader, or
// ErrNoLeader if none is known.
type NotLeaderError struct {
	LeaderID, LeaderAddress string
}

func (e *NotLeaderError) Error() string {
	if e.LeaderID == "" {
		return "no leader is known: wait for an election, or check that a majority of the nodes is up"
	}
	return fmt.Sprintf("not the leader: ask %s at %s", e.LeaderID, e.LeaderAddress)
}

// Is matches ErrNoLeader without a leader and ErrNotLeader with one.
func (e *NotLeaderError) Is(target error) bool {
	if e.LeaderID == "" {
		return target == ErrNoLeader
	}
	return target == ErrNotLeader
}

// FencedError carries the newest epoch. It matches ErrFenced.
type FencedError struct {
	Group              string
	Epoch, NewestEpoch uint64
	Holder             string
}

func (e *FencedError) Error() string {
	return fmt.Sprintf("epoch %d of group %q is over: the newest is %d, held by %q", e.Epoch, e.Group, e.NewestEpoch, e.Holder)
}

// Is matches ErrFenced.
func (e *FencedError) Is(target error) bool { return target == ErrFenced }

// OutcomeUnknownError says what happened. It matches ErrOutcomeUnknown.
type OutcomeUnknownError struct{ Reason string }

func (e *OutcomeUnknownError) Error() string {
	return "outcome unknown: " + e.Reason + ": retry with the same request id, or read back"
}

// Is matches ErrOutcomeUnknown.
func (e *OutcomeUnknownError) Is(target error) bool { return target == ErrOutcomeUnknown }

// CompactedError carries the revisions that are kept. It matches ErrCompacted.
type CompactedError struct{ Oldest, Newest uint64 }

func (e *CompactedError) Error() string {
	return fmt.Sprintf("the asked revision is no longer kept (oldest %d, newest %d): list afresh and watch from there", e.Oldest, e.Newest)
}

// Is matches ErrCompacted.
func (e *CompactedError) Is(target error) bool { return target == ErrCompacted }

// LimitError names the limit. It matches ErrLimit.
type LimitError struct {
	Limit           string
	Maximum, Actual uint64
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("%s is %d, the limit is %d", e.Limit, e.Actual, e.Maximum)
}

// Is matches ErrLimit.
func (e *LimitError) Is(target error) bool { return target == ErrLimit }

// ConflictError carries the state that was found. It matches ErrConflict.
type ConflictError struct {
	Key                            string
	CurrentRevision, CurrentOffset uint64
	Reason                         string
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("conflict on %s: %s (revision %d, end offset %d)", e.Key, e.Reason, e.CurrentRevision, e.CurrentOffset)
}

// Is matches ErrConflict.
func (e *ConflictError) Is(target error) bool { return target == ErrConflict }

// ClientExpiredError carries the writer's number. It matches ErrClientExpired.
type ClientExpiredError struct{ Client uint64 }

func (e *ClientExpiredError) Error() string {
	return fmt.Sprintf("client %d is not known (any more): open a new one and read back before writing again", e.Client)
}

// Is matches ErrClientExpired.
func (e *ClientExpiredError) Is(target error) bool { return target == ErrClientExpired }

// plain lists the sentinels that travel as a code alone.
var plain = []struct {
	err  error
	code codes.Code
}{
	{ErrNotFound, codes.NotFound},
	{ErrAlreadyExists, codes.AlreadyExists},
	{ErrInvalid, codes.InvalidArgument},
	{ErrClosed, codes.Unavailable},
	{ErrPrecondition, codes.FailedPrecondition},
}

// detailOf returns code and detail of a typed error.
func detailOf(err error) (codes.Code, protoadapt.MessageV1) {
	var (
		notLeader *NotLeaderError
		fenced    *FencedError
		unknown   *OutcomeUnknownError
		compacted *CompactedError
		limit     *LimitError
		conflict  *ConflictError
		expired   *ClientExpiredError
	)
	switch {
	// First: an error that also says "not the leader" must not pass for one that
	// was certainly not applied.
	case errors.As(err, &unknown):
		return codes.Aborted, &pb.OutcomeUnknown{Reason: text(unknown.Reason)}
	case errors.As(err, &notLeader):
		return codes.Unavailable, &pb.NotLeader{LeaderId: text(notLeader.LeaderID), LeaderAddress: text(notLeader.LeaderAddress)}
	case errors.As(err, &fenced):
		return codes.FailedPrecondition, &pb.Fenced{Group: text(fenced.Group), Epoch: fenced.Epoch, NewestEpoch: fenced.NewestEpoch, Holder: text(fenced.Holder)}
	case errors.As(err, &compacted):
		return codes.OutOfRange, &pb.Compacted{OldestRevision: compacted.Oldest, NewestRevision: compacted.Newest}
	case errors.As(err, &limit):
		return codes.ResourceExhausted, &pb.LimitExceeded{Limit: text(limit.Limit), Maximum: limit.Maximum, Actual: limit.Actual}
	case errors.As(err, &conflict):
		return codes.FailedPrecondition, &pb.Conflict{Key: text(conflict.Key), CurrentRevision: conflict.CurrentRevision, CurrentOffset: conflict.CurrentOffset, Reason: text(conflict.Reason)}
	case errors.As(err, &expired):
		return codes.FailedPrecondition, &pb.ClientExpired{Client: expired.Client}
	}
	return codes.OK, nil
}

// bareDetailOf is detailOf for an error that matches a sentinel without being
// its typed error: the detail has no particulars, but the other side still
// matches the sentinel. A bare ErrNotLeader names no leader, so it arrives as
// ErrNoLeader.
func bareDetailOf(err error) (codes.Code, protoadapt.MessageV1) {
	switch {
	case errors.Is(err, ErrOutcomeUnknown):
		return codes.Aborted, &pb.OutcomeUnknown{Reason: text(err.Error())}
	case errors.Is(err, ErrNoLeader), errors.Is(err, ErrNotLeader):
		return codes.Unavailable, &pb.NotLeader{}
	case errors.Is(err, ErrFenced):
		return codes.FailedPrecondition, &pb.Fenced{}
	case errors.Is(err, ErrCompacted):
		return codes.OutOfRange, &pb.Compacted{}
	case errors.Is(err, ErrLimit):
		return codes.ResourceExhausted, &pb.LimitExceeded{Limit: text(err.Error())}
	case errors.Is(err, ErrConflict):
		return codes.FailedPrecondition, &pb.Conflict{Reason: text(err.Error())}
	case errors.Is(err, ErrClientExpired):
		return codes.FailedPrecondition, &pb.ClientExpired{}
	}
	return codes.OK, nil
}

// text is what a string of a message may be. One that is not UTF-8, as what other
// programs print may be, would cost the message its detail, and the error its kind.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func withDetail(code codes.Code, err error, detail protoadapt.MessageV1) error {
	st, derr := status.New(code, text(err.Error())).WithDetails(detail)
	if derr != nil {
		return status.Error(code, text(err.Error()))
	}
	return st.Err()
}

// ToStatus gives an error its gRPC form: a code and, for typed errors, a detail.
// An error that is a gRPC status already stays as it is; any other becomes
// INTERNAL. nil gives nil.
func ToStatus(err error) error {
	if err == nil {
		return nil
	}
	if code, detail := detailOf(err); detail != nil {
		return withDetail(code, err, detail)
	}
	if code, detail := bareDetailOf(err); detail != nil {
		return withDetail(code, err, detail)
	}
	for _, p := range plain {
		if errors.Is(err, p.err) {
			return status.Error(p.code, text(err.Error()))
		}
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	if st := status.FromContextError(err); st.Code() != codes.Unknown {
		return st.Err()
	}
	return status.Error(codes.Internal, text(err.Error()))
}

// remoteError is a sentinel that came back from a server, with its text.
type remoteError struct {
	sentinel error
	st       *status.Status
}

func (e *remoteError) Error() string              { return e.st.Message() }
func (e *remoteError) Unwrap() error              { return e.sentinel }
func (e *remoteError) GRPCStatus() *status.Status { return e.st }

// FromStatus turns a gRPC error back into the typed error that ToStatus was
// given. An error without a detail keeps its status; codes that have a sentinel
// of their own match it. nil gives nil.
func FromStatus(err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	for _, d := range st.Details() {
		if typed := fromDetail(d); typed != nil {
			return typed
		}
	}
	for _, p := range plain {
		if st.Code() == p.code && !errors.Is(p.err, ErrClosed) {
			return &remoteError{sentinel: p.err, st: st}
		}
	}
	return err
}

func fromDetail(detail any) error {
	switch d := detail.(type) {
	case *pb.NotLeader:
		return &NotLeaderError{LeaderID: d.GetLeaderId(), LeaderAddress: d.GetLeaderAddress()}
	case *pb.Fenced:
		return &FencedError{Group: d.GetGroup(), Epoch: d.GetEpoch(), NewestEpoch: d.GetNewestEpoch(), Holder: d.GetHolder()}
	case *pb.OutcomeUnknown:
		return &OutcomeUnknownError{Reason: d.GetReason()}
	case *pb.Compacted:
		return &CompactedError{Oldest: d.GetOldestRevision(), Newest: d.GetNewestRevision()}
	case *pb.LimitExceeded:
		return &LimitError{Limit: d.GetLimit(), Maximum: d.GetMaximum(), Actual: d.GetActual()}
	case *pb.Conflict:
		return &ConflictError{Key: d.GetKey(), CurrentRevision: d.GetCurrentRevision(), CurrentOffset: d.GetCurrentOffset(), Reason: d.GetReason()}
	case *pb.ClientExpired:
		return &ClientExpiredError{Client: d.GetClient()}
	}
	return nil
}

// FromResult turns the result of a command into an error; nil for OK. The
// group and epoch are those of the command, for the text of a FencedError.
func FromResult(r *pb.Result, group string, epoch uint64) error {
	switch r.GetCode() {
	case pb.ResultCode_RESULT_CODE_OK:
		return nil
	case pb.ResultCode_RESULT_CODE_CONFLICT:
		return &ConflictError{Key: r.GetConflictKey(), CurrentRevision: r.GetCurrentRevision(), CurrentOffset: r.GetCurrentOffset(), Reason: r.GetMessage()}
	case pb.ResultCode_RESULT_CODE_FENCED:
		return &FencedError{Group: group, Epoch: epoch, NewestEpoch: r.GetEpoch(), Holder: r.GetHolder()}
	case pb.ResultCode_RESULT_CODE_NOT_FOUND:
		return fmt.Errorf("%w: %s", ErrNotFound, r.GetMessage())
	case pb.ResultCode_RESULT_CODE_ALREADY_EXISTS:
		return fmt.Errorf("%w: %s", ErrAlreadyExists, r.GetMessage())
	case pb.ResultCode_RESULT_CODE_LIMIT:
		return &LimitError{Limit: r.GetLimit(), Maximum: r.GetLimitMaximum(), Actual: r.GetLimitActual()}
	case pb.ResultCode_RESULT_CODE_INVALID:
		return fmt.Errorf("%w: %s", ErrInvalid, r.GetMessage())
	case pb.ResultCode_RESULT_CODE_CLIENT_EXPIRED:
		return &ClientExpiredError{Client: r.GetClient()}
	case pb.ResultCode_RESULT_CODE_ALREADY_ACKED:
		return fmt.Errorf("%w: the request was answered before and its client has confirmed the answer", ErrInvalid)
	}
	return fmt.Errorf("%w: result code %d", ErrInvalid, r.GetCode())
}
