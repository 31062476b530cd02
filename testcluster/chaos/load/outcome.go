// SPDX-License-Identifier: Apache-2.0

package load

import (
	"context"
	"errors"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

// settle writes into op how it ended with err. strange: nothing that a client is
// prepared for.
//
// The client's word is taken: a write that ended with its deadline, but not with
// an OutcomeUnknownError, was not done.
func settle(op *record.Op, err error) (strange bool) {
	if err == nil {
		op.Outcome = record.OK
		return false
	}
	op.Error = err.Error()
	var conflict *hastate.ConflictError
	switch {
	case errors.Is(err, hastate.ErrOutcomeUnknown):
		op.Outcome = record.Unknown
	case errors.As(err, &conflict):
		op.Outcome, op.Revision, op.EndOffset = record.Refused, conflict.CurrentRevision, conflict.CurrentOffset
	case errors.Is(err, hastate.ErrConflict), errors.Is(err, hastate.ErrFenced):
		op.Outcome = record.Refused
	case errors.Is(err, hastate.ErrNotFound):
		op.Outcome = record.Refused
		if op.Kind == record.Get { // that is its answer
			op.Outcome, op.Found, op.Error = record.OK, false, ""
		}
	case errors.Is(err, hastate.ErrNoLeader), errors.Is(err, hastate.ErrNotLeader), errors.Is(err, hastate.ErrLimit),
		errors.Is(err, hastate.ErrClosed):
		op.Outcome = record.Failed
	case op.Kind == record.Get: // whatever it was, nothing was read
		op.Outcome = record.Failed
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		op.Outcome = record.Failed
	default:
		op.Outcome = record.Unknown
		return true
	}
	return false
}
