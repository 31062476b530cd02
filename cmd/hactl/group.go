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

func (a *app) groupCmd() *cobra.Command {
	return noun("group", "Show and change groups",
		a.groupListCmd(), a.groupShowCmd(), a.groupPauseCmd(), a.groupResumeCmd(), a.groupSetCmd())
}

func (a *app) groupListCmd() *cobra.Command {
	var local bool
	cmd := &cobra.Command{
		Use: "list", Short: "List the groups", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := call(a, cmd, client.Repeatable, client.DefaultTimeout,
				func(ctx context.Context, cc grpc.ClientConnInterface) (*pb.ListGroupsResponse, error) {
					return pb.NewGroupServiceClient(cc).ListGroups(ctx, &pb.ListGroupsRequest{Level: readLevel(local)})
				})
			if err != nil {
				return fmt.Errorf("list groups: %w", err)
			}
			return a.print(resp, func(t table) { groupsTable(t, resp.GetGroups()) })
		},
	}
	cmd.Flags().BoolVar(&local, "local", false, "take the answer of one node, which may be old")
	return cmd
}

func (a *app) groupShowCmd() *cobra.Command {
	var local bool
	cmd := &cobra.Command{
		Use: "show [GROUP]", Short: "Show a group with its instances and policy",
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeGroups,
		RunE: func(cmd *cobra.Command, args []string) error {
			group := groupOf(args)
			resp, err := call(a, cmd, client.Repeatable, client.DefaultTimeout,
				func(ctx context.Context, cc grpc.ClientConnInterface) (*pb.GetGroupResponse, error) {
					return pb.NewGroupServiceClient(cc).GetGroup(ctx, &pb.GetGroupRequest{Group: group, Level: readLevel(local)})
				})
			if err != nil {
				return fmt.Errorf("get group %q: %w", group, err)
			}
			return a.print(resp, func(t table) { groupTable(t, resp) })
		},
	}
	cmd.Flags().BoolVar(&local, "local", false, "take the answer of one node, which may be old")
	return cmd
}

func groupTable(t table, resp *pb.GetGroupResponse) {
	g := resp.GetGroup()
	groupsTable(t, []*pb.Group{g})
	t.line("")
	if g.GetReleaseReason() != "" {
		t.line("last released by %s: %s", g.GetLastHolder(), g.GetReleaseReason())
	}
	policyTable(t, g.GetPolicy())
	t.line("")
	instancesTable(t, resp.GetInstances())
}

func policyTable(t table, p *pb.GroupPolicy) {
	t.row("LEASE", "MAX FAILOVERS", "CALM", "MAX LAG", "DRAIN", "PROMOTE TIMEOUT", "ZONE")
	t.row(millis(p.GetTtlMs()), p.GetMaxFailovers(), millis(p.GetCalmMs()), p.GetMaxLag(), millis(p.GetDrainMs()),
		millis(p.GetPromoteTimeoutMs()), p.GetPreferredZone())
}

func (a *app) groupPauseCmd() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "pause [GROUP]", Short: "Stop automatic failover of a group",
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeGroups,
		RunE: func(cmd *cobra.Command, args []string) error {
			group := groupOf(args)
			resp, err := call(a, cmd, client.Repeatable, client.DefaultTimeout,
				func(ctx context.Context, cc grpc.ClientConnInterface) (*pb.PauseResponse, error) {
					return pb.NewGroupServiceClient(cc).Pause(ctx, &pb.PauseRequest{Group: group, Reason: reason})
				})
			if err != nil {
				return fmt.Errorf("pause group %q: %w", group, err)
			}
			return a.print(resp, func(t table) { t.line("group %s is paused: end it with hactl group resume %s", group, group) })
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for those who find it paused")
	return cmd
}

func (a *app) groupResumeCmd() *cobra.Command {
	return &cobra.Command{
		Use: "resume [GROUP]", Short: "End a pause, or acknowledge that a group has failed over too often",
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeGroups,
		RunE: func(cmd *cobra.Command, args []string) error {
			group := groupOf(args)
			resp, err := call(a, cmd, client.Repeatable, client.DefaultTimeout,
				func(ctx context.Context, cc grpc.ClientConnInterface) (*pb.ResumeResponse, error) {
					return pb.NewGroupServiceClient(cc).Resume(ctx, &pb.ResumeRequest{Group: group})
				})
			if err != nil {
				return fmt.Errorf("resume group %q: %w", group, err)
			}
			return a.print(resp, func(t table) { t.line("group %s fails over automatically", group) })
		},
	}
}
