// SPDX-License-Identifier: Apache-2.0

package clock

import (
	"testing"
	"time"
)

func TestScaled(t *testing.T) {
	for _, rate := range []float64{0.99, 1, 1.01, 1.05} {
		s := Scaled{Rate: rate, From: Instant(400 * time.Hour)}
		if got := s.Of(s.From); got != s.From {
			t.Errorf("rate %v: %d at its beginning, want %d", rate, got, s.From)
		}
		machine := s.From.Add(10 * time.Second)
		shown := s.Of(machine)
		if want := s.From.Add(time.Duration(rate * float64(10*time.Second))); shown.Sub(want).Abs() > time.Microsecond {
			t.Errorf("rate %v: shows %d after ten seconds, want %d", rate, shown, want)
		}
		if back := s.Machine(shown); back.Sub(machine).Abs() > time.Microsecond {
			t.Errorf("rate %v: %d there and back is %d", rate, machine, back)
		}
	}
}
