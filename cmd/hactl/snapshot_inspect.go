// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// inspectArchive reads an archive to its end, checks its sums and returns its
// header.
var inspectArchive func(r io.Reader) (*pb.ArchiveHeader, error)

func (a *app) snapshotInspectCmd() *cobra.Command {
	return &cobra.Command{
		Use: "inspect FILE", Short: "Check an archive and show what is in it, without a cluster", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return a.inspectSnapshot(args[0]) },
	}
}

func (a *app) inspectSnapshot(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("inspect snapshot: %w", err)
	}
	defer f.Close()
	if inspectArchive == nil {
		return fmt.Errorf("inspect snapshot: this build cannot read archives")
	}
	h, err := inspectArchive(bufio.NewReaderSize(f, 1<<20))
	if err != nil {
		return adviceError{fmt.Errorf("inspect snapshot %s: %w", path, err), "do not restore this file: take another archive"}
	}
	return a.print(h, func(t table) {
		t.row("CLUSTER", h.GetClusterId())
		t.row("FORMAT", h.GetFormat())
		t.row("INDEX", h.GetIndex())
		t.row("TERM", h.GetTerm())
		t.row("REVISION", h.GetRevision())
		t.row("BYTES", h.GetStateBytes())
		t.row("BACKUP", yesNo(h.GetBackup()))
		t.row("WRITTEN", stamp(h.GetCreatedUnixMs()))
		t.row("BY", h.GetVersion())
	})
}
