// SPDX-License-Identifier: Apache-2.0

package model

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// TestStopLate: it refuses connections, serves over those that it has under its lease
// and no longer, and ends.
func TestStopLate(t *testing.T) {
	r := start(t, 1)
	want(t, "promote", r.promote(5, time.Minute), nil)
	r.serves(5) // over a connection that is kept
	r.set(Faults{StopLateMS: maxDelay.Milliseconds()})
	for what, address := range map[string]string{"HTTP": r.address, "gRPC": r.rpc} {
		wait.Until(t, patience, func() error {
			conn, err := net.Dial("tcp", address)
			if err == nil {
				conn.Close()
				return errors.New("it accepts connections of " + what)
			}
			return nil
		})
	}
	r.set(Faults{}) // that does not take it back
	r.serves(5)
	r.stands(pb.Role_ROLE_PRIMARY, 5)
	r.clock.Advance(time.Minute)
	r.serves(0) // its lease is over
	r.set(Faults{StopLateMS: 1})
	want(t, "end", r.wait(), ErrStopped)
}
