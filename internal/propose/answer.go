// SPDX-License-Identifier: Apache-2.0

package propose

import (
	"errors"
	"fmt"
	"strings"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// writeAnswer is what the leader tells a node about one command. A text that is not
// UTF-8 would break the stream, and leave all other commands on it unanswered.
func writeAnswer(id uint64, res *pb.Result, err error) *pb.ForwardResponse_Item {
	a := &pb.ForwardResponse_Item{Id: id}
	text := func(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
	var limit *hastate.LimitError
	switch {
	case err == nil:
		a.Result = res
	case IsNotLeader(err):
		a.NotLeader, a.Message = true, text(err.Error())
	case errors.As(err, &limit):
		// A limit that was met before the log: its result has no index.
		a.Result = &pb.Result{
			Code: pb.ResultCode_RESULT_CODE_LIMIT, Message: text(err.Error()),
			Limit: text(limit.Limit), LimitMaximum: limit.Maximum, LimitActual: limit.Actual,
		}
	case errors.Is(err, hastate.ErrInvalid):
		a.Result = &pb.Result{Code: pb.ResultCode_RESULT_CODE_INVALID, Message: text(err.Error())}
	default:
		a.OutcomeUnknown, a.Message = true, text(err.Error())
		var unknown *hastate.OutcomeUnknownError
		if errors.As(err, &unknown) {
			a.Message = text(unknown.Reason)
		}
	}
	return a
}

// isQueueLimit tells a limit of the leader's queue from one of the state
// machine: only the latter comes with the index of its entry.
func isQueueLimit(res *pb.Result) bool {
	return res.GetCode() == pb.ResultCode_RESULT_CODE_LIMIT && res.GetIndex() == 0
}

func errDeclined(node raft.ServerID, why string) error {
	return fmt.Errorf("%s declined: %s", node, why)
}

// answersThatFit is how many of batch, at least one, make one message.
func answersThatFit(batch []*pb.ForwardResponse_Item) int {
	size := 0
	for i, a := range batch {
		size += proto.Size(a) + 8
		if i > 0 && size > maxMessageBytes {
			return i
		}
	}
	return len(batch)
}
