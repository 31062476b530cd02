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

func (a *app) memberCmd() *cobra.Command {
	return noun("member", "Show and change the nodes of the cluster",
		a.memberListCmd(), a.memberAddCmd(), a.memberRemoveCmd(), a.memberPromoteCmd(), a.memberDemoteCmd())
}

func (a *app) memberListCmd() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the nodes as the leader has them", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := call(a, cmd, client.Repeatable, client.DefaultTimeout,
				func(ctx context.Context, cc grpc.ClientConnInterface) (*pb.ListMembersResponse, error) {
					return pb.NewClusterServiceClient(cc).ListMembers(ctx, &pb.ListMembersRequest{})
				})
			if err != nil {
				return fmt.Errorf("list members: %w", err)
			}
			return a.print(resp, func(t table) { membersTable(t, resp.GetMembers()) })
		},
	}
}

func (a *app) memberAddCmd() *cobra.Command {
	var replica bool
	cmd := &cobra.Command{
		Use: "add NODE ADDRESS", Short: "Let a running, empty node join", Args: cobra.ExactArgs(2),
		Long: `Let a running, empty node join. It is a replica until it has caught up and then
becomes a voter, unless --replica keeps it a replica.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			resp, err := call(a, cmd, client.Once, client.DefaultTimeout,
				func(ctx context.Context, cc grpc.ClientConnInterface) (*pb.AddMemberResponse, error) {
					return pb.NewClusterServiceClient(cc).AddMember(ctx, &pb.AddMemberRequest{NodeId: args[0], Address: args[1], Replica: replica})
				})
			if err != nil {
				return fmt.Errorf("add member %q: %w", args[0], err)
			}
			return a.print(resp, func(t table) { membersTable(t, []*pb.Member{resp.GetMember()}) })
		},
	}
	cmd.Flags().BoolVar(&replica, "replica", false, "let it stay a replica: it does not vote")
	return cmd
}

func (a *app) memberRemoveCmd() *cobra.Command {
	var force, yes bool
	cmd := &cobra.Command{
		Use: "remove NODE", Short: "Take a node out of the cluster", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.confirm(yes, fmt.Sprintf("remove member %q from the cluster?", args[0])); err != nil {
				return err
			}
			resp, err := call(a, cmd, client.Once, client.DefaultTimeout,
				func(ctx context.Context, cc grpc.ClientConnInterface) (*pb.RemoveMemberResponse, error) {
					return pb.NewClusterServiceClient(cc).RemoveMember(ctx, &pb.RemoveMemberRequest{NodeId: args[0], Force: force})
				})
			if err != nil {
				return fmt.Errorf("remove member %q: %w", args[0], err)
			}
			return a.print(resp, func(t table) { t.line("member %s removed", args[0]) })
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also if the remaining voters have no healthy majority to spare")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

func (a *app) memberPromoteCmd() *cobra.Command {
	return &cobra.Command{
		Use: "promote NODE", Short: "Make a replica a voter", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			resp, err := call(a, cmd, client.Once, client.DefaultTimeout,
				func(ctx context.Context, cc grpc.ClientConnInterface) (*pb.PromoteMemberResponse, error) {
					return pb.NewClusterServiceClient(cc).PromoteMember(ctx, &pb.PromoteMemberRequest{NodeId: args[0]})
				})
			if err != nil {
				return fmt.Errorf("promote member %q: %w", args[0], err)
			}
			return a.print(resp, func(t table) { t.line("member %s is a voter", args[0]) })
		},
	}
}

func (a *app) memberDemoteCmd() *cobra.Command {
	return &cobra.Command{
		Use: "demote NODE", Short: "Make a voter a replica", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			resp, err := call(a, cmd, client.Once, client.DefaultTimeout,
				func(ctx context.Context, cc grpc.ClientConnInterface) (*pb.DemoteMemberResponse, error) {
					return pb.NewClusterServiceClient(cc).DemoteMember(ctx, &pb.DemoteMemberRequest{NodeId: args[0]})
				})
			if err != nil {
				return fmt.Errorf("demote member %q: %w", args[0], err)
			}
			return a.print(resp, func(t table) { t.line("member %s is a replica", args[0]) })
		},
	}
}
