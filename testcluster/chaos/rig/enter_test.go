// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hastate/hastate/internal/proc"
	"github.com/hastate/hastate/internal/wait"
)

// holdEnv makes the test program hold a rig in the folder that it names, until it
// is killed. It is in the environment of everything that is started from there.
const holdEnv = "RIG_TEST_HOLD"

// hold breaks what can be broken and waits.
func hold(dir string) error {
	ctx := context.Background()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r, err := Open(ctx, Options{Hosts: 2, Dir: dir, Hanode: self, Root: true, DiskMiB: 16, Env: []string{stubEnv + "=1"}})
	if err != nil {
		return err
	}
	h := r.Hosts()[0]
	for _, h := range r.Hosts() {
		if err := h.StartNode(NodeStart{Args: []string{"write"}}); err != nil {
			return err
		}
	}
	for !strings.Contains(h.Node().Tail(), "written") && h.Node().Running() {
	}
	if err := h.Freeze(ctx); err != nil {
		return err
	}
	if err := r.Link(0, 1).Set(Policy{Delay: time.Second}); err != nil {
		return err
	}
	fmt.Printf("holds %d.\n", os.Getpid())
	select {}
}

// TestEnter_Killed: nothing is left behind however the program ends, not even
// with a process that waits for a frozen disk.
func TestEnter_Killed(t *testing.T) {
	needRoot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		inner bool
		sig   syscall.Signal
		code  int
	}{
		{"kill the outer", false, syscall.SIGKILL, -1},
		{"kill the inner", true, syscall.SIGKILL, 128 + 9},
		{"end the outer", false, syscall.SIGTERM, 128 + 15},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			p, err := proc.Start(proc.Spec{Name: "holder", Path: self, Env: []string{holdEnv + "=" + dir}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = p.Kill() })
			printed(t, p, ".\n")
			_, text, _ := strings.Cut(strings.TrimSuffix(p.Tail(), ".\n"), "holds ")
			inner, err := strconv.Atoi(text)
			if err != nil {
				t.Fatalf("%v in %q", err, p.Tail())
			}
			if got := len(left(t, dir)); got < 6 { // the two, the guard, two nodes, a loop device
				t.Fatalf("only %v", left(t, dir))
			}
			if c.inner {
				err = syscall.Kill(inner, c.sig)
			} else {
				err = p.Signal(c.sig)
			}
			if err != nil {
				t.Fatal(err)
			}
			<-p.Exited()
			if p.ExitCode() != c.code {
				t.Errorf("exit code %d, want %d", p.ExitCode(), c.code)
			}
			wait.Until(t, 20*time.Second, func() error {
				if l := left(t, dir); len(l) > 0 {
					return fmt.Errorf("left behind: %v", l)
				}
				return nil
			})
		})
	}
}

// left is the processes and loop devices of a holder. Its namespaces live no
// longer than these.
func left(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	processes, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range processes {
		env, _ := os.ReadFile(path) // it may just have ended
		if bytes.Contains(env, []byte(holdEnv+"="+dir+"\x00")) {
			line, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
			all = append(all, filepath.Dir(path)+" "+string(line))
		}
	}
	loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range loops {
		image, _ := os.ReadFile(path) // it may just have gone
		if strings.HasPrefix(string(image), dir) {
			all = append(all, path)
		}
	}
	return all
}
