// SPDX-License-Identifier: Apache-2.0

//go:build process

package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hastate/hastate/internal/demo"
	"github.com/hastate/hastate/internal/proc"
)

// scene is one run of the demo: where it keeps its things and how its processes
// are known.
type scene struct {
	t   *testing.T
	dir string
	env string
}

func newScene(t *testing.T) *scene {
	t.Helper()
	dir := t.TempDir()
	s := &scene{t: t, dir: dir, env: "HASTATE_DEMO_TEST=" + dir}
	t.Cleanup(s.clean)
	return s
}

// clean fails the test if the demo has left something behind.
func (s *scene) clean() {
	if left := marked(s.env); len(left) > 0 {
		s.t.Errorf("processes were left running:\n%s", strings.Join(left, "\n"))
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		s.t.Error(err)
	}
	for _, e := range entries {
		s.t.Errorf("%s was left in the scratch folder", e.Name())
	}
}

func (s *scene) start(args ...string) *proc.Process {
	s.t.Helper()
	return start(s.t, proc.Spec{Name: "demo", Path: hanodePath, Args: append([]string{"demo", "--dir", s.dir}, args...), Env: []string{s.env}})
}

func TestDemo(t *testing.T) {
	for _, fault := range demo.Faults() {
		t.Run(fault, func(t *testing.T) {
			s := newScene(t)
			r := runProgram(t, []string{s.env}, hanodePath, "demo", "--dir", s.dir, "--json", "--fault", fault)
			if r.code != 0 || r.stderr != "" {
				t.Fatalf("%v", r)
			}
			var got demo.Result
			dec := json.NewDecoder(strings.NewReader(r.stdout))
			dec.DisallowUnknownFields()
			if err := dec.Decode(&got); err != nil || dec.More() {
				t.Fatalf("%v: %v", err, r)
			}
			t.Log(strings.TrimSpace(r.stdout))
			if got.Fault != fault || got.Lost != 0 || got.Repeated != 0 || got.EpochBefore == 0 || got.ClientGapMillis <= 0 ||
				got.DetectedMillis < 0 || got.GrantedMillis < got.DetectedMillis || got.ServingMillis < got.GrantedMillis {
				t.Errorf("%+v", got)
			}
			if moves := fault != "kill-leader"; moves != (got.EpochAfter > got.EpochBefore) {
				t.Errorf("epoch %d, then %d", got.EpochBefore, got.EpochAfter)
			}
			for _, field := range []string{"fault", "detected_ms", "granted_ms", "serving_ms", "client_gap_ms", "lost", "repeated", "epoch_before", "epoch_after"} {
				if !strings.Contains(r.stdout, strconv.Quote(field)) {
					t.Errorf("there is no %s", field)
				}
			}
		})
	}
}

// TestDemo_Interrupted ends the demo at several points of its way.
func TestDemo_Interrupted(t *testing.T) {
	for name, text := range map[string]string{"at its start": "starting", "in mid-stream": "streaming"} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			p := s.start("--fault", "kill-host")
			logs(t, p.Tail, text)
			send(t, p, syscall.SIGINT)
			if code := ended(t, p); code != exitFailed || !strings.Contains(p.Tail(), "interrupted") || strings.Contains(p.Tail(), "context") {
				t.Errorf("exit code %d:\n%s", code, p.Tail())
			}
		})
	}
	t.Run("killed", func(t *testing.T) {
		s := newScene(t)
		p := s.start()
		logs(t, p.Tail, "streaming")
		if len(marked(s.env)) < 7 {
			t.Errorf("running: %v", marked(s.env))
		}
		kill(t, p)
		// Nobody is left who could remove the folder, but no process outlives it.
		eventually(t, "the end of all", func() error {
			if left := marked(s.env); len(left) > 0 {
				return fmt.Errorf("%v", left)
			}
			return nil
		})
		if err := errors.Join(os.RemoveAll(s.dir), os.Mkdir(s.dir, 0o700)); err != nil {
			t.Fatal(err)
		}
	})
}

func TestDemo_Refuses(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	port := taken.Addr().(*net.TCPAddr).Port
	for name, test := range map[string]struct {
		args  []string
		texts []string
	}{
		"port in use":      {[]string{"--base-port", strconv.Itoa(min(port, demo.MaxBasePort))}, []string{"is not free", "choose another --base-port"}},
		"no model server":  {[]string{"--textserver", "/no/such/server"}, []string{"/no/such/server", "check that the program exists"}},
		"no hanode":        {[]string{"--hanode", "/no/such/hanode"}, []string{"/no/such/hanode", "check that the program exists"}},
		"no scratch place": {[]string{"--dir", "/no/such/folder"}, []string{"/no/such/folder", "scratch folder"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			args := append([]string{"demo", "--dir", s.dir, "--json"}, test.args...)
			r := runProgram(t, []string{s.env}, hanodePath, args...)
			last := r.stderr[strings.LastIndex(strings.TrimSuffix(r.stderr, "\n"), "\n")+1:]
			if r.code != exitFailed || r.stdout != "" || !strings.HasPrefix(last, "hanode: ") {
				t.Errorf("%v", r)
			}
			for _, text := range test.texts {
				if !strings.Contains(last, text) {
					t.Errorf("%q is not in it: %s", text, last)
				}
			}
		})
	}
	t.Run("a program that ends", func(t *testing.T) {
		s := newScene(t)
		r := runProgram(t, []string{s.env}, hanodePath, "demo", "--dir", s.dir, "--hanode", "/bin/true")
		if r.code != exitFailed || !strings.Contains(r.stderr, "ended by itself with exit code 0") {
			t.Errorf("%v", r)
		}
	})
}

// TestDemo_Keep runs what the demo says that one may try.
func TestDemo_Keep(t *testing.T) {
	s := newScene(t)
	p := s.start("--fault", "kill-model", "--keep")
	logs(t, p.Tail, "Ctrl-C ends it")
	logs(t, p.Tail, "switchover\n")
	_, hints, _ := strings.Cut(p.Tail(), "Ctrl-C ends it")
	var commands []string
	for line := range strings.Lines(hints) {
		if strings.HasPrefix(line, "  ") {
			commands = append(commands, strings.TrimSpace(line))
		}
	}
	if len(commands) < 4 || !strings.Contains(hints, filepath.Dir(hanodePath)) {
		t.Fatalf("the hints are:\n%s", hints)
	}
	// As in one shell: the first line sets what the others need.
	shell := exec.CommandContext(t.Context(), "/bin/sh", "-e", "-c", strings.Join(commands, "\n"))
	shell.WaitDelay = time.Second
	if out, err := shell.CombinedOutput(); err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
	send(t, p, syscall.SIGINT)
	if code := ended(t, p); code != 0 {
		t.Errorf("exit code %d:\n%s", code, p.Tail())
	}
}
