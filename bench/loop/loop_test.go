// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"
)

func TestRun_Counts(t *testing.T) {
	var done atomic.Int64
	r, err := Run(t.Context(), 3, 20*time.Millisecond, func(context.Context, int) error {
		if done.Add(1)%50 == 0 && done.Load() < 2000 {
			return errors.New("refused")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if int64(r.Ops+r.Failed) != done.Load() || r.Ops == 0 || r.Clients != 3 || r.PerSecond() <= 0 {
		t.Errorf("%+v of %d operations", r, done.Load())
	}
	if r.P50 > r.P99 || r.P99 > r.Max || r.Took < 20*time.Millisecond {
		t.Errorf("%+v", r)
	}
}

// TestRun_OneAtATime: a client waits for its answer before it goes on.
func TestRun_OneAtATime(t *testing.T) {
	var busy [4]atomic.Bool
	_, err := Run(t.Context(), len(busy), 10*time.Millisecond, func(_ context.Context, i int) error {
		if busy[i].Swap(true) {
			t.Error("two operations of one client at once")
		}
		defer busy[i].Store(false)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestRun_Fails: what is refused all the time has no rate.
func TestRun_Fails(t *testing.T) {
	no := errors.New("no")
	if _, err := Run(t.Context(), 2, time.Hour, func(context.Context, int) error { return no }); !errors.Is(err, no) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(no)
	if _, err := Run(ctx, 2, time.Hour, func(context.Context, int) error { return nil }); !errors.Is(err, no) {
		t.Error(err)
	}
	for _, clients := range []int{0, -1} {
		if _, err := Run(t.Context(), clients, time.Hour, nil); err == nil {
			t.Errorf("%d clients", clients)
		}
	}
}

func TestQuantile(t *testing.T) {
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(i+1))
	}
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 50, 0.99: 99, 1: 100} {
		if got := Quantile(hundred, q); got != want {
			t.Errorf("%v: %d instead of %d", q, got, want)
		}
	}
	if Quantile(nil, 0.5) != 0 || Quantile(hundred[:1], 0.99) != 1 {
		t.Error("of nothing, or of one")
	}
}
