// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"context"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/node"
	"github.com/hastate/hastate/testcluster/chaos/control"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// env is an environment.
type env map[string]string

func (e env) lookup(name string) (string, bool) {
	v, ok := e[name]
	return v, ok
}

func install(t *testing.T, cfg *node.Config, e env) *Injector {
	t.Helper()
	cfg.NodeID = "n1"
	in, err := Install(cfg, e.lookup)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	})
	return in
}

func TestInstall_Nothing(t *testing.T) {
	var cfg node.Config
	install(t, &cfg, nil)
	if f := cfg.Faults; cfg.Clock != nil || f.Network != nil || f.Log != nil || f.Wall != nil || f.Entry != nil || f.OnLease != nil || f.WatchdogOff {
		t.Errorf("%+v", cfg)
	}
}

func TestInstall_ClockAndWatchdog(t *testing.T) {
	var cfg node.Config
	install(t, &cfg, env{EnvRate: "1.5", EnvWatchdogOff: "1"})
	if !cfg.Faults.WatchdogOff {
		t.Error("the watchdog is on")
	}
	if s, ok := cfg.Clock.(clock.Scaled); !ok || s.Rate != 1.5 || s.From == 0 {
		t.Errorf("clock %+v", cfg.Clock)
	}
}

func TestInstall_BadEnvironment(t *testing.T) {
	dir := t.TempDir()
	for _, e := range []env{
		{EnvRate: "fast"},
		{EnvRate: "0"},
		{EnvRate: "NaN"},
		{EnvRate: "-1"},
		{EnvWatchdogOff: "yes"},
		{EnvSocket: filepath.Join(dir, "no", "s")},
		{EnvLeases: filepath.Join(dir, "no", "l")},
		{EnvLeases: filepath.Join(dir, "l"), EnvSocket: filepath.Join(dir, "no", "s")},
	} {
		if _, err := Install(&node.Config{NodeID: "n1"}, e.lookup); err == nil || !slices.ContainsFunc(slices.Collect(maps.Keys(e)), func(k string) bool { return strings.Contains(err.Error(), k) }) {
			t.Errorf("%v: %v", e, err)
		}
	}
}

// socket installs faults and returns how to set them from outside.
func socket(t *testing.T) (*node.Config, func(State) error) {
	t.Helper()
	var cfg node.Config
	path := filepath.Join(t.TempDir(), "s")
	install(t, &cfg, env{EnvSocket: path})
	return &cfg, func(s State) error { return control.Send(t.Context(), path, s) }
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestState_BadInput(t *testing.T) {
	cfg, set := socket(t)
	ok(t, set(State{WallOffsetMS: 3_600_000}))
	for want, s := range map[string]State{
		"wall_offset_ms": {WallOffsetMS: 1 << 60},
		"another node":   {Links: map[string]Link{"n1": {Cut: true}}},
		"delay_ms":       {Links: map[string]Link{"n2": {DelayMS: -1}}},
		"jitter_ms":      {Links: map[string]Link{"n2": {JitterMS: 1 << 40}}},
		"loss":           {Links: map[string]Link{"n2": {Loss: 1.5}}},
		"reset":          {StallLog: true, Links: map[string]Link{"n2": {Reset: -0.5}}},
	} {
		if err := set(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", s, err)
		}
	}
	ok(t, cfg.Faults.Log.Before("STORE")) // what was refused is not in part set
	if d := time.Until(cfg.Faults.Wall()); d < 59*time.Minute {
		t.Errorf("the wall clock is %v ahead", d)
	}
}

func TestState_Wall(t *testing.T) {
	cfg, set := socket(t)
	for _, offset := range []time.Duration{0, time.Hour, -time.Hour} {
		ok(t, set(State{WallOffsetMS: offset.Milliseconds()}))
		before := time.Now().Add(offset)
		got := cfg.Faults.Wall()
		if got.Before(before) || got.After(time.Now().Add(offset)) {
			t.Errorf("offset %v: %v", offset, time.Until(got))
		}
	}
}

func TestState_StallLog(t *testing.T) {
	cfg, set := socket(t)
	ok(t, cfg.Faults.Log.Before("STORE"))
	ok(t, set(State{StallLog: true}))
	ok(t, set(State{StallLog: true, WallOffsetMS: 1})) // the same stall goes on
	done := make(chan error, 1)
	go func() { done <- cfg.Faults.Log.Before("STORE") }()
	hung, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	select {
	case <-done:
		t.Fatal("it did not stall")
	case <-hung.Done():
	}
	ok(t, set(State{}))
	ok(t, <-done)
	ok(t, cfg.Faults.Log.Before("STORE"))
}

func TestState_Links(t *testing.T) {
	cfg, set := socket(t)
	hook := cfg.Faults.Network
	call := func(to string, patience time.Duration) codes.Code {
		ctx := t.Context()
		if patience > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, patience)
			defer cancel()
		}
		if to == "n2" {
			return status.Code(hook.Before(ctx, "n1", "n2", "vote"))
		}
		return status.Code(hook.Before(ctx, "n1", "n3", "vote"))
	}
	check := func(what, to string, patience time.Duration, want codes.Code) {
		t.Helper()
		if got := call(to, patience); got != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	link := func(l Link) { t.Helper(); ok(t, set(State{Links: map[string]Link{"n2": l}})) }
	const short, long = 30 * time.Millisecond, time.Minute

	check("whole", "n2", long, codes.OK)
	link(Link{Cut: true})
	check("cut", "n2", short, codes.DeadlineExceeded)
	check("another link", "n3", long, codes.OK)
	held := make(chan codes.Code, 1)
	go func() { held <- call("n2", 0) }()
	link(Link{})
	if got := <-held; got != codes.OK {
		t.Errorf("after the cut: %v", got)
	}
	link(Link{Loss: 1})
	check("lost", "n2", short, codes.DeadlineExceeded)
	go func() { held <- call("n2", 0) }()
	link(Link{})
	if got := <-held; got != codes.OK {
		t.Errorf("lost in a stream, and sent again: %v", got)
	}
	link(Link{Reset: 1})
	check("reset", "n2", long, codes.Unavailable)
	link(Link{DelayMS: 60_000})
	check("delayed for long", "n2", short, codes.DeadlineExceeded)
	link(Link{DelayMS: 20, JitterMS: 20})
	began := time.Now()
	check("delayed", "n2", long, codes.OK)
	if d := time.Since(began); d < 20*time.Millisecond {
		t.Errorf("delayed by %v", d)
	}
	link(Link{Loss: 0.5})
	got := map[codes.Code]int{}
	for range 40 {
		got[call("n2", 2*time.Millisecond)]++
	}
	if got[codes.OK] == 0 || got[codes.DeadlineExceeded] == 0 {
		t.Errorf("half of all are lost: %v", got)
	}
	ok(t, set(State{}))
	check("whole again", "n2", long, codes.OK)
	if err := hook.After(t.Context(), "n1", "n2", "vote", fs.ErrClosed); err != fs.ErrClosed { //nolint:errorlint // it must be the very error
		t.Errorf("an answer became %v", err)
	}
}
