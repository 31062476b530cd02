// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// makeFolder is what a host has that has no disk.
func (h *Host) makeFolder(dir string) error {
	h.data = filepath.Join(dir, "data")
	if err := os.MkdirAll(h.data, 0o755); err != nil {
		return fmt.Errorf("make data folder: %w", err)
	}
	return nil
}

// Freeze lets every write to the host's disk wait until Thaw; what was written
// before is flushed first. A process that waits so cannot be killed before Thaw,
// not even with SIGKILL, and one that ends by itself keeps its ports and connections
// until then. Without a disk the node's log store is stalled instead.
func (h *Host) Freeze(ctx context.Context) error {
	if h.disk == nil {
		return h.Control(ctx, []byte(`{"stall_log":true}`))
	}
	return h.disk.freeze()
}

// Thaw undoes Freeze; a disk that is not frozen is no error.
func (h *Host) Thaw(ctx context.Context) error {
	if h.disk == nil {
		return h.Control(ctx, []byte(`{"stall_log":false}`))
	}
	return h.disk.thaw()
}

// Fill takes all space of the disk, until Free; a power cut does not free it.
// Without a disk it returns ErrUnsupported.
func (h *Host) Fill() error {
	if h.disk == nil {
		return fmt.Errorf("%w: a full disk needs root, and disks", ErrUnsupported)
	}
	return h.disk.fill()
}

// Free undoes Fill; a disk that is not filled is no error.
func (h *Host) Free() error {
	if h.disk == nil {
		return fmt.Errorf("%w: a full disk needs root, and disks", ErrUnsupported)
	}
	return h.disk.free()
}

// Wipe makes the disk new and empty. The node is down.
func (h *Host) Wipe(ctx context.Context) error {
	if p := h.Node(); p != nil && p.Running() {
		return fmt.Errorf("wipe %s: its node is running: kill it first", h.NodeID())
	}
	if h.disk != nil {
		return h.disk.wipe(ctx)
	}
	if err := os.RemoveAll(h.data); err != nil {
		return fmt.Errorf("wipe %s: %w", h.NodeID(), err)
	}
	if err := os.MkdirAll(h.data, 0o755); err != nil {
		return fmt.Errorf("wipe %s: %w", h.NodeID(), err)
	}
	return nil
}
