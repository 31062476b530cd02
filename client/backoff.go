// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	backoffFirst = 20 * time.Millisecond
	backoffMax   = time.Second
)

// backoff is the wait between attempts. It doubles, and is jittered so that the
// clients of a lost node do not come back all at once. Not safe for concurrent
// use.
type backoff struct{ next time.Duration }

func (b *backoff) reset() { b.next = 0 }

// delay returns the next wait: a random time in the upper half of the step.
func (b *backoff) delay() time.Duration {
	step := max(b.next, backoffFirst)
	b.next = min(2*step, backoffMax)
	return step/2 + rand.N(step/2)
}

// wait waits, or returns the error of a context that ends first.
func (b *backoff) wait(ctx context.Context) error {
	timer := time.NewTimer(b.delay())
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
