// SPDX-License-Identifier: Apache-2.0

package clock

// Scaled is a clock for tests that runs at Rate of the machine's. It agrees with
// the machine's at From.
type Scaled struct {
	// Rate must be positive.
	Rate float64
	From Instant
}

// NewScaled returns a clock that agrees with the machine's now.
func NewScaled(rate float64) Scaled { return Scaled{Rate: rate, From: Boot{}.Now()} }

// Now implements Clock.
func (s Scaled) Now() Instant { return s.Of(Boot{}.Now()) }

// Of is what this clock shows when the machine's shows an instant.
func (s Scaled) Of(machine Instant) Instant {
	return s.From + Instant(float64(machine-s.From)*s.Rate)
}

// Machine is what the machine's clock shows when this one shows an instant, to
// within a few nanoseconds.
func (s Scaled) Machine(shown Instant) Instant {
	return s.From + Instant(float64(shown-s.From)/s.Rate)
}
