// SPDX-License-Identifier: Apache-2.0

package holder_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hastate/hastate/election"
	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/internal/holder/holdertest"
	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// TestHolderReadsTheServersClockFirst: the lease that a server is told of, counted from
// the reading that it comes with, ends before the holder's own fence does, however long
// the time between the two readings.
func TestHolderReadsTheServersClockFirst(t *testing.T) {
	server := holdertest.NewServer()
	server.Capable(pb.Capability_CAPABILITY_LEASE)
	const pause = 50 * time.Millisecond
	server.ShowClock(func() (uint64, time.Duration, error) {
		now := clock.Boot{}.Now()
		<-time.After(pause) // this process is not scheduled for a while
		return now.Micros(), 0, nil
	})
	s := newStand(t, slow(), nil, server, nil)
	s.grant(7)
	s.phase(serving)
	wait.Until(t, patience, func() error {
		if len(server.Promotions()) < 3 {
			return errors.New("not renewed yet")
		}
		return nil
	})
	// What is left of a lease when its order is worked out is less than the whole of it
	// by the pause, if the server's clock was read before it.
	longest := election.HolderTTL(slow().Lease) - slow().FenceMargin - pause
	for i, p := range server.Promotions() {
		if p.Clock == 0 || p.Lease > longest {
			t.Errorf("order %d: %v from the reading %d, more than %v: the holder read its own clock first", i, p.Lease, p.Clock, longest)
		}
	}
}

// TestHolderOldReading: a server is not sent an order of which it must count that it is
// over, nor one that it would count from the receipt.
func TestHolderOldReading(t *testing.T) {
	for name, show := range map[string]func() (uint64, time.Duration, error){
		"older than what is left":       func() (uint64, time.Duration, error) { return 1, time.Hour, nil },
		"it is not known if it has one": func() (uint64, time.Duration, error) { return 0, 0, errors.New("no answer") },
	} {
		t.Run(name, func(t *testing.T) {
			server := holdertest.NewServer()
			server.ShowClock(show)
			s := newStand(t, slow(), nil, server, nil)
			s.grant(7)
			if g := s.phase(vacant); !strings.Contains(g.GetReleaseReason(), "promotion failed") {
				t.Errorf("released because %q", g.GetReleaseReason())
			}
			if n := len(server.Promotions()); n != 0 {
				t.Errorf("%d orders were sent", n)
			}
		})
	}
}
