// SPDX-License-Identifier: Apache-2.0

// Package clock reads the suspend-proof monotonic clock that leases are
// measured on. Go's own monotonic clock stops while the machine is suspended:
// a holder that trusted it would wake up with a lease that others have seen
// expire.
package clock

import (
	"math"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Instant is a point on one machine's CLOCK_BOOTTIME, in nanoseconds. Instants
// of two machines, or from before and after a reboot, cannot be compared.
type Instant int64

// Add returns the instant d later.
func (i Instant) Add(d time.Duration) Instant { return i + Instant(d) }

// Sub returns the time from j to i.
func (i Instant) Sub(j Instant) time.Duration { return time.Duration(i - j) }

// Micros is the instant as it is sent: rounded down, so that a lease that is counted
// from it is never longer. It says nothing to another machine.
func (i Instant) Micros() uint64 { return uint64(max(i, 0) / 1000) }

// FromMicros is the instant that Micros was of, or up to a microsecond before it.
func FromMicros(us uint64) Instant { return Instant(min(us, math.MaxInt64/1000) * 1000) }

// Millis is a duration in whole milliseconds, rounded up: what took any time at all is
// not 0, which stands for not measured.
func Millis(d time.Duration) uint64 {
	return uint64(max(d, 0)+time.Millisecond-1) / uint64(time.Millisecond)
}

// Clock tells the time.
type Clock interface {
	Now() Instant
}

// Boot is the machine's CLOCK_BOOTTIME.
type Boot struct{}

// Now reads the clock. It panics if the kernel has no CLOCK_BOOTTIME (before
// Linux 2.6.39): without it no lease can be kept.
func (Boot) Now() Instant {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("clock: CLOCK_BOOTTIME is not available: " + err.Error())
	}
	return Instant(ts.Nano())
}

// Fake is a clock that is moved by hand. Its zero value stands at 0.
type Fake struct {
	mu  sync.Mutex
	now Instant
}

// Now returns where the clock stands.
func (f *Fake) Now() Instant {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

// Advance moves the clock.
func (f *Fake) Advance(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = f.now.Add(d)
}
