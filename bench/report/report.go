// SPDX-License-Identifier: Apache-2.0

// Package report turns runs into figures: medians over the repetitions, and ratios of
// runs of the same repetition, because a machine's figures move from hour to hour.
package report

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/hastate/hastate/bench/loop"
)

// Run is one measurement.
type Run struct {
	// System that was measured, Work that it did (put or get), and in which repetition.
	System     string `json:"system"`
	Work       string `json:"work"`
	Clients    int    `json:"clients"`
	Repetition int    `json:"repetition"`
	// PerSecond counts answered operations, Failed those that were not.
	PerSecond float64 `json:"per_second"`
	Failed    int     `json:"failed"`
	P50Ms     float64 `json:"p50_ms"`
	P99Ms     float64 `json:"p99_ms"`
	MaxMs     float64 `json:"max_ms"`
	// CPUMicros is the processor time of all server processes for one operation; 0: not
	// measured.
	CPUMicros float64 `json:"server_cpu_us"`
	// Load is the load average of the last minute, after the run.
	Load float64 `json:"load"`
}

// NewRun takes the figures of a closed loop.
func NewRun(system, work string, repetition int, r loop.Result, cpu time.Duration) Run {
	run := Run{
		System: system, Work: work, Clients: r.Clients, Repetition: repetition, PerSecond: r.PerSecond(), Failed: r.Failed,
		P50Ms: ms(r.P50), P99Ms: ms(r.P99), MaxMs: ms(r.Max),
	}
	if r.Ops > 0 {
		run.CPUMicros = float64(cpu.Microseconds()) / float64(r.Ops)
	}
	return run
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Median of values; 0 if there are none. The lower of two in the middle.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[(len(sorted)-1)/2]
}

// Ratios are, for each number of clients, the medians over the repetitions of a figure
// of one system divided by that of another one in the same repetition. What was not
// measured for both is left out.
func Ratios(runs []Run, work, ours, theirs string, figure func(Run) float64) map[string]float64 {
	type pair struct{ ours, theirs float64 }
	type place struct{ clients, repetition int }
	pairs := map[place]pair{}
	for _, r := range runs {
		if r.Work != work {
			continue
		}
		at := place{r.Clients, r.Repetition}
		p := pairs[at]
		switch r.System {
		case ours:
			p.ours = figure(r)
		case theirs:
			p.theirs = figure(r)
		}
		pairs[at] = p
	}
	each := map[int][]float64{}
	for at, p := range pairs {
		if p.ours > 0 && p.theirs > 0 {
			each[at.clients] = append(each[at.clients], p.ours/p.theirs)
		}
	}
	ratios := map[string]float64{}
	for clients, values := range each {
		ratios[strconv.Itoa(clients)] = Median(values)
	}
	return ratios
}

// row is the medians of the repetitions of one system at one number of clients.
type row struct {
	system, work                     string
	clients                          int
	perSecond, p50, p99, worst, used float64
	failed                           int
}

// rows keep the order in which systems were first measured.
func rows(runs []Run) []row {
	type place struct {
		system, work string
		clients      int
	}
	byPlace, order := map[place][]Run{}, []place(nil)
	for _, r := range runs {
		at := place{r.System, r.Work, r.Clients}
		if byPlace[at] == nil {
			order = append(order, at)
		}
		byPlace[at] = append(byPlace[at], r)
	}
	slices.SortStableFunc(order, func(a, b place) int {
		return cmp.Or(strings.Compare(b.work, a.work), cmp.Compare(a.clients, b.clients))
	})
	var all []row
	for _, at := range order {
		of := func(figure func(Run) float64) float64 {
			var values []float64
			for _, r := range byPlace[at] {
				values = append(values, figure(r))
			}
			return Median(values)
		}
		line := row{
			system: at.system, work: at.work, clients: at.clients,
			perSecond: of(func(r Run) float64 { return r.PerSecond }), used: of(func(r Run) float64 { return r.CPUMicros }),
			p50: of(func(r Run) float64 { return r.P50Ms }), p99: of(func(r Run) float64 { return r.P99Ms }),
		}
		for _, r := range byPlace[at] {
			line.worst, line.failed = max(line.worst, r.MaxMs), line.failed+r.Failed
		}
		all = append(all, line)
	}
	return all
}

// Table writes the medians for people; the maximum is that of all repetitions.
func Table(w io.Writer, runs []Run) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "work\tclients\tsystem\t1/s\tp50 ms\tp99 ms\tmax ms\tserver us\tfailed\t")
	for _, r := range rows(runs) {
		fmt.Fprintf(t, "%s\t%d\t%s\t%.0f\t%.2f\t%.2f\t%.2f\t%.0f\t%d\t\n", r.work, r.clients, r.system, r.perSecond, r.p50, r.p99, r.worst, r.used, r.failed)
	}
	return t.Flush()
}
