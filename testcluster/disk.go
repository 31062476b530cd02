// SPDX-License-Identifier: Apache-2.0

package testcluster

import (
	"sync"
	"syscall"
)

// LogFault breaks the log store of one node.
type LogFault struct {
	// mu guards all below.
	mu    sync.Mutex
	stall chan struct{}
	fail  bool
}

func newLogFault() *LogFault { return &LogFault{} }

// Stall lets every write to the log hang until Heal.
func (f *LogFault) Stall() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stall == nil {
		f.stall = make(chan struct{})
	}
}

// Fail lets every write to the log fail with EIO until Heal.
func (f *LogFault) Fail() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = true
}

// Heal ends Stall and Fail.
func (f *LogFault) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = false
	if f.stall != nil {
		close(f.stall)
		f.stall = nil
	}
}

// Before implements logstore.Fault.
func (f *LogFault) Before(string) error {
	f.mu.Lock()
	stall, fail := f.stall, f.fail
	f.mu.Unlock()
	if stall != nil {
		<-stall
	}
	if fail {
		return syscall.EIO
	}
	return nil
}
