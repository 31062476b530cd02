// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hastate/hastate/internal/proc"
	"github.com/hastate/hastate/internal/wait"
)

func needRoot(t *testing.T) {
	t.Helper()
	if !inside {
		t.Skip("namespaces and loop devices need root")
	}
}

// open makes a rig of stubs.
func open(t *testing.T, hosts int, root bool) *Rig {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, err := Open(t.Context(), Options{
		Hosts: hosts, Groups: []string{"a", "b"}, Dir: t.TempDir(), Hanode: self, Model: []string{self, "model"},
		Root: root, DiskMiB: 32, Seed: 7, Env: []string{stubEnv + "=1"}, NodeArgs: []string{"--extra"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// printed waits for a text in what a process printed.
func printed(t *testing.T, p *proc.Process, text string) {
	t.Helper()
	wait.Until(t, 20*time.Second, func() error {
		if !strings.Contains(p.Tail(), text) {
			return fmt.Errorf("no %q in %q", text, p.Tail())
		}
		return nil
	})
}

func TestHost_Start(t *testing.T) {
	for _, root := range []bool{false, true} {
		t.Run(fmt.Sprintf("root=%v", root), func(t *testing.T) {
			if root {
				needRoot(t)
			}
			r := open(t, 2, root)
			for _, h := range r.Hosts() {
				if err := h.Start(r.Founding(h)); err != nil {
					t.Fatal(err)
				}
				printed(t, h.Node(), "[run --config")
				printed(t, h.Node(), "RATE 1\n")
				printed(t, h.Model("b"), "--group b --grpc")
			}
			h := r.Hosts()[0]
			for _, address := range []string{h.GRPC(), h.ModelAddress("a"), h.ModelAddress("b")} {
				ping(t, dial(t, nil, "tcp", address))
			}
			if h.StartNode(NodeStart{}) == nil || h.StartModel("a") == nil || h.StartModel("zzz") == nil || h.Rename("x") == nil || h.Wipe(t.Context()) == nil {
				t.Error("no error although it is running")
			}
			if err := h.Node().Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			if err := h.Kill(); err != nil {
				t.Fatal(err)
			}
			h.SetClockRate(1.01)
			if err := errors.Join(h.Rename("n9"), h.Wipe(t.Context()), h.Start(NodeStart{WatchdogOff: true, Args: []string{"more"}})); err != nil {
				t.Fatal(err)
			}
			printed(t, h.Node(), "--extra more]\nRATE 1.01\nLEASES "+filepath.Join(r.options.Dir, "records", "leases-n9.jsonl")+"\nWATCHDOG_OFF 1")
			if again, ok := r.Host("n9"); !ok || again != h {
				t.Error("the host is not found under its new name")
			}
			for _, name := range []string{"n1.1", "n1-a.1", "n9.1", "n9-b.1", "n2.1"} {
				if _, err := os.Stat(filepath.Join(r.options.Dir, "logs", name+".log")); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestHost_Control(t *testing.T) {
	r := open(t, 2, false)
	h := r.Hosts()[0]
	if err := h.SetWallOffset(t.Context(), -time.Second); err != nil {
		t.Fatal(err)
	}
	if err := h.StartNode(NodeStart{}); err != nil {
		t.Fatal(err)
	}
	printed(t, h.Node(), `told {"wall_offset_ms":-1000}`)
	steps := []struct {
		do   func() error
		told string
	}{
		{func() error { return h.Freeze(t.Context()) }, `told {"stall_log":true,"wall_offset_ms":-1000}`},
		{func() error { return h.Thaw(t.Context()) }, `told {"stall_log":false,"wall_offset_ms":-1000}`},
		{func() error { return r.Link(0, 1).Set(Policy{Cut: true, Delay: 1500 * time.Microsecond}) }, `told {"links":{"n2":{"cut":true,"delay_ms":2}},`},
		{r.HealLinks, `told {"links":{},`},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			t.Fatal(err)
		}
		printed(t, h.Node(), s.told)
	}
	if err := h.Control(t.Context(), []byte(`{"bad":1}`)); err == nil || !strings.Contains(err.Error(), "no such field") {
		t.Errorf("a refused command: %v", err)
	}
	if err := h.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := h.StartNode(NodeStart{}); err != nil {
		t.Fatal(err)
	}
	printed(t, h.Node(), `told {"links":{},"stall_log":false,"wall_offset_ms":-1000}`)

	if err := h.StartModel("b"); err != nil {
		t.Fatal(err)
	}
	if err := h.ModelControl(t.Context(), "b", []byte(`{"hang":true}`)); err != nil {
		t.Fatal(err)
	}
	printed(t, h.Model("b"), `told {"hang":true}`)
	if err := h.ModelControl(t.Context(), "b", []byte(`{"bad":1}`)); err == nil || !strings.Contains(err.Error(), "no such field") {
		t.Errorf("a refused command: %v", err)
	}
	if h.ModelControl(t.Context(), "a", nil) == nil || h.Control(t.Context(), []byte("no")) == nil {
		t.Error("no error")
	}
	for what, err := range map[string]error{
		"hub": r.Link(Hub, 0).Set(Policy{Cut: true}), "reorder": r.Link(0, 1).Set(Policy{Reorder: 1}),
		"fill": h.Fill(), "free": h.Free(), "cut": r.PowerCut(h),
	} {
		if !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestModelControl_OfOneThatEnds: that it was not told because it was ending can be seen
// at once.
func TestModelControl_OfOneThatEnds(t *testing.T) {
	h := open(t, 1, false).Hosts()[0]
	if err := h.StartModel("a"); err != nil {
		t.Fatal(err)
	}
	if err := h.ModelControl(t.Context(), "a", []byte(`{"end":true}`)); err == nil {
		t.Error("nobody answered, and that is no error")
	}
	if p := h.Model("a"); p.Running() {
		t.Error("it runs, as far as is known")
	} else if p.ExitCode() != endCode {
		t.Errorf("exit code %d: %s", p.ExitCode(), p.Tail())
	}
}

func TestOpen_Refuses(t *testing.T) {
	dir := t.TempDir()
	for _, o := range []Options{
		{Hosts: 0, Dir: dir, Hanode: "x"},
		{Hosts: 65, Dir: dir, Hanode: "x"},
		{Hosts: 2, Voters: 3, Dir: dir, Hanode: "x"},
		{Hosts: 1, Dir: ".", Hanode: "x"},
		{Hosts: 1, Dir: filepath.Join(dir, "none"), Hanode: "x"},
		{Hosts: 1, Dir: dir},
		{Hosts: 1, Dir: dir, Hanode: "x", Groups: []string{"a"}},
		{Hosts: 1, Dir: dir, Hanode: "x", Groups: []string{"a", "a"}, Model: []string{"m"}},
		{Hosts: 1, Dir: dir, Hanode: "x", DiskMiB: 1},
	} {
		if _, err := Open(t.Context(), o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}

// dial connects from a namespace.
func dial(t *testing.T, from *namespace, network, address string) (conn net.Conn) {
	t.Helper()
	wait.Until(t, 10*time.Second, func() error {
		return from.in(func() (err error) {
			conn, err = net.DialTimeout(network, address, time.Second)
			return err
		})
	})
	t.Cleanup(func() { conn.Close() })
	return conn
}

// ping sends a byte and waits for its echo.
func ping(t *testing.T, conn net.Conn) time.Duration {
	t.Helper()
	began := time.Now()
	if _, err := conn.Write([]byte("p")); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(began.Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return time.Since(began)
}
