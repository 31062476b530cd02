// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// sessionNoun holds the flag that all session commands share.
type sessionNoun struct {
	*app
	group string
}

func (a *app) sessionCmd() *cobra.Command {
	s := &sessionNoun{app: a}
	cmd := noun("session", "Read and write sessions",
		s.getCmd(), s.listCmd(), s.watchCmd(), s.putCmd(), s.appendCmd(), s.deleteCmd())
	cmd.PersistentFlags().StringVarP(&s.group, "group", "g", hastate.DefaultGroup, "group of the sessions")
	_ = cmd.RegisterFlagCompletionFunc("group", a.completeGroups)
	return cmd
}

// do runs fn with the sessions of the group.
func (s *sessionNoun) do(cmd *cobra.Command, fn func(ctx context.Context, sessions *client.Sessions) error) error {
	return s.with(cmd, client.DefaultTimeout, func(ctx context.Context, c *client.Client) error {
		return fn(ctx, c.Sessions(s.group))
	})
}

func (s *sessionNoun) getCmd() *cobra.Command {
	var local, value bool
	cmd := &cobra.Command{
		Use: "get ID", Short: "Show a session", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var session *pb.Session
			err := s.do(cmd, func(ctx context.Context, sessions *client.Sessions) (err error) {
				session, err = sessions.Get(ctx, args[0], readLevel(local))
				return err
			})
			if err != nil {
				return err
			}
			if value {
				if _, err := s.out.Write(session.GetValue()); err != nil {
					return fmt.Errorf("write value: %w", err)
				}
				return nil
			}
			return s.print(session, func(t table) { sessionTable(t, session) })
		},
	}
	cmd.Flags().BoolVar(&local, "local", false, "take the answer of one node, which may be old")
	cmd.Flags().BoolVar(&value, "value", false, "write the bytes of the value and nothing else")
	return cmd
}

func sessionTable(t table, s *pb.Session) {
	t.row("SESSION", s.GetGroup()+"/"+s.GetId())
	t.row("OWNER", s.GetOwner())
	t.row("VALUE", fmt.Sprintf("%d bytes", len(s.GetValue())))
	t.row("OFFSETS", fmt.Sprintf("%d to %d", s.GetBaseOffset(), s.GetBaseOffset()+uint64(len(s.GetValue()))))
	t.row("MODEL", s.GetModelDigest())
	t.row("ADAPTER", s.GetAdapter())
	t.row("POINTERS", pairsText(s.GetPointers()))
	t.row("LABELS", pairsText(s.GetLabels()))
	t.row("EPOCH", s.GetEpoch())
	t.row("TTL", ttlText(s.GetTtlMs()))
	t.row("REVISION", s.GetRevision())
	t.row("CREATED", fmt.Sprintf("revision %d", s.GetCreateRevision()))
}

func ttlText(ms uint64) string {
	if ms == 0 {
		return "for ever"
	}
	return millis(ms)
}

func (s *sessionNoun) listCmd() *cobra.Command {
	var o client.ListOptions
	var local, values bool
	var limit int
	cmd := &cobra.Command{
		Use: "list", Short: "List sessions in order of id", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 {
				return usagef("--limit %d is below 1", limit)
			}
			o.Level, o.KeysOnly = readLevel(local), !values
			o.PageSize = uint32(min(limit+1, 1000))
			reply := &pb.ListResponse{}
			more := false
			err := s.do(cmd, func(ctx context.Context, sessions *client.Sessions) error {
				for session, err := range sessions.List(ctx, o) {
					if err != nil {
						return err
					}
					if more = len(reply.Sessions) == limit; more {
						break
					}
					reply.Sessions = append(reply.Sessions, session)
				}
				return nil
			})
			if err != nil {
				return err
			}
			return s.printSessions(reply, more, limit)
		},
	}
	cmd.Flags().StringVar(&o.Prefix, "prefix", "", "only ids that begin with this")
	cmd.Flags().BoolVar(&local, "local", false, "take the answer of one node, which may be old")
	cmd.Flags().BoolVar(&values, "values", false, "with their values (json and yaml)")
	cmd.Flags().IntVar(&limit, "limit", 100, "list at most so many")
	return cmd
}

func (s *sessionNoun) printSessions(reply *pb.ListResponse, more bool, limit int) error {
	err := s.print(reply, func(t table) {
		t.row("SESSION", "OWNER", "REVISION", "EPOCH", "TTL", "MODEL", "LABELS")
		for _, v := range reply.GetSessions() {
			t.row(v.GetId(), v.GetOwner(), v.GetRevision(), v.GetEpoch(), ttlText(v.GetTtlMs()), v.GetModelDigest(), pairsText(v.GetLabels()))
		}
	})
	if err == nil && more {
		_, err = fmt.Fprintf(s.err, "there are more than %d: use --limit or --prefix\n", limit)
	}
	return err
}

func (s *sessionNoun) watchCmd() *cobra.Command {
	var prefix string
	var after uint64
	var count int
	cmd := &cobra.Command{
		Use: "watch", Short: "Show changes of sessions as they happen", Args: cobra.NoArgs,
		Long: `Show the sessions and then each change, one line each, until interrupted. With
-o json each line is one JSON object. A line "resync" says that changes were
missed: the current sessions follow.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.stream(cmd, func(ctx context.Context, c *client.Client) error {
				return c.Sessions(s.group).Watch(ctx, prefix, after, atMost(count, func(ch client.SessionChange) (bool, error) {
					return ch.Event != nil, s.printSessionChange(ch)
				}))
			})
		},
	}
	cmd.Flags().StringVar(&prefix, "prefix", "", "only ids that begin with this")
	cmd.Flags().Uint64Var(&after, "after", 0, "begin after this `revision` instead of with the current sessions")
	cmd.Flags().IntVar(&count, "count", 0, "end after so many changes (0: never)")
	return cmd
}

func (s *sessionNoun) printSessionChange(ch client.SessionChange) error {
	if ch.Resync {
		if s.format != formatTable {
			return s.printJSON([]byte(`{"resync":true}`), true)
		}
		_, err := fmt.Fprintln(s.out, "resync")
		return err
	}
	e := ch.Event
	if e == nil { // only the revision has moved on
		return nil
	}
	return s.printLine(e, func(w io.Writer) error {
		what := "put"
		switch {
		case e.GetExpired():
			what = "expired"
		case e.GetDeleted():
			what = "deleted"
		}
		_, err := fmt.Fprintln(w, oneLine(fmt.Sprintf("revision=%d %s session=%s owner=%s bytes=%d", e.GetRevision(), what,
			e.GetSession().GetId(), e.GetSession().GetOwner(), len(e.GetSession().GetValue()))))
		return err
	})
}
