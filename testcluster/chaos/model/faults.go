// SPDX-License-Identifier: Apache-2.0

package model

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// The values of Faults.Promote.
const (
	PromoteOK     = "ok"
	PromoteRefuse = "refuse"
	PromoteSlow   = "slow"
	PromoteIgnore = "ignore"
)

// Faults is everything that can be wrong with the server, as its control socket
// takes it. The zero value is healthy.
type Faults struct {
	// Hang: no request and no call is answered, but for GET /health.
	Hang bool `json:"hang,omitempty"`
	// Saturated: requests take 300 ms and queue up, work goes on.
	Saturated bool `json:"saturated,omitempty"`
	// PrefillMS is how long the first token takes; no step is counted meanwhile.
	PrefillMS int64 `json:"prefill_ms,omitempty"`
	// CrashOnPromote ends the process at the next Promote of a new epoch: see
	// ErrCrashed.
	CrashOnPromote bool `json:"crash_on_promote,omitempty"`
	// Promote says what becomes of Promote calls with a new epoch: ok (or empty);
	// refuse; ignore: it is answered as done, and nothing is done; slow: it succeeds,
	// and is answered, after SlowMS, whether the caller still waits or not. An epoch
	// that runs is renewed in any case.
	Promote string `json:"promote,omitempty"`
	SlowMS  int64  `json:"slow_ms,omitempty"`
	// LieEpoch: the status says role PRIMARY and an epoch that is 1,000 too high.
	LieEpoch bool `json:"lie_epoch,omitempty"`
	// Uncounted: the server does not count its lease; only Demote ends it.
	Uncounted bool `json:"uncounted,omitempty"`
	// NoLeaseCheck: what was once promoted serves on for ever, whatever becomes of
	// its lease, and after Demote. The checks must find it.
	NoLeaseCheck bool `json:"no_lease_check,omitempty"`
	// StopLateMS: the server shuts down in an orderly way. It accepts no connections any
	// more, works on over those that it has for so long, and ends with ErrStopped. That
	// cannot be taken back; who says it again says anew when it ends.
	StopLateMS int64 `json:"stop_late_ms,omitempty"`
	// StatusMS is the least time between two statuses, whatever happens meanwhile and
	// whatever interval was asked for: above that each status is late.
	StatusMS int64 `json:"status_ms,omitempty"`
}

// maxDelay bounds the times in Faults.
const maxDelay = 10 * time.Minute

func (f Faults) validate() error {
	var errs []error
	for name, ms := range map[string]int64{"prefill_ms": f.PrefillMS, "slow_ms": f.SlowMS, "status_ms": f.StatusMS, "stop_late_ms": f.StopLateMS} {
		if ms < 0 || ms > maxDelay.Milliseconds() {
			errs = append(errs, fmt.Errorf("%s is %d: use 0 to %d", name, ms, maxDelay.Milliseconds()))
		}
	}
	switch f.Promote {
	case "", PromoteOK, PromoteRefuse, PromoteIgnore:
	case PromoteSlow:
		if f.SlowMS == 0 {
			errs = append(errs, errors.New("promote is slow, but slow_ms is 0: say how slow"))
		}
	default:
		errs = append(errs, fmt.Errorf("promote is %q: use ok, refuse, ignore or slow", f.Promote))
	}
	return errors.Join(errs...)
}

// faultState is the Faults that hold now.
type faultState struct {
	mu  sync.Mutex // guards all below
	now Faults
	// changed is closed and replaced with now.
	changed chan struct{}
	// stop has room for one StopLateMS. Nobody closes it.
	stop chan time.Duration
}

func newFaultState() *faultState {
	return &faultState{changed: make(chan struct{}), stop: make(chan time.Duration, 1)}
}

// set replaces all faults.
func (f *faultState) set(next Faults) error {
	if err := next.validate(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = next
	if next.StopLateMS > 0 {
		select {
		case f.stop <- time.Duration(next.StopLateMS) * time.Millisecond:
		default: // it was told so just before
		}
	}
	close(f.changed)
	f.changed = make(chan struct{})
	return nil
}

// get returns the faults and a channel that is closed when they change.
func (f *faultState) get() (Faults, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now, f.changed
}

// takeCrash reports whether the process is to crash now; it is asked once.
func (f *faultState) takeCrash() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	crash := f.now.CrashOnPromote
	f.now.CrashOnPromote = false
	return crash
}

// wait returns when the server does not hang, or with ctx's error.
func (f *faultState) wait(ctx context.Context) error {
	for {
		now, changed := f.get()
		if !now.Hang {
			return ctx.Err()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
