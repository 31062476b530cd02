// SPDX-License-Identifier: Apache-2.0

// Package loop runs closed-loop work: each client does its next operation when the
// one before has been answered.
package loop

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// maxFailures is how many operations may fail in one run: a figure of a system that
// refuses work is no figure.
const maxFailures = 100

// Result is what a run measured.
type Result struct {
	// Clients that ran, and operations that were answered without an error.
	Clients, Ops int
	// Failed operations count for nothing else.
	Failed int
	// Took is the time from the first operation to the last answer.
	Took          time.Duration
	P50, P99, Max time.Duration
}

// PerSecond is the rate of operations.
func (r Result) PerSecond() float64 {
	if r.Took <= 0 {
		return 0
	}
	return float64(r.Ops) / r.Took.Seconds()
}

// client is what one goroutine measures.
type client struct {
	took   []time.Duration
	failed int
	last   error
}

// Run lets clients do op for a duration. Op gets the index of its client, so that each
// can keep its own state without a lock; one client's operations follow each other. It
// is an error if no operation was done, or if more than maxFailures failed.
func Run(ctx context.Context, clients int, duration time.Duration, op func(ctx context.Context, client int) error) (Result, error) {
	if clients < 1 || duration <= 0 {
		return Result{}, fmt.Errorf("%d clients for %v: both must be positive", clients, duration)
	}
	each := make([]client, clients)
	begun := time.Now()
	end := begun.Add(duration)
	var all sync.WaitGroup
	for i := range each {
		all.Go(func() { each[i].run(ctx, end, func(ctx context.Context) error { return op(ctx, i) }) })
	}
	all.Wait()
	r := Result{Clients: clients, Took: time.Since(begun)}
	var took []time.Duration
	var last error
	for _, c := range each {
		took = append(took, c.took...)
		r.Failed += c.failed
		if c.last != nil {
			last = c.last
		}
	}
	r.Ops = len(took)
	slices.Sort(took)
	r.P50, r.P99, r.Max = Quantile(took, 0.5), Quantile(took, 0.99), Quantile(took, 1)
	switch {
	case ctx.Err() != nil:
		return r, context.Cause(ctx)
	case r.Failed > maxFailures:
		return r, fmt.Errorf("%d operations failed, the last with: %w", r.Failed, last)
	case r.Ops == 0:
		return r, errors.Join(errors.New("no operation was answered"), last)
	}
	return r, nil
}

func (c *client) run(ctx context.Context, end time.Time, op func(ctx context.Context) error) {
	for c.failed <= maxFailures && ctx.Err() == nil {
		begun := time.Now()
		if !begun.Before(end) {
			return
		}
		if err := op(ctx); err != nil {
			c.failed, c.last = c.failed+1, err
			continue
		}
		c.took = append(c.took, time.Since(begun))
	}
}

// Quantile of sorted durations: the smallest that at least the share q of all do not
// exceed. 0 if there are none.
func Quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	i := int(q*float64(len(sorted))+0.999999) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}
