// SPDX-License-Identifier: Apache-2.0

package testcluster

import (
	"github.com/hastate/hastate/internal/clock"
)

// Scaled is a clock that runs at Rate of the machine's.
type Scaled = clock.Scaled

// NewScaled returns a clock that agrees with the machine's now.
func NewScaled(rate float64) Scaled { return clock.NewScaled(rate) }
