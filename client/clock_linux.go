// SPDX-License-Identifier: Apache-2.0

package client

import (
	"time"

	"github.com/hastate/hastate/internal/clock"
)

// now is a clock that runs on while the machine is suspended: an answer that
// was valid before a long sleep is not valid after it.
func now() time.Duration { return time.Duration(clock.Boot{}.Now()) }
