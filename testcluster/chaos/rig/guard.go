// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// guard is a process that thaws the disks when this program dies, however it
// dies: a process that writes to a frozen file system cannot be killed, and would
// hold the namespaces for ever.
type guard struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

// startGuard starts the guard for the mounted folders.
func startGuard(folders []string) (*guard, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), roleEnv+"="+roleGuard)
	// A session of its own: what is sent to the group of this program must not
	// reach it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start guard: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start guard: %w: the program must call Enter first of all", err)
	}
	g := &guard{cmd: cmd, pipe: pipe}
	if err := json.NewEncoder(pipe).Encode(folders); err != nil {
		return nil, errors.Join(fmt.Errorf("tell the guard: %w", err), g.close())
	}
	return g, nil
}

// close ends the guard. It thaws everything once more.
func (g *guard) close() error {
	err := g.pipe.Close()
	kill := time.AfterFunc(5*time.Second, func() { _ = g.cmd.Process.Kill() }) // it has ended, or Wait says so
	defer kill.Stop()
	if err := errors.Join(err, g.cmd.Wait()); err != nil {
		return fmt.Errorf("end the guard: %w", err)
	}
	return nil
}

// guardMain is the guard: it reads the folders and waits for the end of r.
func guardMain(r io.Reader) int {
	var folders []string
	if err := json.NewDecoder(r).Decode(&folders); err != nil {
		return 1
	}
	// Any end of r is the end of its writer.
	_, _ = io.Copy(io.Discard, r)
	for _, folder := range folders {
		_ = thaw(folder) // most are not frozen
	}
	return 0
}
