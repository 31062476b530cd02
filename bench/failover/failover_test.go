// SPDX-License-Identifier: Apache-2.0

package failover

import (
	"testing"
	"time"

	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

func TestTwoBelievers(t *testing.T) {
	at := func(epoch uint64, at clock.Instant) record.Served { return record.Served{Epoch: epoch, At: at} }
	began := []clock.Instant{100, 200, 300}
	for name, c := range map[string]struct {
		served []record.Served
		rounds int
	}{
		"one after the other":          {[]record.Served{at(5, 90), at(5, 101), at(7, 150), at(9, 250)}, 0},
		"files in any order":           {[]record.Served{at(9, 250), at(5, 90), at(7, 150)}, 0},
		"the old one answers again":    {[]record.Served{at(5, 90), at(7, 150), at(5, 151), at(5, 152), at(9, 250)}, 1},
		"in two rounds":                {[]record.Served{at(5, 90), at(7, 150), at(5, 151), at(9, 250), at(7, 299)}, 2},
		"at the instant that it began": {[]record.Served{at(7, 199), at(5, 200), at(5, 201)}, 1},
	} {
		if got := twoBelievers(c.served, began); got != c.rounds {
			t.Errorf("%s: %d rounds, want %d", name, got, c.rounds)
		}
	}
}

func TestFigures(t *testing.T) {
	f := Found{TwoBelievers: 1}
	for i := range 100 {
		f.Rounds = append(f.Rounds, Round{ServedMs: float64(100 - i)})
	}
	got := f.Figures(func(r Round) float64 { return r.ServedMs })
	if want := (Figures{N: 100, P50Ms: 50, P99Ms: 99, MaxMs: 100, TwoBelievers: 1}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestRun_Refuses(t *testing.T) {
	for _, o := range []Options{{Case: "no such", Rounds: 1}, {Case: "switchover"}, {Case: "switchover", Rounds: MaxRounds + 1}} {
		if _, err := Run(t.Context(), o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
	if ms(1500*time.Microsecond) != 1.5 {
		t.Error("milliseconds")
	}
}

func TestFlushesOf(t *testing.T) {
	const text = " 254       0 vda 1 2 3 4 5 6 7 8 0 9 10 11 12 13 14 77 15\n   7       0 loop0 1 2 3\n"
	if n, err := flushesOf(text, 254, 0); n != 77 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	for _, minor := range []uint32{1, 0} {
		if _, err := flushesOf(text, 7, minor); err == nil {
			t.Errorf("7:%d was found", minor)
		}
	}
}
