// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/hastate/hastate/bench/failover"
	"github.com/hastate/hastate/bench/report"
)

// disk is how long a block takes to the disk.
type disk struct {
	P50Ms float64 `json:"p50_ms"`
	P99Ms float64 `json:"p99_ms"`
}

// found is all that was measured.
type found struct {
	plan *plan
	// Fdatasync of each repetition.
	Fdatasync []disk       `json:"fdatasync"`
	Runs      []report.Run `json:"runs"`
	// Idle, if it was measured.
	Idle *failover.Idle `json:"idle,omitempty"`
	// LeftOut are systems that could not be run, and why.
	LeftOut map[string]string `json:"left_out,omitempty"`
}

// add keeps a run, and tells it.
func (f *found) add(r report.Run) {
	r.Load = load()
	f.Runs = append(f.Runs, r)
	fmt.Fprintf(f.plan.progress, "%d/%d  %-22s %-9s %4d clients  %8.0f/s  p50 %.2f  p99 %.2f  max %.1f ms  %4.0f us\n",
		r.Repetition+1, f.plan.repetitions, r.System, r.Work, r.Clients, r.PerSecond, r.P50Ms, r.P99Ms, r.MaxMs, r.CPUMicros)
}

// leaveOut tells once why a system is not measured.
func (f *found) leaveOut(name, why string) {
	if _, told := f.LeftOut[name]; told {
		return
	}
	if f.LeftOut == nil {
		f.LeftOut = map[string]string{}
	}
	f.LeftOut[name] = why
	fmt.Fprintf(f.plan.progress, "%s is left out: %s\n", name, why)
}

// summary is the last line: ratios of the first system, ours divided by theirs.
func (f *found) summary() map[string]any {
	all := map[string]any{}
	if len(f.plan.systems) == 0 {
		return all
	}
	ours := f.plan.systems[0]
	value := size(f.plan.valueBytes)
	put := func(name string, ratios map[string]float64) {
		if len(ratios) > 0 {
			all[name] = ratios
		}
	}
	perSecond := func(r report.Run) float64 { return r.PerSecond }
	p99 := func(r report.Run) float64 { return r.P99Ms }
	for _, theirs := range f.plan.systems[1:] {
		short := strings.ReplaceAll(strings.Replace(theirs, "zookeeper", "zk", 1), "-", "_")
		put("writes_"+value+"_vs_"+short, report.Ratios(f.Runs, workPut, ours, theirs, perSecond))
		put("writes_"+value+"_p99_vs_"+short, report.Ratios(f.Runs, workPut, ours, theirs, p99))
		for watchers, ratio := range report.Ratios(f.Runs, workWatch, ours, theirs, func(r report.Run) float64 { return r.P50Ms }) {
			if thousands, even := strings.CutSuffix(watchers, "000"); even {
				watchers = thousands + "k"
			}
			all["watch_"+watchers+"_vs_"+short] = ratio
		}
		put("reads_vs_"+short, report.Ratios(f.Runs, workGet, ours, theirs, perSecond))
	}
	put("reads_vs_echo", report.Ratios(f.echoed(), workGet, ours, echo, perSecond))
	used := map[string]float64{}
	for _, r := range f.Runs {
		if r.System == ours && r.Work == workPut {
			used[fmt.Sprint(r.Clients)] = 0
		}
	}
	for clients := range used {
		var values []float64
		for _, r := range f.Runs {
			if r.System == ours && r.Work == workPut && fmt.Sprint(r.Clients) == clients {
				values = append(values, r.CPUMicros)
			}
		}
		used[clients] = report.Median(values)
	}
	put("write_server_cpu_us", used)
	if f.Idle != nil {
		all["idle"] = f.Idle
	}
	if len(f.LeftOut) > 0 {
		all["left_out"] = f.LeftOut
	}
	return all
}

// echoed are the runs with the echo as if it were reads.
func (f *found) echoed() []report.Run {
	var all []report.Run
	for _, r := range f.Runs {
		if r.System == echo {
			r.Work = workGet
		}
		all = append(all, r)
	}
	return all
}

// size in the form of a name.
func size(bytes int) string {
	if bytes%1024 == 0 {
		return fmt.Sprintf("%dk", bytes/1024)
	}
	return fmt.Sprintf("%db", bytes)
}
