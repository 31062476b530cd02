// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"errors"
	"fmt"
	"time"
)

// State is everything that can be broken in a running node. The zero State is
// whole.
type State struct {
	// WallOffsetMS is added to the wall clock of stamps that people read.
	WallOffsetMS int64 `json:"wall_offset_ms,omitempty"`
	// StallLog lets every write to the log hang until it is false again.
	StallLog bool `json:"stall_log,omitempty"`
	// HoldGrant holds the next entry with a Grant, and all behind it, on their way
	// from this node to Raft until it is false again, for 3 s at most.
	HoldGrant bool `json:"hold_grant,omitempty"`
	// Links are those from this node to others, by node id; one that is left out is
	// whole. What the other node sends of its own is its own State's.
	Links map[string]Link `json:"links,omitempty"`
}

// Link is what befalls the calls from this node to another one: their requests. The
// answers come back as they do.
type Link struct {
	// Cut holds every message until its caller gives up; those whose callers have
	// more patience than the cut arrive when it is over, as TCP would have it.
	Cut bool `json:"cut,omitempty"`
	// DelayMS and JitterMS hold each message for the delay and up to the jitter
	// more. Calls overtake each other, the messages of one stream do not: each waits
	// for the one before.
	DelayMS  int64 `json:"delay_ms,omitempty"`
	JitterMS int64 `json:"jitter_ms,omitempty"`
	// Loss is the share of messages that are lost without a word: the caller waits
	// until it gives up. In a stream, which cannot lose one and go on, a lost message
	// is sent again after 200 ms, then after twice that, and so on.
	Loss float64 `json:"loss,omitempty"`
	// Reset is the share of messages that fail at once.
	Reset float64 `json:"reset,omitempty"`
}

// Bounds of a State.
const (
	maxLinks      = 64
	maxDelay      = time.Minute
	maxWallOffset = 10 * 365 * 24 * time.Hour
)

// validate says all that is wrong with a state for the node self.
func (s State) validate(self string) error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if ms := s.WallOffsetMS; ms > maxWallOffset.Milliseconds() || ms < -maxWallOffset.Milliseconds() {
		add("wall_offset_ms is %d: use at most %d either way", ms, maxWallOffset.Milliseconds())
	}
	if len(s.Links) > maxLinks {
		add("%d links: use at most %d", len(s.Links), maxLinks)
	}
	for to, l := range s.Links {
		if to == "" || to == self {
			add("a link to %q: name another node than %q", to, self)
		}
		for name, ms := range map[string]int64{"delay_ms": l.DelayMS, "jitter_ms": l.JitterMS} {
			if ms < 0 || ms > maxDelay.Milliseconds() {
				add("link to %s: %s is %d: use 0 to %d", to, name, ms, maxDelay.Milliseconds())
			}
		}
		for name, share := range map[string]float64{"loss": l.Loss, "reset": l.Reset} {
			if share < 0 || share > 1 {
				add("link to %s: %s is %v: use a share from 0 to 1", to, name, share)
			}
		}
	}
	return errors.Join(errs...)
}
