// SPDX-License-Identifier: Apache-2.0

package model

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/hastate/hastate/internal/wait"
)

// TestStopLate: it refuses connections, serves over those that it has under its lease,
// and ends.
func TestStopLate(t *testing.T) {
	r := start(t, 1)
	want(t, "promote", r.promote(5, time.Minute), nil)
	r.serves(5) // over a connection that is kept
	r.set(Faults{StopLateMS: 2000})
	wait.Until(t, patience, func() error {
		conn, err := net.Dial("tcp", r.address)
		if err == nil {
			conn.Close()
			return errors.New("it accepts connections")
		}
		return nil
	})
	r.set(Faults{}) // that does not take it back
	r.serves(5)
	r.clock.Advance(time.Minute)
	r.serves(0) // its lease is over
	want(t, "end", r.wait(), ErrStopped)
}
