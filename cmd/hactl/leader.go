// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func (a *app) leaderCmd() *cobra.Command {
	show := &cobra.Command{
		Use: "show", Short: "Show which node leads the cluster", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.showLeader(cmd) },
	}
	var to string
	transfer := &cobra.Command{
		Use: "transfer", Short: "Let another node lead; it does not move any primary", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.transferLeader(cmd, to) },
	}
	transfer.Flags().StringVar(&to, "to", "", "`node` to lead (default: the most up-to-date voter)")
	_ = transfer.RegisterFlagCompletionFunc("to", a.completeNodes)
	return noun("leader", "Show or move the leadership of the cluster", show, transfer)
}

func (a *app) showLeader(cmd *cobra.Command) error {
	resp, err := call(a, cmd, client.Repeatable, client.DefaultTimeout,
		func(ctx context.Context, cc grpc.ClientConnInterface) (*pb.StatusResponse, error) {
			return pb.NewClusterServiceClient(cc).Status(ctx, &pb.StatusRequest{})
		})
	if err != nil {
		return err
	}
	if resp.GetLeaderId() == "" {
		return &hastate.NotLeaderError{}
	}
	leader := &pb.StatusResponse{
		Header: resp.GetHeader(), LeaderId: resp.GetLeaderId(), LeaderAddress: resp.GetLeaderAddress(),
		LeaderContactMs: resp.GetLeaderContactMs(), LeaderKnown: resp.GetLeaderKnown(),
	}
	contact := "unknown"
	if leader.GetLeaderKnown() {
		contact = millis(leader.GetLeaderContactMs())
	}
	return a.print(leader, func(t table) {
		t.row("LEADER", "ADDRESS", "TERM", "CONTACT")
		t.row(leader.GetLeaderId(), leader.GetLeaderAddress(), resp.GetHeader().GetTerm(), contact)
	})
}

func (a *app) transferLeader(cmd *cobra.Command, to string) error {
	resp, err := call(a, cmd, client.Once, client.DefaultTimeout,
		func(ctx context.Context, cc grpc.ClientConnInterface) (*pb.TransferLeadershipResponse, error) {
			return pb.NewClusterServiceClient(cc).TransferLeadership(ctx, &pb.TransferLeadershipRequest{To: to})
		})
	if err != nil {
		return fmt.Errorf("transfer leadership: %w", err)
	}
	return a.print(resp, func(t table) { t.line("%s leads", resp.GetLeaderId()) })
}
