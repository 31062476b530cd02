// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"go.uber.org/goleak"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
)

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"hactl": main}) }

// The scripts run hactl as a process of its own against a fake node in this one.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			addr := newFakeNode().serve(deferrer{env})
			leaderless := newFakeNode()
			leaderless.leaderless = true
			gone, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			env.Setenv("NODE", addr)
			env.Setenv("LEADERLESS", leaderless.serve(deferrer{env}))
			env.Setenv("NOBODY", gone.Addr().String())
			env.Setenv("HACTL_ENDPOINTS", addr)
			env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
			// A process with the race detector otherwise waits a second at its end.
			env.Setenv("GORACE", "atexit_sleep_ms=0")
			return gone.Close()
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){"code": checkCode},
	})
}

// deferrer lets the fake node end with a script.
type deferrer struct{ env *testscript.Env }

func (d deferrer) Cleanup(f func())  { d.env.Defer(f) }
func (d deferrer) Fatal(args ...any) { d.env.T().Fatal(args...) }

// checkCode runs a command and compares its exit code: code 2 hactl foo. Standard
// output and error are written to the files stdout.txt and stderr.txt.
func checkCode(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	path, err := exec.LookPath(args[1])
	if err != nil {
		path = filepath.Join(strings.Split(ts.Getenv("PATH"), string(os.PathListSeparator))[0], args[1])
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(path, args[2:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = ts.MkAbs("."), &stdout, &stderr
	for _, name := range []string{"HOME", "HACTL_ENDPOINTS", "PATH", "XDG_CONFIG_HOME", "GORACE"} {
		if v := ts.Getenv(name); v != "" {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	got := 0
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("run %v: %v", args[1:], err)
		}
		got = exit.ExitCode()
	}
	ts.Check(os.WriteFile(ts.MkAbs("stdout.txt"), stdout.Bytes(), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs("stderr.txt"), stderr.Bytes(), 0o600))
	if got != want {
		ts.Fatalf("%v exited with %d, want %d\n%s%s", args[1:], got, want, stdout.String(), stderr.String())
	}
	// Every error is two lines: what happened, and what to do next.
	lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
	if want != 0 && (len(lines) < 2 || !strings.HasPrefix(lines[len(lines)-2], "error: ") || !strings.HasPrefix(lines[len(lines)-1], "next: ")) {
		ts.Fatalf("%v: stderr is not an error and what to do next:\n%s", args[1:], stderr.String())
	}
}

// runHere runs hactl in this process, without a terminal.
func runHere(t *testing.T, stdin io.Reader, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	t.Setenv("HOME", t.TempDir())
	var out, errs bytes.Buffer
	code = run(t.Context(), args, stdin, &out, &errs)
	return code, out.String(), errs.String()
}

func TestRun_LeavesNothingBehind(t *testing.T) {
	addr := newFakeNode().serve(t)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	for _, args := range [][]string{
		{"status"},
		{"watch", "--count", "2"},
		{"session", "put", "a", "x"},
		{"session", "watch", "--count", "1"},
		{"primary", "missing"},
	} {
		_, _, _ = runHere(t, strings.NewReader(""), append(args, "--endpoints", addr)...)
	}
}

func TestExitCode(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{usagef("x"), 2},
		{adviceError{usagef("x"), "y"}, 2},
		{fmt.Errorf("a: %w", hastate.ErrNoLeader), 3},
		{&hastate.NotLeaderError{}, 3},
		{&hastate.NotLeaderError{LeaderID: "n1", LeaderAddress: "a:1"}, 3},
		{fmt.Errorf("a: %w", &hastate.OutcomeUnknownError{Reason: "r"}), 4},
		{errors.Join(hastate.ErrNoLeader, hastate.ErrOutcomeUnknown), 4},
		{client.ErrNoPrimary, 1},
		{hastate.ErrFenced, 1},
		{errors.New("x"), 1},
	} {
		if got := exitCode(tc.err); got != tc.want {
			t.Errorf("exitCode(%v) = %d, want %d", tc.err, got, tc.want)
		}
	}
}

// Every command says what it does, and every error brings advice of one line.
func TestCommands_Documented(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" {
			t.Errorf("%s has no short text", c.CommandPath())
		}
		if !c.Runnable() {
			t.Errorf("%s does nothing", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk((&app{}).root())
	for _, err := range []error{
		hastate.ErrNotLeader, hastate.ErrNoLeader, hastate.ErrFenced, hastate.ErrOutcomeUnknown, hastate.ErrCompacted, hastate.ErrLimit,
		hastate.ErrConflict, hastate.ErrClientExpired, hastate.ErrNotFound, hastate.ErrAlreadyExists, hastate.ErrInvalid, hastate.ErrClosed,
		hastate.ErrPrecondition, client.ErrNoPrimary, errors.New("two\nlines"),
	} {
		var buf bytes.Buffer
		report(&buf, "hactl x", err)
		if strings.Count(buf.String(), "\n") != 2 || !strings.HasPrefix(buf.String(), "error: ") {
			t.Errorf("report of %v is %q", err, buf.String())
		}
	}
}

func TestParseAt(t *testing.T) {
	now := time.Date(2026, 3, 1, 2, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		at   string
		want time.Time
		bad  bool
	}{
		{"", now, false},
		{"90s", now.Add(90 * time.Second), false},
		{"2026-03-01T03:00:00Z", now.Add(time.Hour), false},
		{"2026-03-01T01:00:00Z", now, true},
		{"-5s", now, true},
		{"tomorrow", now, true},
	} {
		got, err := parseAt(tc.at, now)
		if !got.Equal(tc.want) || (err != nil) != tc.bad {
			t.Errorf("parseAt(%q) = %v, %v", tc.at, got, err)
		}
	}
}
