// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"context"
	"time"
)

// watch runs feed, which emits events until ctx ends, and reports what the view
// makes of them: after each event and at least once an interval. emit returns
// false when feed has to stop.
func watch(ctx context.Context, v *view, report func(Status), feed func(ctx context.Context, emit func(event) bool)) error {
	ctx, cancel := context.WithCancel(ctx)
	events := make(chan event) // never closed; both sides also look at ctx
	done := make(chan struct{})
	defer func() {
		cancel()
		<-done
	}()
	go func() {
		defer close(done)
		feed(ctx, func(e event) bool {
			select {
			case events <- e:
				return true
			case <-ctx.Done():
				return false
			}
		})
	}()
	tick := time.NewTicker(v.interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-events:
			v.take(e, time.Now())
			tick.Reset(v.interval)
		case <-tick.C:
		}
		report(v.status(time.Now()))
	}
}

// pause waits for d and reports whether ctx still runs. wake ends it early.
func pause(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-wake:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}
