// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func (a *app) switchoverCmd() *cobra.Command {
	req := &pb.SwitchoverRequest{}
	var at string
	cmd := &cobra.Command{
		Use: "switchover [GROUP]", Short: "Move a group to another instance without failing a request",
		Long: `Move a group to another instance in a planned way: the target is verified first,
the old primary drains. If it cannot finish, the old primary gets it back.`,
		Example: "  hactl switchover chat --to node2 --reason 'kernel update'\n  hactl switchover chat --at 2026-03-01T02:00:00Z",
		Args:    cobra.MaximumNArgs(1), ValidArgsFunction: a.completeGroups,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Group = groupOf(args)
			return a.switchover(cmd, req, at)
		},
	}
	cmd.Flags().StringVar(&req.To, "to", "", "`node` to move to (default: the best candidate)")
	cmd.Flags().StringVar(&at, "at", "", "`time` to begin, as 2026-03-01T02:00:00Z or as a duration from now, 90s")
	cmd.Flags().StringVar(&req.Reason, "reason", "", "why, for the history")
	_ = cmd.RegisterFlagCompletionFunc("to", a.completeNodes)
	return cmd
}

// parseAt reads --at: a time, or a duration from now.
func parseAt(at string, now time.Time) (time.Time, error) {
	if at == "" {
		return now, nil
	}
	if d, err := time.ParseDuration(at); err == nil && d >= 0 {
		return now.Add(d), nil
	}
	t, err := time.Parse(time.RFC3339, at)
	if err != nil {
		return now, usagef("--at %q is neither a time like 2026-03-01T02:00:00Z nor a duration like 90s", at)
	}
	if t.Before(now) {
		return now, usagef("--at %s has passed", at)
	}
	return t, nil
}

func (a *app) switchover(cmd *cobra.Command, req *pb.SwitchoverRequest, at string) error {
	now := time.Now()
	begin, err := parseAt(at, now)
	if err != nil {
		return err
	}
	timeout := moveTimeout
	if a.timeout > 0 {
		timeout = a.timeout
	}
	if at != "" {
		req.AtUnixMs = begin.UnixMilli()
		a.timeout = begin.Sub(now) + timeout // the time allowed counts from then
	}
	resp, err := call(a, cmd, client.Once, moveTimeout,
		func(ctx context.Context, cc grpc.ClientConnInterface) (*pb.SwitchoverResponse, error) {
			return pb.NewGroupServiceClient(cc).Switchover(ctx, req)
		})
	if err != nil {
		err = a.explainTarget(cmd, req.GetGroup(), req.GetTo(), err)
		return fmt.Errorf("switch over group %q: %w", req.GetGroup(), err)
	}
	return a.printMove(resp, resp.GetTransition())
}

// explainTarget looks, after a move was refused, whether its target has an instance
// at all. It does not look before: one node's view may be older than the leader's.
func (a *app) explainTarget(cmd *cobra.Command, group, to string, err error) error {
	refused := errors.Is(err, hastate.ErrPrecondition) || errors.Is(err, hastate.ErrNotFound) || errors.Is(err, hastate.ErrInvalid)
	if to == "" || !refused || errors.Is(err, hastate.ErrOutcomeUnknown) {
		return err
	}
	var known *pb.ListGroupsResponse
	listErr := a.with(cmd, client.DefaultAttemptTimeout, func(ctx context.Context, c *client.Client) (err error) {
		known, err = knownGroups(ctx, c)
		return err
	})
	has := func(i *pb.Instance) bool { return i.GetGroup() == group && i.GetNodeId() == to }
	exists := func(g *pb.Group) bool { return g.GetName() == group }
	if listErr != nil || !slices.ContainsFunc(known.GetGroups(), exists) || slices.ContainsFunc(known.GetInstances(), has) {
		return err
	}
	return adviceError{fmt.Errorf("%s has no instance in group %q: %w", to, group, err), "nothing was done: hactl group show " + group + " lists the instances"}
}

// printMove prints how a switchover or failover ended; one that did not end in a
// serving primary is a failure.
func (a *app) printMove(resp proto.Message, tr *pb.Transition) error {
	if err := a.print(resp, func(t table) { transitionsTable(t, []*pb.Transition{tr}) }); err != nil {
		return err
	}
	if tr.GetOutcome() != pb.TransitionOutcome_TRANSITION_OUTCOME_SERVING {
		return adviceError{
			fmt.Errorf("%w: %s to %q ended as %s: %s", hastate.ErrPrecondition, enum("TRANSITION_KIND_", tr.GetKind()), tr.GetTo(),
				enum("TRANSITION_OUTCOME_", tr.GetOutcome()), tr.GetDetail()),
			"see hactl primary and hactl status for who serves now and why the target could not",
		}
	}
	return nil
}
