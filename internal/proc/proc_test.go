// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hastate/hastate/internal/wait"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestProcess_Stop(t *testing.T) {
	p, err := Start(Spec{Name: "sh", Path: "/bin/sh", Args: []string{"-c", `trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.01; done`}})
	if err != nil {
		t.Fatal(err)
	}
	wait.Until(t, 10*time.Second, func() error {
		if !strings.Contains(p.Tail(), "up") {
			return errNotYet
		}
		return nil
	})
	if err := p.Stop(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	if p.ExitCode() != 3 || !strings.Contains(p.Tail(), "bye") || p.Running() {
		t.Fatalf("code %d, tail %q", p.ExitCode(), p.Tail())
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatalf("signal after the end: %v", err)
	}
}

func TestProcess_KillsWhatDoesNotObey(t *testing.T) {
	p, err := Start(Spec{Name: "sh", Path: "/bin/sh", Args: []string{"-c", `trap '' TERM; echo up; while :; do sleep 0.01; done`}})
	if err != nil {
		t.Fatal(err)
	}
	wait.Until(t, 10*time.Second, func() error {
		if !strings.Contains(p.Tail(), "up") {
			return errNotYet
		}
		return nil
	})
	if err := p.Stop(50 * time.Millisecond); err == nil {
		t.Fatal("no error although it had to be killed")
	}
	if p.Running() || p.ExitCode() != -1 {
		t.Fatalf("running %v, code %d", p.Running(), p.ExitCode())
	}
}

func TestStart_MissingProgram(t *testing.T) {
	if _, err := Start(Spec{Name: "ghost", Path: "/nonexistent/ghost"}); err == nil || !strings.Contains(err.Error(), "start ghost") {
		t.Fatalf("got %v", err)
	}
}

func TestPorts(t *testing.T) {
	ports, err := Ports(8)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for _, p := range ports {
		if p == 0 || seen[p] {
			t.Fatalf("ports %v", ports)
		}
		seen[p] = true
	}
}

type notYet struct{}

func (notYet) Error() string { return "not yet" }

var errNotYet = notYet{}
