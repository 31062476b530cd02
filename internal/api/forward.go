// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"fmt"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/hastate/hastate"
)

// forwardedKey marks a call that another node has sent on, so that it does not
// travel in a circle while the nodes disagree about who leads.
const forwardedKey = "hastate-forwarded"

func markForwarded(ctx context.Context) context.Context {
	return metadata.NewOutgoingContext(ctx, metadata.Pairs(forwardedKey, "1"))
}

func wasForwarded(ctx context.Context) bool {
	return len(metadata.ValueFromIncomingContext(ctx, forwardedKey)) > 0
}

// fromLeader turns the answer of a call that was sent on back into what the
// leader meant. A call that ended without the leader's word may have had its
// effect.
func fromLeader(id raft.ServerID, err error) error {
	if err == nil {
		return nil
	}
	typed := hastate.FromStatus(err)
	if isNotLeader(typed) {
		return typed
	}
	st, _ := status.FromError(err)
	switch st.Code() {
	case codes.Unavailable, codes.Canceled, codes.DeadlineExceeded, codes.Unknown, codes.Internal:
		return &hastate.OutcomeUnknownError{Reason: fmt.Sprintf("the leader %s was asked and has not answered: %s", id, st.Message())}
	}
	return typed
}
