// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/hastate/hastate/client"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// completeTimeout bounds the wait of somebody who pressed the tab key.
const completeTimeout = 2 * time.Second

// clusterNow asks one node what there is, for completion.
func (a *app) clusterNow(cmd *cobra.Command) (*pb.StatusResponse, cobra.ShellCompDirective) {
	resp, err := call(a, cmd, client.Repeatable, completeTimeout,
		func(ctx context.Context, cc grpc.ClientConnInterface) (*pb.StatusResponse, error) {
			return pb.NewClusterServiceClient(cc).Status(ctx, &pb.StatusRequest{})
		})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return resp, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completeGroups(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	resp, directive := a.clusterNow(cmd)
	var names []string
	for _, g := range resp.GetGroups() {
		names = append(names, g.GetName())
	}
	return names, directive
}

func (a *app) completeNodes(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	resp, directive := a.clusterNow(cmd)
	var ids []string
	for _, m := range resp.GetMembers() {
		ids = append(ids, m.GetNodeId())
	}
	return ids, directive
}
