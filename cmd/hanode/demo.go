// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/hastate/hastate/election"
	"github.com/hastate/hastate/examples/textserver/textserver"
	"github.com/hastate/hastate/internal/demo"
)

func newDemoCommand() *cobra.Command {
	o := demo.Options{Profile: election.Lan.Name}
	fault := "kill-host"
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show a stream that survives the loss of its primary: three nodes and three model servers on this machine",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			faults, err := demo.ParseFaults(fault)
			if err != nil {
				return usageError{err}
			}
			if _, err := election.ProfileByName(o.Profile); err != nil {
				return usageError{err}
			}
			if o.Keep && o.JSON {
				return usageError{errors.New("--keep and --json do not go together: --keep talks to people")}
			}
			if o.BasePort < 0 || o.BasePort > demo.MaxBasePort {
				return usageError{fmt.Errorf("--base-port %d must leave room for twelve ports: use 1 to %d, or 0 for free ones", o.BasePort, demo.MaxBasePort)}
			}
			o.Faults, o.Out, o.Log = faults, cmd.OutOrStdout(), cmd.ErrOrStderr()
			if o.Hanode == "" {
				if o.Hanode, err = os.Executable(); err != nil {
					return fmt.Errorf("find this program: %w: name it with --hanode", err)
				}
			}
			o.Hactl = "go run ./cmd/hactl"
			if beside := filepath.Join(filepath.Dir(o.Hanode), "hactl"); isFile(beside) {
				o.Hactl = beside
			}
			return demo.Run(cmd.Context(), o)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&fault, "fault", fault, "what to break: kill-model, kill-host, hang-model, kill-leader, switchover, several with commas, or all")
	fs.BoolVar(&o.JSON, "json", false, "print one JSON object per fault and nothing else")
	fs.BoolVar(&o.Keep, "keep", false, "leave the cluster running until Ctrl-C")
	fs.StringVar(&o.Profile, "profile", o.Profile, "timeouts: fast, lan or wan")
	fs.StringVar(&o.Hanode, "hanode", "", "hanode to start (default: this program)")
	fs.StringVar(&o.Textserver, "textserver", "", "model server to start (default: the one inside hanode)")
	fs.IntVar(&o.BasePort, "base-port", 0, "first of twelve consecutive ports (default: free ones)")
	fs.StringVar(&o.Dir, "dir", "", "where to make the scratch folder (default: the system's)")
	return cmd
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// newTextserverCommand is the model server of the demo, so that the demo needs no
// second program.
func newTextserverCommand() *cobra.Command {
	return &cobra.Command{
		Use: "textserver", Short: "The small model server of the demo", Hidden: true, DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := textserver.Parse(args, cmd.OutOrStdout())
			if err != nil {
				return usageError{err}
			}
			return textserver.Run(cmd.Context(), cfg)
		},
	}
}
