// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func (a *app) statusCmd() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show nodes, groups and instances as one node sees them",
		Long: `Show nodes, groups and instances as the first node that answers sees them. It is
answered without a leader too, and then exits with 3.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.status(cmd) },
	}
}

func (a *app) status(cmd *cobra.Command) error {
	resp, err := call(a, cmd, client.Repeatable, client.DefaultTimeout,
		func(ctx context.Context, cc grpc.ClientConnInterface) (*pb.StatusResponse, error) {
			return pb.NewClusterServiceClient(cc).Status(ctx, &pb.StatusRequest{})
		})
	if err != nil {
		return err
	}
	if err := a.print(resp, func(t table) { statusTable(t, resp) }); err != nil {
		return err
	}
	if resp.GetLeaderId() == "" {
		return &hastate.NotLeaderError{}
	}
	return nil
}

func statusTable(t table, resp *pb.StatusResponse) {
	h := resp.GetHeader()
	t.row("CLUSTER", "NODE", "RAFT", "LEADER", "TERM", "COMMIT", "APPLIED", "PROFILE", "VERSION", "UP")
	t.row(h.GetClusterId(), h.GetNodeId(), resp.GetRaftState(), resp.GetLeaderId(), h.GetTerm(), resp.GetCommitIndex(),
		resp.GetAppliedIndex(), resp.GetProfile(), resp.GetVersion(), (time.Duration(resp.GetUptimeMs()) * time.Millisecond).Round(time.Second))
	t.line("")
	membersTable(t, resp.GetMembers())
	t.line("")
	groupsTable(t, resp.GetGroups())
	t.line("")
	instancesTable(t, resp.GetInstances())
	for _, problem := range resp.GetProblems() {
		t.line("problem: %s", problem)
	}
}

func membersTable(t table, members []*pb.Member) {
	t.row("MEMBER", "ADDRESS", "ROLE", "LEADER", "REACHABLE", "CONTACT", "APPLIED", "VERSION")
	for _, m := range members {
		role := enum("MEMBER_ROLE_", m.GetRole())
		if m.GetPromoteWhenCaughtUp() {
			role += " (catching up)"
		}
		t.row(m.GetNodeId(), m.GetAddress(), role, yesNo(m.GetLeader()), yesNo(m.GetReachable()),
			millis(m.GetLastContactMs()), m.GetAppliedIndex(), m.GetVersion())
	}
}

func groupsTable(t table, groups []*pb.Group) {
	t.row("GROUP", "PHASE", "PRIMARY", "EPOCH", "LEASE", "AUTOMATIC", "MODEL")
	for _, g := range groups {
		automatic := "on"
		switch {
		case g.GetPaused():
			automatic = "paused"
			if g.GetPauseReason() != "" {
				automatic += ": " + g.GetPauseReason()
			}
		case g.GetHeld():
			automatic = "held: resume to acknowledge"
		}
		t.row(g.GetName(), enum("GROUP_PHASE_", g.GetPhase()), g.GetHolder(), g.GetEpoch(), millis(g.GetTtlMs()), automatic, modelText(g.GetDesiredModel()))
	}
}

func instancesTable(t table, instances []*pb.Instance) {
	t.row("INSTANCE", "GROUP", "ADDRESS", "STATE", "MODEL", "ENGINE", "TAGS", "REASON")
	for _, i := range instances {
		t.row(i.GetNodeId(), i.GetGroup(), i.GetAddress(), enum("INSTANCE_STATE_", i.GetState()), modelText(i.GetModel()),
			i.GetEngine(), tagsText(i.GetTags()), i.GetReason())
	}
}
