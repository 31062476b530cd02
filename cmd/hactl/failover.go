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

func (a *app) failoverCmd() *cobra.Command {
	req := &pb.FailoverRequest{}
	var yes bool
	cmd := &cobra.Command{
		Use: "failover [GROUP]", Short: "Take a group from its primary and promote another instance",
		Long: `Take a group from its primary, whatever its health, and wait until another
instance serves. Running requests may be lost: prefer switchover while the
primary works.`,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeGroups,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Group = groupOf(args)
			if err := a.confirm(yes, fmt.Sprintf("take group %q from its primary? requests under way may be lost", req.GetGroup())); err != nil {
				return err
			}
			return a.failover(cmd, req)
		},
	}
	cmd.Flags().StringVar(&req.To, "to", "", "`node` to move to (default: the best candidate)")
	cmd.Flags().BoolVar(&req.Force, "force", false, "also when paused or held, and to an instance that is not ready")
	cmd.Flags().StringVar(&req.Reason, "reason", "", "why, for the history")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	_ = cmd.RegisterFlagCompletionFunc("to", a.completeNodes)
	return cmd
}

func (a *app) failover(cmd *cobra.Command, req *pb.FailoverRequest) error {
	resp, err := call(a, cmd, client.Once, moveTimeout,
		func(ctx context.Context, cc grpc.ClientConnInterface) (*pb.FailoverResponse, error) {
			return pb.NewGroupServiceClient(cc).Failover(ctx, req)
		})
	if err != nil {
		err = a.explainTarget(cmd, req.GetGroup(), req.GetTo(), err)
		return fmt.Errorf("fail over group %q: %w", req.GetGroup(), err)
	}
	return a.printMove(resp, resp.GetTransition())
}
