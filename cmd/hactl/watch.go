// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/hastate/hastate/client"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// errEnough ends a watch that has shown what was asked for.
var errEnough = errors.New("enough")

func (a *app) watchCmd() *cobra.Command {
	var after uint64
	var count int
	cmd := &cobra.Command{
		Use: "watch [GROUP...]", Short: "Show changes of groups as they happen",
		Long: `Show the state of groups (none: all) and then each change, one line each, until
interrupted. With -o json each line is one JSON object.`,
		ValidArgsFunction: a.completeGroups,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.stream(cmd, func(ctx context.Context, c *client.Client) error {
				a.noteUnknown(ctx, c, args)
				return c.WatchGroups(ctx, args, after, atMost(count, func(r *pb.WatchResponse) (bool, error) {
					return !r.GetHeartbeat(), a.printChange(r)
				}))
			})
		},
	}
	cmd.Flags().Uint64Var(&after, "after", 0, "begin after this `revision` instead of with the current state")
	cmd.Flags().IntVar(&count, "count", 0, "end after so many changes (0: never)")
	return cmd
}

// noteUnknown says on standard error which groups do not exist yet. A watch goes
// on all the same: they may be made later.
func (a *app) noteUnknown(ctx context.Context, c *client.Client, groups []string) {
	if len(groups) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, client.DefaultAttemptTimeout)
	defer cancel()
	known, err := knownGroups(ctx, c)
	if err != nil {
		return // the watch says what is wrong
	}
	for _, name := range groups {
		if !slices.ContainsFunc(known.GetGroups(), func(g *pb.Group) bool { return g.GetName() == name }) {
			_, _ = fmt.Fprintf(a.err, "there is no group %q yet: waiting for it, see hactl group list\n", name)
		}
	}
}

// knownGroups are the groups and instances as one node has them.
func knownGroups(ctx context.Context, c *client.Client) (*pb.ListGroupsResponse, error) {
	var resp *pb.ListGroupsResponse
	err := c.Call(ctx, client.Repeatable, func(ctx context.Context, cc grpc.ClientConnInterface) (err error) {
		resp, err = pb.NewGroupServiceClient(cc).ListGroups(ctx, &pb.ListGroupsRequest{Level: pb.ReadLevel_READ_LEVEL_LOCAL})
		return err
	})
	return resp, err
}

// stream runs a watch until it ends, --timeout has passed, or it is interrupted;
// the last two are no failure.
func (a *app) stream(cmd *cobra.Command, watch func(ctx context.Context, c *client.Client) error) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	// A watch goes on for ever trying: say at once that nobody answers.
	probe, done := a.within(cmd, client.DefaultTimeout)
	err = c.Call(probe, client.Repeatable, func(ctx context.Context, cc grpc.ClientConnInterface) error {
		_, err := pb.NewClusterServiceClient(cc).Status(ctx, &pb.StatusRequest{})
		return err
	})
	done()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	if a.timeout > 0 {
		ctx, cancel = context.WithTimeout(cmd.Context(), a.timeout)
	}
	defer cancel()
	err = watch(ctx, c)
	if errors.Is(err, errEnough) || ctx.Err() != nil {
		return nil
	}
	return err
}

// atMost ends a watch after count messages that were shown; 0: never.
func atMost[M any](count int, show func(M) (shown bool, err error)) func(M) error {
	seen := 0
	return func(m M) error {
		shown, err := show(m)
		if err != nil || !shown {
			return err
		}
		if seen++; seen == count {
			return errEnough
		}
		return nil
	}
}

func (a *app) printChange(r *pb.WatchResponse) error {
	if r.GetHeartbeat() {
		return nil
	}
	return a.printLine(r, func(w io.Writer) error {
		p := r.GetPrimary()
		// The current state, which comes first, has no revision of its own.
		text := fmt.Sprintf("revision=%d group=%s phase=%s primary=%s address=%s epoch=%d", cmp.Or(r.GetRevision(), r.GetGroup().GetRevision()), p.GetGroup(),
			enum("GROUP_PHASE_", p.GetPhase()), p.GetNodeId(), p.GetAddress(), p.GetEpoch())
		if tr := r.GetTransition(); tr != nil {
			text += fmt.Sprintf(" %s=%s reason=%q", enum("TRANSITION_KIND_", tr.GetKind()), enum("TRANSITION_OUTCOME_", tr.GetOutcome()), tr.GetReason())
		}
		_, err := fmt.Fprintln(w, oneLine(text))
		return err
	})
}
