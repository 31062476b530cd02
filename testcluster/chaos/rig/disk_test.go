// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hastate/hastate/internal/wait"
)

func TestPowerCut(t *testing.T) {
	needRoot(t)
	r := open(t, 2, true)
	hosts := r.Hosts()
	for _, h := range hosts {
		if err := h.Start(NodeStart{Args: []string{"write"}}); err != nil {
			t.Fatal(err)
		}
		printed(t, h.Node(), "written")
	}
	if err := r.PowerCut(append(hosts, hosts[0])...); err != nil {
		t.Fatal(err)
	}
	for _, h := range hosts {
		if h.Node().Running() || h.Model("a").Running() {
			t.Fatal("processes are running without power")
		}
		if got, err := os.ReadFile(filepath.Join(h.DataDir(), "file")); err != nil || string(got) != "synced" {
			t.Errorf("a file with a synced start: %q, %v", got, err)
		}
		if _, err := os.Stat(filepath.Join(h.DataDir(), "lost")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a file that was not synced: %v", err)
		}
		if _, err := os.Stat(filepath.Join(h.DataDir(), "renamed")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a rename that was not synced: %v", err)
		}
	}
	// Again, of one that runs, and of one that waits for a frozen disk.
	for _, h := range hosts {
		if err := h.StartNode(NodeStart{Args: []string{"write"}}); err != nil {
			t.Fatal(err)
		}
		printed(t, h.Node(), "written")
	}
	if err := hosts[1].Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.PowerCut(hosts...); err != nil {
		t.Fatal(err)
	}
	for _, h := range hosts {
		if got, err := os.ReadFile(filepath.Join(h.DataDir(), "file")); err != nil || string(got[:6]) != "synced" {
			t.Errorf("a file with a synced start: %q, %v", got, err)
		}
		if err := h.StartNode(NodeStart{Args: []string{"write"}}); err != nil {
			t.Fatal(err)
		}
		printed(t, h.Node(), "written")
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	for _, h := range hosts {
		if out, err := exec.Command("e2fsck", "-f", "-n", h.disk.image).CombinedOutput(); err != nil {
			t.Errorf("the file system was damaged: %v\n%s", err, out)
		}
	}
}

func TestFreeze(t *testing.T) {
	needRoot(t)
	r := open(t, 1, true)
	h := r.Hosts()[0]
	if err := errors.Join(h.Freeze(t.Context()), h.Freeze(t.Context())); err != nil {
		t.Fatal(err)
	}
	var writer sync.WaitGroup
	defer writer.Wait()
	written := make(chan error, 1)
	path := filepath.Join(h.DataDir(), "file")
	writer.Go(func() { written <- os.WriteFile(path, []byte("x"), 0o600) })
	// It waits in the kernel.
	wait.Until(t, 20*time.Second, func() error {
		if !blocked() {
			return errors.New("nobody waits")
		}
		return nil
	})
	select {
	case err := <-written:
		t.Fatalf("written to a frozen disk: %v", err)
	default:
	}
	if err := h.Thaw(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if err := h.Thaw(t.Context()); err != nil {
		t.Fatal(err)
	}
	// A rig can be closed with a frozen disk and a process that waits for it.
	if err := h.StartNode(NodeStart{Args: []string{"write"}}); err != nil {
		t.Fatal(err)
	}
	printed(t, h.Node(), "written")
	if err := h.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

// blocked reports whether a thread of this program waits in the kernel and cannot
// be interrupted.
func blocked() bool {
	threads, _ := filepath.Glob("/proc/self/task/*/stat") // an empty list finds nothing
	for _, path := range threads {
		text, _ := os.ReadFile(path) // a thread that has ended does not wait
		// The state follows the name, which is in brackets.
		if i := bytes.LastIndexByte(text, ')'); i > 0 && bytes.HasPrefix(text[i:], []byte(") D")) {
			return true
		}
	}
	return false
}

func TestFill(t *testing.T) {
	needRoot(t)
	r := open(t, 1, true)
	h := r.Hosts()[0]
	// Synced: what is lost in a power cut is free space.
	write := func() error {
		f, err := os.Create(filepath.Join(h.DataDir(), "file"))
		if err != nil {
			return err
		}
		_, err = f.Write(make([]byte, 1<<20))
		return errors.Join(err, f.Sync(), f.Close(), syncFolder(h.DataDir()))
	}
	if err := errors.Join(h.Free(), write(), h.Fill(), h.Fill()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.DataDir(), "more"), []byte("x"), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("a write to a full disk: %v", err)
	}
	if err := r.PowerCut(h); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.DataDir(), "more"), []byte("x"), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("a write to a full disk after a power cut: %v", err)
	}
	if err := errors.Join(h.Free(), write()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.Fill(), h.Wipe(t.Context()), write()); err != nil {
		t.Fatal(err)
	}
}
