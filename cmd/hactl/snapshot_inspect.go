// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/hastate/hastate/snapshot"
)

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
	defer func() { _ = f.Close() }() // only read from
	info, err := checkArchive(f)
	if err != nil {
		return fmt.Errorf("inspect snapshot %s: %w", path, err)
	}
	h := info.Header
	return a.print(h, func(t table) {
		t.row("CLUSTER", h.GetClusterId())
		t.row("FORMAT", h.GetFormat())
		t.row("INDEX", h.GetIndex())
		t.row("TERM", h.GetTerm())
		t.row("REVISION", h.GetRevision())
		t.row("STATE BYTES", h.GetStateBytes())
		t.row("FILE BYTES", info.Size)
		t.row("BACKUP", yesNo(h.GetBackup()))
		t.row("WRITTEN", stamp(h.GetCreatedUnixMs()))
		t.row("BY", h.GetVersion())
	})
}

// checkArchive reads an archive to its end and checks its sums.
func checkArchive(f *os.File) (snapshot.Info, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return snapshot.Info{}, err
	}
	info, err := snapshot.Inspect(bufio.NewReaderSize(f, archiveChunkBytes))
	if err != nil {
		return info, adviceError{err, "do not use this file: take another archive"}
	}
	return info, nil
}
