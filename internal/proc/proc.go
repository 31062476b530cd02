// SPDX-License-Identifier: Apache-2.0

// Package proc starts and ends real processes for the demo, the soak and the
// process tests: only processes that it started itself, by pid, and none
// outlives its starter.
package proc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// Spec says what to start.
type Spec struct {
	// Name is for people.
	Name string
	// Path of the program, and its arguments without the name.
	Path string
	Args []string
	Env  []string
	// Output receives standard output and error besides the kept tail; may be nil.
	Output io.Writer
}

// Process is a started process.
type Process struct {
	Spec Spec
	cmd  *exec.Cmd
	tail *tail
	// exited is closed when the process has ended and err is set.
	exited chan struct{}
	err    error
}

// Start starts a process in a group of its own, so that a Ctrl-C at the terminal
// reaches only the starter. The kernel kills it if the starter dies.
func Start(spec Spec) (*Process, error) {
	cmd := exec.Command(spec.Path, spec.Args...) //nolint:gosec // the caller chooses the program
	cmd.Env = append(os.Environ(), spec.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p := &Process{Spec: spec, cmd: cmd, tail: &tail{max: 16 << 10}, exited: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.tail, p.tail
	if spec.Output != nil {
		w := io.MultiWriter(p.tail, spec.Output)
		cmd.Stdout, cmd.Stderr = w, w
	}
	// A grandchild that keeps the pipe open must not keep Wait waiting.
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w: check that the program exists and may be run", spec.Name, err)
	}
	go func() {
		defer close(p.exited)
		p.err = cmd.Wait()
	}()
	return p, nil
}

// Pid is the process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Exited is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Running reports whether the process has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// Err is how the process ended, nil for exit code 0; only after Exited.
func (p *Process) Err() error {
	<-p.exited
	return p.err
}

// ExitCode is the exit code, -1 if a signal ended it; only after Exited.
func (p *Process) ExitCode() int {
	<-p.exited
	return p.cmd.ProcessState.ExitCode()
}

// Tail is the end of what the process printed.
func (p *Process) Tail() string { return p.tail.String() }

// Signal sends a signal; a process that has ended is no error.
func (p *Process) Signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", p.Spec.Name, err)
	}
	return nil
}

// Kill ends the process at once and waits until it is gone.
func (p *Process) Kill() error {
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.exited
	return nil
}

// Stop asks the process to end, and kills it after timeout.
func (p *Process) Stop(timeout time.Duration) error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-p.exited:
		return nil
	case <-timer.C:
		return errors.Join(fmt.Errorf("%s did not end within %v of SIGTERM", p.Spec.Name, timeout), p.Kill())
	}
}

// Ports finds free TCP ports on loopback. Another process may take one before it
// is used; the user of the port then says so.
func Ports(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		// Held until all are found, so that they differ.
		defer func() { _ = l.Close() }()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// tail keeps the last bytes that were written to it.
type tail struct {
	max int
	// mu guards buf.
	mu  sync.Mutex
	buf bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(p)
	if extra := t.buf.Len() - t.max; extra > 0 {
		t.buf.Next(extra)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}
