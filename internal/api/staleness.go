// SPDX-License-Identifier: Apache-2.0

package api

import (
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// freshness is how new a state is that is read after the freshness was taken: it has
// every write that was acknowledged before asOf, an instant of this node's clock.
// Not known: nothing was shown of the state since the node started.
type freshness struct {
	asOf  clock.Instant
	known bool
}

// freshness of what is read next. Never of what was read already: that state may be
// from before asOf, by as long as this goroutine, or the machine, stood still since.
func (s *Services) freshness() freshness {
	asOf, known := s.cfg.Reader.FreshAsOf()
	return freshness{asOf: asOf, known: known}
}

// staleness is how old that state is at most, at an instant after it was read.
func (f freshness) staleness(now clock.Instant) *pb.Staleness {
	if !f.known {
		return &pb.Staleness{}
	}
	return &pb.Staleness{LeaderContactMs: clock.Millis(now.Sub(f.asOf)), LeaderKnown: true}
}

// staleness says how old a local read is that was just made, nil if it was not local.
func (s *Services) staleness(before *freshness) *pb.Staleness {
	if before == nil {
		return nil
	}
	return before.staleness(s.cfg.Clock.Now())
}
