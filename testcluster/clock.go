// SPDX-License-Identifier: Apache-2.0

package testcluster

import (
	"github.com/hastate/hastate/internal/clock"
)

// Scaled is a clock that runs at Rate of the machine's.
type Scaled struct {
	Rate float64
	// From is where both stand at the same instant.
	From clock.Instant
}

// NewScaled returns a clock that agrees with the machine's now.
func NewScaled(rate float64) Scaled { return Scaled{Rate: rate, From: clock.Boot{}.Now()} }

// Now implements clock.Clock.
func (s Scaled) Now() clock.Instant {
	return s.From + clock.Instant(float64(clock.Boot{}.Now()-s.From)*s.Rate)
}
