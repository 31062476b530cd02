// SPDX-License-Identifier: Apache-2.0

// Package wait is for tests: it waits on conditions instead of sleeping.
package wait

import (
	"testing"
	"time"
)

// Until calls check until it returns nil, and fails the test with the last
// error when the timeout has passed.
func Until(tb testing.TB, timeout time.Duration, check func() error) {
	tb.Helper()
	deadline := time.Now().Add(timeout)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("not within %v: %v", timeout, err)
		}
		<-tick.C
	}
}
