// SPDX-License-Identifier: Apache-2.0

package instance_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/instance"
	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// healthServer answers with a code that a test changes; 0 hangs.
type healthServer struct {
	code atomic.Int64
	addr string
	stop func()
}

func startHealth(t *testing.T, addr string, code int) *healthServer {
	t.Helper()
	h := &healthServer{}
	h.code.Store(int64(code))
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch code := h.code.Load(); code {
		case 0:
			<-r.Context().Done()
		default:
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(int(code))
		}
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(lis)
	}()
	h.addr = lis.Addr().String()
	h.stop = func() {
		_ = srv.Close()
		<-done
	}
	t.Cleanup(h.stop)
	return h
}

func (h *healthServer) url() string { return "http://" + h.addr + "/health" }

func TestHTTP_Watch(t *testing.T) {
	t.Run("life of a server", func(t *testing.T) {
		h := startHealth(t, "127.0.0.1:0", 503)
		w := startWatch(t, open(t, instance.Config{Kind: "http", Target: h.url()}))
		w.until(t, "loading", isState(loading))
		h.code.Store(200)
		w.until(t, "ready", isState(ready))
		for _, code := range []int64{500, 503, 302, 404} {
			h.code.Store(code)
			w.until(t, fmt.Sprintf("down by %d", code), func(st instance.Status) bool {
				return isState(down)(st) && strings.Contains(st.Reason, strconv.Itoa(int(code)))
			})
			h.code.Store(200)
			w.until(t, "ready", isState(ready))
		}
		h.stop()
		w.until(t, "gone", isGone)
		again := startHealth(t, h.addr, 503)
		w.until(t, "loading again", isState(loading))
		again.code.Store(200)
		w.until(t, "ready again", isState(ready))
	})
	t.Run("slow looks", func(t *testing.T) {
		h := startHealth(t, "127.0.0.1:0", 200)
		w := startWatch(t, open(t, instance.Config{Kind: "http", Target: h.url(), Timeout: 50 * time.Millisecond}))
		w.until(t, "ready", isState(ready))
		h.code.Store(0)
		w.until(t, "down", isState(down))
		var suspicious int
		for _, st := range w.statuses() {
			if st.State == ready && strings.Contains(st.Reason, "of 3 looks failed") {
				suspicious++
			}
		}
		if suspicious < 2 {
			t.Fatalf("%d reports with a reason before DOWN, want 2 at least", suspicious)
		}
	})
	t.Run("hung from the start", func(t *testing.T) {
		w := startWatch(t, open(t, instance.Config{Kind: "http", Target: "http://" + deaf(t), Timeout: 50 * time.Millisecond}))
		w.until(t, "down by count", func(st instance.Status) bool { return isState(down)(st) && st.Reason != "has not answered yet" })
	})
	t.Run("killed between two looks", func(t *testing.T) {
		h := startHealth(t, "127.0.0.1:0", 200)
		// Only the kept connection can wake the look before the test gives up.
		w := startWatch(t, open(t, instance.Config{Kind: "http", Target: h.url(), Interval: time.Minute}))
		w.until(t, "ready", isState(ready))
		h.stop()
		begin := time.Now()
		w.until(t, "gone", isGone)
		t.Logf("gone after %v", time.Since(begin))
	})
}

func TestTCP_Watch(t *testing.T) {
	h := startHealth(t, "127.0.0.1:0", 500)
	w := startWatch(t, open(t, instance.Config{Kind: "tcp", Target: h.addr}))
	w.until(t, "ready", isState(ready))
	h.stop()
	w.until(t, "gone", isGone)
}

func TestProbed_WithoutHooks(t *testing.T) {
	h := startHealth(t, "127.0.0.1:0", 503)
	in := open(t, instance.Config{Kind: "http", Target: h.url()})
	ctx := within(t, patience)
	_, err := in.Promote(ctx, instance.Promotion{Epoch: 5})
	wantIs(t, err, hastate.ErrPrecondition)
	h.code.Store(200)
	for range 2 { // the same epoch again is a success
		if _, err = in.Promote(ctx, instance.Promotion{Epoch: 5}); err != nil {
			t.Fatal(err)
		}
	}
	w := startWatch(t, in)
	w.until(t, "primary", func(st instance.Status) bool { return st.Epoch == 5 && st.Role == pb.Role_ROLE_PRIMARY })
	_, err = in.Promote(ctx, instance.Promotion{Epoch: 4})
	wantFenced(t, err, 5)
	wantFenced(t, in.Demote(ctx, instance.Demotion{Epoch: 4}), 5)

	wantIs(t, in.Demote(ctx, instance.Demotion{Epoch: 5}), hastate.ErrPrecondition)
	_, err = in.Promote(ctx, instance.Promotion{Epoch: 5})
	wantFenced(t, err, 5)
	h.stop()
	if err := in.Demote(ctx, instance.Demotion{Epoch: 5}); err != nil {
		t.Fatal(err)
	}
	w.until(t, "gone standby", func(st instance.Status) bool { return isGone(st) && st.Role == pb.Role_ROLE_STANDBY })
	wantIs(t, in.Load(ctx, nil), hastate.ErrPrecondition)
	if info, err := in.Info(ctx); err != nil || info.Engine != "http" {
		t.Fatal(info, err)
	}
}

// script writes a shell script and returns its argument vector.
func script(t *testing.T, body string) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hook.sh")
	if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"/bin/sh", path}
}

func TestHooks_Told(t *testing.T) {
	h := startHealth(t, "127.0.0.1:0", 200)
	out := filepath.Join(t.TempDir(), "out")
	hook := script(t, `{ echo "$HANODE_ACTION $HANODE_GROUP $HANODE_EPOCH $HANODE_LEASE_MS $HANODE_MODE $HANODE_DEADLINE_MS $HANODE_MODEL_NAME $HANODE_MODEL_VERSION $HANODE_MODEL_DIGEST"; cat; } > `+out)
	in := open(t, instance.Config{Kind: "tcp", Target: h.addr, Hooks: instance.Hooks{Promote: hook, Demote: hook}})
	told := func() string {
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	model := &pb.ModelRef{Name: "m", Version: "1", Digest: digestA}
	if _, err := in.Promote(context.Background(), instance.Promotion{Group: "g", Epoch: 5, Lease: time.Second, Model: model}); err != nil {
		t.Fatal(err)
	}
	want := "promote g 5 1000  0 m 1 " + digestA + "\n" +
		`{"action":"promote","group":"g","epoch":5,"lease_ms":1000,"model":{"name":"m","version":"1","digest":"` + digestA + `"}}` + "\n"
	if got := told(); got != want {
		t.Fatalf("told %q, want %q", got, want)
	}
	d := instance.Demotion{Epoch: 5, Mode: pb.DemoteMode_DEMOTE_MODE_DRAIN, Deadline: patience}
	if err := in.Demote(context.Background(), d); err != nil {
		t.Fatal(err)
	}
	want = "demote default 5 0 drain 10000   \n" + `{"action":"demote","group":"default","epoch":5,"mode":"drain","deadline_ms":10000}` + "\n"
	if got := told(); got != want {
		t.Fatalf("told %q, want %q", got, want)
	}
}

func TestHooks_ExitCodes(t *testing.T) {
	h := startHealth(t, "127.0.0.1:0", 200)
	for _, tc := range []struct {
		code            int
		promote, demote string // part of the error; empty: success
	}{
		{0, "", ""},
		{1, "exit code 1 (failed): because", "exit code 1 (failed): because"},
		{7, "not running", ""},
		{8, "", "still is the primary"},
		{9, "failed as the primary", "failed as the primary"},
	} {
		t.Run(strconv.Itoa(tc.code), func(t *testing.T) {
			hook := script(t, "echo because >&2; exit "+strconv.Itoa(tc.code))
			in := open(t, instance.Config{Kind: "tcp", Target: h.addr, Hooks: instance.Hooks{Promote: hook, Demote: hook}})
			check := func(err error, want string) {
				t.Helper()
				if want == "" && err != nil {
					t.Fatal(err)
				}
				if want != "" {
					wantIs(t, err, hastate.ErrPrecondition)
					if !strings.Contains(err.Error(), want) {
						t.Fatalf("error is %q, want %q in it", err, want)
					}
				}
			}
			_, err := in.Promote(within(t, patience), instance.Promotion{Epoch: 5})
			check(err, tc.promote)
			check(in.Demote(within(t, patience), instance.Demotion{Epoch: 5}), tc.demote)
		})
	}
}

// reap kills what a failed test left running.
func reap(t *testing.T, pidFile string) {
	t.Helper()
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		b, err := os.ReadFile(pidFile)
		if err != nil {
			return
		}
		for _, s := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(s); err == nil && pid > 1 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})
}

// hangs ignores SIGTERM, starts a child that does too, writes both pids and a
// lot of output, and never ends.
const hangs = `trap '' TERM
sh -c 'trap "" TERM; while :; do sleep 1; done' &
i=0; while [ $i -lt 400 ]; do echo "some words that fill the pipe and the memory $i" >&2; i=$((i+1)); done
echo $$ $! > %s.tmp; mv %s.tmp %s
while :; do sleep 1; done
`

func wantDead(t *testing.T, pidFile string) {
	t.Helper()
	wait.Until(t, patience, func() error {
		b, err := os.ReadFile(pidFile)
		if err != nil {
			return err
		}
		for _, s := range strings.Fields(string(b)) {
			pid, err := strconv.Atoi(s)
			if err != nil {
				return err
			}
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err == nil && !strings.Contains(string(stat), ") Z ") && syscall.Kill(pid, 0) == nil {
				return fmt.Errorf("process %d still runs", pid)
			}
		}
		return nil
	})
}

func TestHooks_Hang(t *testing.T) {
	h := startHealth(t, "127.0.0.1:0", 200)
	t.Run("killed at the deadline", func(t *testing.T) {
		pids := filepath.Join(t.TempDir(), "pids")
		reap(t, pids)
		in := open(t, instance.Config{Kind: "tcp", Target: h.addr, Hooks: instance.Hooks{Demote: script(t, fmt.Sprintf(hangs, pids, pids, pids))}})
		err := in.Demote(context.Background(), instance.Demotion{Epoch: 5, Deadline: 2 * time.Second})
		wantIs(t, err, hastate.ErrOutcomeUnknown)
		if len(err.Error()) > 5<<10 {
			t.Fatalf("error of %d bytes", len(err.Error()))
		}
		wantDead(t, pids)
	})
	t.Run("promotion ended by a demotion", func(t *testing.T) {
		pids := filepath.Join(t.TempDir(), "pids")
		reap(t, pids)
		in := open(t, instance.Config{Kind: "tcp", Target: h.addr, Hooks: instance.Hooks{
			Promote: script(t, fmt.Sprintf(hangs, pids, pids, pids)), Demote: []string{"true"},
		}})
		result := make(chan error, 1)
		go func() {
			_, err := in.Promote(context.Background(), instance.Promotion{Epoch: 5})
			result <- err
		}()
		wait.Until(t, patience, func() error {
			_, err := os.Stat(pids)
			return err
		})
		if err := in.Demote(within(t, patience), instance.Demotion{Epoch: 5}); err != nil {
			t.Fatal(err)
		}
		wantFenced(t, <-result, 5)
		wantDead(t, pids)
	})
	t.Run("a daemon that holds the output", func(t *testing.T) {
		pids := filepath.Join(t.TempDir(), "pids")
		reap(t, pids)
		in := open(t, instance.Config{Kind: "tcp", Target: h.addr, Hooks: instance.Hooks{
			Promote: script(t, "sleep 1000 & echo $! > "+pids),
		}})
		if _, err := in.Promote(within(t, patience), instance.Promotion{Epoch: 5}); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(pids)
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatalf("the daemon did not live on: %v", err)
		}
	})
	t.Run("unhealthy after the hook", func(t *testing.T) {
		in := open(t, instance.Config{Kind: "tcp", Target: freePort(t), Hooks: instance.Hooks{Promote: []string{"true"}}})
		_, err := in.Promote(within(t, patience), instance.Promotion{Epoch: 5})
		wantIs(t, err, hastate.ErrPrecondition)
	})
}
