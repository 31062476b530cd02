// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/hastate/hastate/internal/proc"
)

// killTimeout bounds how long a killed process may take to end.
const killTimeout = 10 * time.Second

// PowerCut takes the power of hosts away at the same instant, and gives it back:
// first their file systems are shut down, all within microseconds, so that what
// was not fsynced is lost and later writes fail; then their processes are killed;
// then the disks are mounted again, which recovers their journals. The processes
// are not started again. A frozen disk is thawed: nothing of what waited reaches
// it. Without disks it returns ErrUnsupported.
func (r *Rig) PowerCut(hosts ...*Host) error {
	hosts = slices.Clone(hosts)
	slices.SortFunc(hosts, func(a, b *Host) int { return a.index - b.index })
	hosts = slices.Compact(hosts)
	folders := make([]*os.File, len(hosts))
	for i, h := range hosts {
		if h.disk == nil {
			return fmt.Errorf("%w: a power cut needs root, and disks", ErrUnsupported)
		}
		h.disk.mu.Lock()
		defer h.disk.mu.Unlock()
		f, err := os.Open(h.disk.folder)
		if err != nil {
			return fmt.Errorf("power cut of %s: %w", h.NodeID(), err)
		}
		defer func() { _ = f.Close() }() // for a return in between
		folders[i] = f
	}
	down := make([]error, len(hosts))
	for i, f := range folders {
		down[i] = ioctl(f, ioctlShutdown, noLogFlush)
	}
	var errs []error
	for i, h := range hosts {
		if down[i] != nil {
			errs = append(errs, fmt.Errorf("shut down %s: %w", h.disk.folder, down[i]))
		}
		errs = append(errs, folders[i].Close(), h.disk.thawLocked())
	}
	var processes []*proc.Process
	for _, h := range hosts {
		processes = append(processes, h.processes()...)
	}
	errs = append(errs, kill(processes))
	for _, h := range hosts {
		if err := h.disk.unmount(); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, h.disk.mount())
	}
	return errors.Join(errs...)
}

// kill kills all at once, and waits until they are gone.
func kill(processes []*proc.Process) error {
	var errs []error
	for _, p := range processes {
		errs = append(errs, p.Signal(syscall.SIGKILL))
	}
	timer := time.NewTimer(killTimeout)
	defer timer.Stop()
	for _, p := range processes {
		select {
		case <-p.Exited():
		case <-timer.C:
			return errors.Join(append(errs, fmt.Errorf("%s (process %d) did not end within %v of SIGKILL", p.Spec.Name, p.Pid(), killTimeout))...)
		}
	}
	return errors.Join(errs...)
}
