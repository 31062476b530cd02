// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"sync"
	"sync/atomic"
	"time"
)

// logStall hangs the writes to the log; it is a logstore.Fault.
type logStall struct {
	mu sync.Mutex // guards open
	// open is closed when the stall ends; nil: there is none.
	open chan struct{}
}

func (l *logStall) set(stall bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case stall && l.open == nil:
		l.open = make(chan struct{})
	case !stall && l.open != nil:
		close(l.open)
		l.open = nil
	}
}

// Before implements logstore.Fault.
func (l *logStall) Before(string) error {
	l.mu.Lock()
	open := l.open
	l.mu.Unlock()
	if open != nil {
		<-open
	}
	return nil
}

// wall is a wall clock that may be wrong.
type wall struct{ offset atomic.Int64 }

func (w *wall) set(offset time.Duration) { w.offset.Store(int64(offset)) }

func (w *wall) now() time.Time { return time.Now().Add(time.Duration(w.offset.Load())) }
