// SPDX-License-Identifier: Apache-2.0

package report

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/hastate/hastate/bench/loop"
)

func perSecond(r Run) float64 { return r.PerSecond }

// TestRatios_Paired: each repetition is compared with itself, so that a machine that
// becomes slow changes no ratio.
func TestRatios_Paired(t *testing.T) {
	runs := []Run{
		{System: "a", Work: "put", Clients: 1, Repetition: 0, PerSecond: 100},
		{System: "b", Work: "put", Clients: 1, Repetition: 0, PerSecond: 50},
		{System: "a", Work: "put", Clients: 1, Repetition: 1, PerSecond: 10},
		{System: "b", Work: "put", Clients: 1, Repetition: 1, PerSecond: 5},
		{System: "a", Work: "put", Clients: 1, Repetition: 2, PerSecond: 900},
		{System: "b", Work: "put", Clients: 1, Repetition: 2, PerSecond: 9},
		{System: "a", Work: "put", Clients: 64, Repetition: 0, PerSecond: 7},
		{System: "a", Work: "get", Clients: 1, Repetition: 0, PerSecond: 1},
		{System: "c", Work: "put", Clients: 1, Repetition: 0, PerSecond: 1},
	}
	if got := Ratios(runs, "put", "a", "b", perSecond); !maps.Equal(got, map[string]float64{"1": 2}) {
		t.Errorf("%v", got)
	}
	if got := Ratios(runs, "put", "a", "nobody", perSecond); len(got) != 0 {
		t.Errorf("%v", got)
	}
}

func TestMedian(t *testing.T) {
	for want, of := range map[float64][]float64{0: nil, 1: {1}, 2: {3, 1, 2}, 4: {9, 4, 1, 8}} {
		if got := Median(of); got != want {
			t.Errorf("%v: %v", of, got)
		}
	}
}

func TestTable(t *testing.T) {
	r := NewRun("etcd", "put", 0, loop.Result{Clients: 16, Ops: 1000, Failed: 2, Took: 2 * time.Second, P50: 3 * time.Millisecond, P99: 5 * time.Millisecond, Max: 9 * time.Millisecond}, 200*time.Millisecond)
	slow := r
	slow.MaxMs, slow.Repetition = 70, 1
	var b strings.Builder
	if err := Table(&b, []Run{r, slow}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("%q", lines)
	}
	if got := strings.Join(strings.Fields(lines[1]), " "); got != "put 16 etcd 500 3.00 5.00 70.00 200 4" {
		t.Errorf("%q", got)
	}
}
