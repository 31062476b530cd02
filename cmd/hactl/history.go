// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/hastate/hastate/client"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func (a *app) historyCmd() *cobra.Command {
	var limit uint32
	cmd := &cobra.Command{
		Use: "history [GROUP]", Short: "Show who was primary when, why it changed and how long it took",
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeGroups,
		RunE: func(cmd *cobra.Command, args []string) error { return a.history(cmd, groupOf(args), limit) },
	}
	cmd.Flags().Uint32Var(&limit, "limit", 20, "show at most so many, newest first")
	return cmd
}

func (a *app) history(cmd *cobra.Command, group string, limit uint32) error {
	resp, err := call(a, cmd, client.Repeatable, client.DefaultTimeout,
		func(ctx context.Context, cc grpc.ClientConnInterface) (*pb.HistoryResponse, error) {
			return pb.NewGroupServiceClient(cc).History(ctx, &pb.HistoryRequest{Group: group, Limit: limit})
		})
	if err != nil {
		return fmt.Errorf("read history of group %q: %w", group, err)
	}
	return a.print(resp, func(t table) { transitionsTable(t, resp.GetTransitions()) })
}

func transitionsTable(t table, transitions []*pb.Transition) {
	t.row("#", "GRANTED", "KIND", "OUTCOME", "FROM", "TO", "EPOCH", "DETECT", "GRANT", "PROMOTE", "SERVE", "REASON", "DETAIL")
	for _, tr := range transitions {
		t.row(tr.GetNumber(), stamp(tr.GetGrantedUnixMs()), enum("TRANSITION_KIND_", tr.GetKind()), enum("TRANSITION_OUTCOME_", tr.GetOutcome()),
			tr.GetFrom(), tr.GetTo(), tr.GetEpoch(), millis(tr.GetDetectMs()), millis(tr.GetGrantMs()), millis(tr.GetPromoteMs()),
			millis(tr.GetServeMs()), tr.GetReason(), tr.GetDetail())
	}
}
