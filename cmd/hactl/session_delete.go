// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func (s *sessionNoun) deleteCmd() *cobra.Command {
	var req pb.DeleteRequest
	var prefix string
	var yes bool
	cmd := &cobra.Command{
		Use: "delete ID... | --prefix PREFIX", Short: "Delete sessions; one that is not there is no error",
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case prefix == "" && len(args) == 0:
				return usagef("session delete needs ids or --prefix")
			case prefix != "" && len(args) > 0:
				return usagef("ids and --prefix exclude each other")
			case (prefix != "" || len(args) > 1) && req.GetIfRevision() > 0:
				return usagef("--if-revision goes with one id")
			}
			if prefix != "" {
				return s.deletePrefix(cmd, prefix, req.GetEpoch(), yes)
			}
			if len(args) > 1 {
				if err := s.confirm(yes, fmt.Sprintf("delete %d sessions of group %q?", len(args), s.group)); err != nil {
					return err
				}
			}
			return s.deleteAll(cmd, args, req.GetIfRevision(), req.GetEpoch())
		},
	}
	f := cmd.Flags()
	f.StringVar(&prefix, "prefix", "", "delete all whose ids begin with this")
	f.Uint64Var(&req.IfRevision, "if-revision", 0, "only if the session has this revision")
	f.Uint64Var(&req.Epoch, "epoch", 0, "refuse it unless this is the group's newest epoch")
	f.BoolVar(&yes, "yes", false, "do not ask before several are deleted")
	return cmd
}

// deletePrefix lists first, so that the question says how many.
func (s *sessionNoun) deletePrefix(cmd *cobra.Command, prefix string, epoch uint64, yes bool) error {
	var ids []string
	err := s.do(cmd, func(ctx context.Context, sessions *client.Sessions) error {
		for session, err := range sessions.List(ctx, client.ListOptions{Prefix: prefix, PageSize: 1000, KeysOnly: true}) {
			if err != nil {
				return err
			}
			ids = append(ids, session.GetId())
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := s.confirm(yes, fmt.Sprintf("delete %d sessions of group %q that begin with %q?", len(ids), s.group, prefix)); err != nil {
		return err
	}
	return s.deleteAll(cmd, ids, 0, epoch)
}

// deleteAll deletes in batches; each is atomic, all together are not.
func (s *sessionNoun) deleteAll(cmd *cobra.Command, ids []string, ifRevision, epoch uint64) error {
	deleted := 0
	err := s.do(cmd, func(ctx context.Context, sessions *client.Sessions) error {
		for chunk := range slices.Chunk(ids, hastate.MaxBatchOps) {
			ops := make([]*pb.SessionOp, len(chunk))
			for i, id := range chunk {
				ops[i] = &pb.SessionOp{Op: &pb.SessionOp_Delete{Delete: &pb.DeleteRequest{Id: id, IfRevision: ifRevision, Epoch: epoch}}}
			}
			results, err := sessions.Batch(ctx, ops...)
			if err != nil {
				return err
			}
			for _, r := range results {
				if r.GetDeleted() {
					deleted++
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("delete sessions of group %q (%d of %d deleted so far): %w", s.group, deleted, len(ids), err)
	}
	if s.format != formatTable {
		return s.printJSON(fmt.Appendf(nil, `{"deleted":%d}`, deleted), false)
	}
	return s.printTable(func(t table) { t.line("%d deleted", deleted) })
}
