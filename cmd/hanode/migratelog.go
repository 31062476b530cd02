// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/spf13/cobra"

	"github.com/hastate/hastate/internal/logstore"
	"github.com/hastate/hastate/node"
)

func newMigrateLogCommand() *cobra.Command {
	var dir, to string
	cmd := &cobra.Command{
		Use:   "migrate-log",
		Short: "Rewrite the Raft log of a stopped node as another kind: bolt or segments",
		Long: "Rewrite the Raft log of a stopped node as another kind: bolt or segments.\n\n" +
			"The new log is written beside the old one, read again and compared, and then takes its place.\n" +
			"If it is interrupted nothing is lost: run it again.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				return usageError{errors.New("--data-dir is missing: name the data folder of the node")}
			}
			if !slices.Contains(logstore.Kinds, logstore.Kind(to)) {
				return usageError{fmt.Errorf("--to %q is not known: use one of %q", to, logstore.Kinds)}
			}
			done, err := node.MigrateLog(dir, logstore.Kind(to), slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: the log has %d entries (%d to %d) and is of the kind %s now.\n", dir, done.Entries, done.First, done.Last, done.To)
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "data-dir", "", "data folder of the node, which must not run")
	cmd.Flags().StringVar(&to, "to", "", "kind of the new log: bolt or segments")
	return cmd
}
