// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const (
	// maxHookOutput is how much of a hook's standard error is kept, from its end.
	maxHookOutput = 4 << 10
	// hookPipes is how long the output of a hook that has ended is waited for: a
	// process that it started may hold the pipe for ever.
	hookPipes = 100 * time.Millisecond
)

// The exit codes of the Open Cluster Framework that hooks use.
const (
	ocfOK            = 0
	ocfNotRunning    = 7
	ocfRunningMaster = 8
	ocfFailedMaster  = 9
)

// HookError is a hook that failed. It matches hastate.ErrPrecondition.
type HookError struct {
	// Action is "promote" or "demote".
	Action string
	// Code is the exit code, -1 if a signal ended it.
	Code int
	// Meaning is what the code says.
	Meaning string
	// Output is the end of its standard error, at most 4 KiB.
	Output string
}

func (e *HookError) Error() string {
	s := fmt.Sprintf("%s hook failed: exit code %d (%s)", e.Action, e.Code, e.Meaning)
	if e.Output != "" {
		s += ": " + e.Output
	}
	return s
}

// Is matches hastate.ErrPrecondition.
func (e *HookError) Is(target error) bool { return target == hastate.ErrPrecondition }

// order is what a hook is told, as JSON on its standard input. The variables of
// its environment say the same.
type order struct {
	Action     string      `json:"action"`
	Group      string      `json:"group"`
	Epoch      uint64      `json:"epoch"`
	LeaseMS    int64       `json:"lease_ms,omitempty"`
	Mode       string      `json:"mode,omitempty"`
	DeadlineMS int64       `json:"deadline_ms,omitempty"`
	Model      *orderModel `json:"model,omitempty"`
}

type orderModel struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Digest  string `json:"digest"`
}

func orderOfPromotion(p Promotion) order {
	o := order{Action: "promote", Group: p.Group, Epoch: p.Epoch, LeaseMS: p.Lease.Milliseconds()}
	if p.Model != nil {
		o.Model = &orderModel{Name: p.Model.GetName(), Version: p.Model.GetVersion(), Digest: p.Model.GetDigest()}
	}
	return o
}

func orderOfDemotion(d Demotion) order {
	mode := "abort"
	if d.Mode == pb.DemoteMode_DEMOTE_MODE_DRAIN {
		mode = "drain"
	}
	return order{Action: "demote", Group: d.Group, Epoch: d.Epoch, Mode: mode, DeadlineMS: d.Deadline.Milliseconds()}
}

func (o order) environ() []string {
	model := o.Model
	if model == nil {
		model = &orderModel{}
	}
	return append(os.Environ(),
		"HANODE_ACTION="+o.Action,
		"HANODE_GROUP="+o.Group,
		"HANODE_EPOCH="+strconv.FormatUint(o.Epoch, 10),
		"HANODE_LEASE_MS="+strconv.FormatInt(o.LeaseMS, 10),
		"HANODE_MODE="+o.Mode,
		"HANODE_DEADLINE_MS="+strconv.FormatInt(o.DeadlineMS, 10),
		"HANODE_MODEL_NAME="+model.Name,
		"HANODE_MODEL_VERSION="+model.Version,
		"HANODE_MODEL_DIGEST="+model.Digest,
	)
}

// runHook runs a command in a process group of its own and kills the group when
// ctx ends; that is an unknown outcome. The command gets the order as JSON on
// its standard input and as HANODE_ variables. Exit code 0 is success; so is 8
// (already the primary) for a promotion and 7 (not running) for a demotion.
// What a hook leaves running in the background lives on.
func runHook(ctx context.Context, argv []string, o order) error {
	input, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("encode order of hook: %w", err)
	}
	output := &tail{limit: maxHookOutput}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...) //nolint:gosec // the operator configured it
	cmd.Env, cmd.Stdin, cmd.Stderr = o.environ(), bytes.NewReader(append(input, '\n')), output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = hookPipes
	err = cmd.Run()
	if cmd.ProcessState == nil {
		return fmt.Errorf("%w: start %s hook: %w", hastate.ErrPrecondition, o.Action, err)
	}
	code := cmd.ProcessState.ExitCode()
	if ctx.Err() != nil && code != ocfOK {
		return &hastate.OutcomeUnknownError{Reason: fmt.Sprintf("%s hook was killed at its deadline: %s", o.Action, output)}
	}
	if err == nil || (errors.Is(err, exec.ErrWaitDelay) && code == ocfOK) {
		return nil
	}
	return hookResult(o.Action, code, output.String())
}

func hookResult(action string, code int, output string) error {
	meaning := "failed"
	switch {
	case code == ocfRunningMaster && action == "promote", code == ocfNotRunning && action == "demote":
		return nil
	case code == ocfNotRunning:
		meaning = "the server is not running"
	case code == ocfRunningMaster:
		meaning = "the server still is the primary"
	case code == ocfFailedMaster:
		meaning = "the server failed as the primary"
	case code < 0:
		meaning = "ended by a signal"
	}
	return &HookError{Action: action, Code: code, Meaning: meaning, Output: output}
}

// tail keeps the last limit bytes that are written to it. Only the goroutine
// that copies a hook's output writes, and cmd.Run waits for it.
type tail struct {
	limit int
	buf   []byte
}

func (t *tail) Write(p []byte) (int, error) {
	n := len(p)
	if n >= t.limit {
		t.buf = append(t.buf[:0], p[n-t.limit:]...)
		return n, nil
	}
	if over := len(t.buf) + n - t.limit; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	t.buf = append(t.buf, p...)
	return n, nil
}

func (t *tail) String() string {
	return strings.ToValidUTF8(strings.TrimSpace(string(t.buf)), "")
}
