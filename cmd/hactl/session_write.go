// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// readValue reads a value argument: itself, @file, or - for standard input.
func (a *app) readValue(arg string) ([]byte, error) {
	source := a.in
	switch {
	case arg == "-":
	case strings.HasPrefix(arg, "@"):
		f, err := os.Open(arg[1:])
		if err != nil {
			return nil, fmt.Errorf("read value: %w", err)
		}
		defer func() { _ = f.Close() }() // only read from
		source = f
	default:
		return []byte(arg), nil
	}
	value, err := io.ReadAll(io.LimitReader(source, hastate.MaxSessionValueBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read value: %w", err)
	}
	if len(value) > hastate.MaxSessionValueBytes {
		return nil, fmt.Errorf("read value: %w", &hastate.LimitError{Limit: "session.value_bytes", Maximum: hastate.MaxSessionValueBytes, Actual: uint64(len(value))})
	}
	return value, nil
}

func (s *sessionNoun) putCmd() *cobra.Command {
	req := &pb.PutRequest{Session: &pb.Session{}}
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "put ID VALUE", Short: "Write a session: VALUE is the value, @file, or - for standard input", Args: cobra.ExactArgs(2),
		Example: "  hactl session put chat-42 'hello' --owner node1 --ttl 1h\n  hactl session put chat-42 @state.bin\n  cat state.bin | hactl session put chat-42 -",
		RunE: func(cmd *cobra.Command, args []string) error {
			if ttl < 0 {
				return usagef("--ttl %v is negative", ttl)
			}
			value, err := s.readValue(args[1])
			if err != nil {
				return err
			}
			req.Session.Id, req.Session.Value, req.Session.TtlMs = args[0], value, uint64(ttl.Milliseconds())
			return s.write(cmd, "written", args[0], func(ctx context.Context, sessions *client.Sessions) (*pb.SessionOpResult, error) {
				return sessions.Put(ctx, req)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Session.Owner, "owner", "", "who works on it")
	f.DurationVar(&ttl, "ttl", 0, "time to live since the last write (0: for ever)")
	f.StringToStringVar(&req.Session.Labels, "label", nil, "`key=value`, may be repeated")
	f.StringToStringVar(&req.Session.Pointers, "pointer", nil, "`name=uri` of bulk state, may be repeated")
	f.StringVar(&req.Session.ModelDigest, "model-digest", "", "digest of the model that it was begun with")
	f.StringVar(&req.Session.Adapter, "adapter", "", "adapter that it uses")
	f.Uint64Var(&req.Session.BaseOffset, "base-offset", 0, "offset of the first byte of the value in the stream")
	f.Uint64Var(&req.Session.Epoch, "epoch", 0, "refuse it unless this is the group's newest epoch")
	f.Uint64Var(&req.IfRevision, "if-revision", 0, "only if the session has this revision")
	f.BoolVar(&req.IfAbsent, "if-absent", false, "only if there is no such session")
	return cmd
}

func (s *sessionNoun) appendCmd() *cobra.Command {
	req := &pb.AppendRequest{}
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "append ID VALUE", Short: "Append to the stream of a session: VALUE is the data, @file, or - for standard input", Args: cobra.ExactArgs(2),
		Long: `Append to the stream of a session at --offset, or, without it, at the end that it
has now. Offset 0 also creates the session.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if ttl < 0 {
				return usagef("--ttl %v is negative", ttl)
			}
			value, err := s.readValue(args[1])
			if err != nil {
				return err
			}
			req.Id, req.Data, req.TtlMs = args[0], value, uint64(ttl.Milliseconds())
			return s.write(cmd, "appended to", args[0], func(ctx context.Context, sessions *client.Sessions) (*pb.SessionOpResult, error) {
				if !cmd.Flags().Changed("offset") {
					session, err := sessions.Get(ctx, args[0], pb.ReadLevel_READ_LEVEL_LINEARIZABLE)
					if err != nil && !errors.Is(err, hastate.ErrNotFound) {
						return nil, err
					}
					req.Offset = session.GetBaseOffset() + uint64(len(session.GetValue()))
				}
				return sessions.Append(ctx, req)
			})
		},
	}
	f := cmd.Flags()
	f.Uint64Var(&req.Offset, "offset", 0, "where the data begins in the stream (default: its end)")
	f.Uint64Var(&req.TrimBefore, "trim-before", 0, "forget the stream before this offset")
	f.StringVar(&req.Owner, "owner", "", "new owner")
	f.DurationVar(&ttl, "ttl", 0, "time to live if this creates the session (0: for ever)")
	f.Uint64Var(&req.Epoch, "epoch", 0, "refuse it unless this is the group's newest epoch")
	return cmd
}

// write does one write and prints its result.
func (s *sessionNoun) write(cmd *cobra.Command, verb, id string, op func(context.Context, *client.Sessions) (*pb.SessionOpResult, error)) error {
	var result *pb.SessionOpResult
	err := s.do(cmd, func(ctx context.Context, sessions *client.Sessions) (err error) {
		result, err = op(ctx, sessions)
		return err
	})
	if err != nil {
		return fmt.Errorf("session %s/%s: %w", s.group, id, err)
	}
	return s.print(result, func(t table) {
		t.line("session %s/%s %s: revision %d, end offset %d", s.group, id, verb, result.GetRevision(), result.GetEndOffset())
	})
}
