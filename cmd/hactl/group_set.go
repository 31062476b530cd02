// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// groupSettings are the flags of group set. Only those that were given change.
type groupSettings struct {
	ttl, calm, drain, promote time.Duration
	maxFailovers              uint32
	maxLag                    uint64
	zone, model               string
	clearModel                bool
}

// policyFlags are those that change the policy.
var policyFlags = []string{"lease", "calm", "drain", "promote-timeout", "max-failovers", "max-lag", "preferred-zone"}

func (a *app) groupSetCmd() *cobra.Command {
	var s groupSettings
	cmd := &cobra.Command{
		Use: "set [GROUP]", Short: "Create a group or change its policy and desired model",
		Long: `Create a group, or change its policy and the model that its primary must have.
What no flag names stays as it is.`,
		Example: "  hactl group set chat --lease 2s --max-failovers 3 --calm 10m\n  hactl group set chat --model llama:v7",
		Args:    cobra.MaximumNArgs(1), ValidArgsFunction: a.completeGroups,
		RunE: func(cmd *cobra.Command, args []string) error { return a.setGroup(cmd, groupOf(args), s) },
	}
	f := cmd.Flags()
	f.DurationVar(&s.ttl, "lease", 0, "length of the lease from the next grant on (0: that of the profile)")
	f.Uint32Var(&s.maxFailovers, "max-failovers", 0, "hold automatic failover after so many without a calm period (0: never)")
	f.DurationVar(&s.calm, "calm", 0, "length of a calm period")
	f.Uint64Var(&s.maxLag, "max-lag", 0, "a candidate may be at most so many log entries behind (0: no limit)")
	f.DurationVar(&s.drain, "drain", 0, "longest wait for running requests in a switchover")
	f.DurationVar(&s.promote, "promote-timeout", 0, "longest time for one promotion")
	f.StringVar(&s.zone, "preferred-zone", "", "zone whose instances are preferred")
	f.StringVar(&s.model, "model", "", "model that the primary must have, `NAME:VERSION`, or NAME@ALIAS: the version that the alias has now, pinned; a later change of the alias does not change it")
	f.BoolVar(&s.clearModel, "clear-model", false, "let any model do")
	return cmd
}

func (a *app) setGroup(cmd *cobra.Command, group string, s groupSettings) error {
	changesPolicy := false
	for _, name := range policyFlags {
		changesPolicy = changesPolicy || cmd.Flags().Changed(name)
	}
	switch {
	case s.model != "" && s.clearModel:
		return usagef("--model and --clear-model exclude each other")
	case !changesPolicy && s.model == "" && !s.clearModel:
		return usagef("group set needs at least one flag that says what to set")
	}
	if err := s.change(cmd.Flags(), &pb.GroupPolicy{}); err != nil {
		return err // before anything is asked for
	}
	var resp *pb.ConfigureResponse
	err := a.with(cmd, client.DefaultTimeout, func(ctx context.Context, c *client.Client) error {
		req := &pb.ConfigureRequest{Group: group, ClearDesiredModel: s.clearModel}
		if changesPolicy {
			policy, err := currentPolicy(ctx, c, group)
			if err != nil {
				return err
			}
			if err := s.change(cmd.Flags(), policy); err != nil {
				return err
			}
			req.Policy = policy
		}
		if s.model != "" {
			model, _, err := getModel(ctx, c, s.model)
			if err != nil {
				return err
			}
			req.DesiredModel = model.GetRef()
		}
		return c.Call(ctx, client.Repeatable, func(ctx context.Context, cc grpc.ClientConnInterface) (err error) {
			resp, err = pb.NewGroupServiceClient(cc).Configure(ctx, req)
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("set group %q: %w", group, err)
	}
	return a.print(resp, func(t table) {
		groupsTable(t, []*pb.Group{resp.GetGroup()})
		t.line("")
		policyTable(t, resp.GetGroup().GetPolicy())
	})
}

// currentPolicy is the policy to change: that of the group, or an empty one for a
// group that is yet to be made.
func currentPolicy(ctx context.Context, c *client.Client, group string) (*pb.GroupPolicy, error) {
	var policy *pb.GroupPolicy
	err := c.Call(ctx, client.Repeatable, func(ctx context.Context, cc grpc.ClientConnInterface) error {
		resp, err := pb.NewGroupServiceClient(cc).GetGroup(ctx, &pb.GetGroupRequest{Group: group})
		policy = resp.GetGroup().GetPolicy()
		return err
	})
	if err != nil && !errors.Is(err, hastate.ErrNotFound) {
		return nil, err
	}
	if policy == nil {
		policy = &pb.GroupPolicy{}
	}
	return policy, nil
}

// change puts the flags that were given into a policy.
func (s groupSettings) change(flags *pflag.FlagSet, p *pb.GroupPolicy) error {
	var errs []error
	short := func(name string, d time.Duration, to *uint32) {
		if !flags.Changed(name) {
			return
		}
		if d < 0 || d.Milliseconds() > math.MaxUint32 {
			errs = append(errs, usagef("--%s %v is out of range", name, d))
			return
		}
		*to = uint32(d.Milliseconds())
	}
	short("lease", s.ttl, &p.TtlMs)
	if flags.Changed("lease") && p.TtlMs != 0 && p.TtlMs < hastate.MinTTLMillis || s.ttl > 0 && s.ttl < time.Millisecond {
		errs = append(errs, usagef("--lease %v is below %v", s.ttl, hastate.MinTTLMillis*time.Millisecond))
	}
	short("drain", s.drain, &p.DrainMs)
	short("promote-timeout", s.promote, &p.PromoteTimeoutMs)
	if flags.Changed("calm") {
		if s.calm < 0 {
			errs = append(errs, usagef("--calm %v is negative", s.calm))
		}
		p.CalmMs = uint64(s.calm.Milliseconds())
	}
	if flags.Changed("max-failovers") {
		p.MaxFailovers = s.maxFailovers
	}
	if flags.Changed("max-lag") {
		p.MaxLag = s.maxLag
	}
	if flags.Changed("preferred-zone") {
		p.PreferredZone = s.zone
	}
	return errors.Join(errs...)
}
