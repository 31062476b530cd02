// SPDX-License-Identifier: Apache-2.0

package clock

import (
	"testing"
	"time"
)

func TestMillis(t *testing.T) {
	for d, want := range map[time.Duration]uint64{
		-time.Second: 0, 0: 0, 1: 1, time.Microsecond: 1, time.Millisecond: 1, time.Millisecond + 1: 2, 3 * time.Second: 3000,
	} {
		if got := Millis(d); got != want {
			t.Errorf("%v is %d ms, want %d", d, got, want)
		}
	}
}

// TestMicros: a reading is never ahead of the clock that it was taken from.
func TestMicros(t *testing.T) {
	for _, i := range []Instant{0, 1, 999, 1000, 1_234_567_890, Instant(100 * 365 * 24 * time.Hour)} {
		if got := FromMicros(i.Micros()); got > i || i-got >= 1000 {
			t.Errorf("%d became %d", i, got)
		}
	}
	if got := FromMicros(1<<64 - 1); got <= 0 {
		t.Errorf("the largest reading became %d", got)
	}
	if got := Instant(-5).Micros(); got != 0 {
		t.Errorf("an instant before the first became %d", got)
	}
}
