// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package client

import "time"

var started = time.Now()

// now is Go's monotonic clock. It may stand still while the machine is
// suspended; after that an answer may be used for longer than it should.
func now() time.Duration { return time.Since(started) }
