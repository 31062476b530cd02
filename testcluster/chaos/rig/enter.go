// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// roleEnv says to a program that Enter started again what it is.
const (
	roleEnv    = "HASTATE_RIG_ROLE"
	roleInside = "inside"
	roleGuard  = "guard"
)

// Again reports whether this process was started by Enter, or is a rig's guard:
// Enter has to be called before anything else is done. After Enter it is false.
func Again() bool { return os.Getenv(roleEnv) != "" }

// inside is set by Enter at the start of the program, before anything reads it.
var inside bool

// Enter moves the program into network and mount namespaces of its own, by
// starting it again with the same arguments. A main function calls it first of
// all:
//
//	code, entered, err := rig.Enter(os.Args[1:])
//	if err != nil || !entered {
//		... say err, exit with code
//	}
//
// With entered true the program is inside and goes on. With entered false it has
// already run, inside, and code is its exit code (128 and the number of the
// signal that ended it). Interrupts and terminations are passed on to it, and it
// is killed if the outer program dies.
//
// Everything made inside vanishes with the last process inside. A program that is
// not run by root gets ErrUnsupported and goes on outside.
func Enter(args []string) (code int, entered bool, err error) {
	role := os.Getenv(roleEnv)
	// What is started from here must not take itself for one of these.
	if err := os.Unsetenv(roleEnv); err != nil {
		return 1, false, fmt.Errorf("clear %s: %w", roleEnv, err)
	}
	switch {
	case role == roleGuard:
		return guardMain(os.Stdin), false, nil
	case role == roleInside:
		inside = true
		return 0, true, loopbackUp()
	case os.Geteuid() != 0:
		return 1, false, fmt.Errorf("%w: namespaces can only be made by root", ErrUnsupported)
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), roleEnv+"="+roleInside)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		// Unshare, unlike clone, also makes all mounts private.
		Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		Pdeathsig:    syscall.SIGKILL,
		// A Ctrl-C reaches it once, through here.
		Setpgid: true,
	}
	return runInside(cmd)
}

func runInside(cmd *exec.Cmd) (code int, entered bool, err error) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 1, false, fmt.Errorf("start inside new namespaces: %w: run as root with CAP_SYS_ADMIN, or without root", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			if err := cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
				return 1, false, fmt.Errorf("pass a signal on: %w", err)
			}
		case err := <-ended:
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				return 1, false, fmt.Errorf("wait for the program inside: %w", err)
			}
			code := cmd.ProcessState.ExitCode()
			if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && code < 0 {
				code = 128 + int(status.Signal())
			}
			return code, false, nil
		}
	}
}
