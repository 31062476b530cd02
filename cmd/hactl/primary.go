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

func (a *app) primaryCmd() *cobra.Command {
	var local bool
	cmd := &cobra.Command{
		Use: "primary [GROUP]", Short: "Show who serves a group",
		Long: `Show who serves a group. It exits with 1 if nobody does.`,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeGroups,
		RunE: func(cmd *cobra.Command, args []string) error { return a.primary(cmd, groupOf(args), local) },
	}
	cmd.Flags().BoolVar(&local, "local", false, "take the answer of one node, which may be old")
	return cmd
}

// readLevel is the level that --local chooses.
func readLevel(local bool) pb.ReadLevel {
	if local {
		return pb.ReadLevel_READ_LEVEL_LOCAL
	}
	return pb.ReadLevel_READ_LEVEL_LINEARIZABLE
}

func (a *app) primary(cmd *cobra.Command, group string, local bool) error {
	resp, err := call(a, cmd, client.Repeatable, client.DefaultTimeout,
		func(ctx context.Context, cc grpc.ClientConnInterface) (*pb.GetPrimaryResponse, error) {
			return pb.NewGroupServiceClient(cc).GetPrimary(ctx, &pb.GetPrimaryRequest{Group: group, Level: readLevel(local)})
		})
	if err != nil {
		return fmt.Errorf("get primary of group %q: %w", group, err)
	}
	p := resp.GetPrimary()
	err = a.print(resp, func(t table) {
		t.row("GROUP", "PHASE", "PRIMARY", "ADDRESS", "EPOCH", "MODEL")
		t.row(p.GetGroup(), enum("GROUP_PHASE_", p.GetPhase()), p.GetNodeId(), p.GetAddress(), p.GetEpoch(), modelText(p.GetModel()))
	})
	if err == nil && (p.GetNodeId() == "" || p.GetPhase() != pb.GroupPhase_GROUP_PHASE_SERVING) {
		if p.GetPhase() == pb.GroupPhase_GROUP_PHASE_SERVING {
			return fmt.Errorf("group %q: %w: its lease has run out as far as the node asked knows", group, client.ErrNoPrimary)
		}
		return fmt.Errorf("group %q: %w: it is %s", group, client.ErrNoPrimary, enum("GROUP_PHASE_", p.GetPhase()))
	}
	return err
}
