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
	// hanging counts the writes that hang now.
	hanging int
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

// Hanging reports whether a write hangs now.
func (f *LogFault) Hanging() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hanging > 0
}

// Before implements logstore.Fault.
func (f *LogFault) Before(string) error {
	f.mu.Lock()
	stall, fail := f.stall, f.fail
	if stall != nil {
		f.hanging++
	}
	f.mu.Unlock()
	if stall != nil {
		<-stall
		f.mu.Lock()
		f.hanging--
		f.mu.Unlock()
	}
	if fail {
		return syscall.EIO
	}
	return nil
}
