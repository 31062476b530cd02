// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"
	"time"

	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

// report is the JSON object that a run ends with.
type report struct {
	Seed    uint64  `json:"seed"`
	Seconds float64 `json:"duration_s"`
	Nodes   int     `json:"nodes"`
	Groups  int     `json:"groups"`
	Profile string  `json:"profile"`
	// Root: hosts had namespaces of their own, and with Disks also disks.
	Root   bool `json:"root"`
	Disks  bool `json:"disks"`
	Rounds int  `json:"rounds"`
	// Failovers were caused by loss or by force; switchovers were planned; regrants
	// went back to the same instance.
	Failovers   int                    `json:"failovers"`
	Switchovers int                    `json:"switchovers"`
	Regrants    int                    `json:"regrants"`
	Faults      map[string]*kindReport `json:"faults"`
	// Elections are changes of the Raft term, seen at chapters' ends.
	Elections int `json:"elections"`
	// Found is how many violations there were, Violations the first ones of each check.
	Found      int                `json:"violations_found"`
	Violations []record.Violation `json:"violations"`
	False      int                `json:"false_failovers"`
	// Observed are the hours in which a failover without a cause would have been told
	// from one that a fault caused; what could be told of some groups only counts in
	// part. FalsePerHour is by them.
	Observed     float64 `json:"observed_hours"`
	FalsePerHour float64 `json:"false_failovers_per_hour"`
	Operations   int     `json:"operations"`
	Acknowledged int     `json:"acknowledged"`
	Unknown      int     `json:"unknown"`
	Lost         int     `json:"lost"`
	Duplicated   int     `json:"duplicated"`
	Undecided    int     `json:"linearizability_undecided"`
	// Resumes and Resyncs are of session watches: the latter had to begin anew.
	Resumes int `json:"watch_resumes"`
	Resyncs int `json:"watch_resyncs"`
	// AppendsRead are the acknowledged appends that were read back, of which Lost and
	// Duplicated count.
	AppendsRead int `json:"appends_read_back"`
	// LeaksJudged are the processes that lived long enough to tell a leak.
	LeaksJudged int `json:"leaks_judged"`
	// Strange are errors that clients are not prepared for.
	Strange     int `json:"strange_errors"`
	WatchEvents int `json:"watch_events"`
	Requests    int `json:"requests"`
	Served      int `json:"served"`
	// NotInjected are faults, each kind once a round, that were not done, or not in full.
	NotInjected   int      `json:"not_injected"`
	SkippedNoRoot []string `json:"skipped_without_root,omitempty"`
	// Folder has the logs and histories; it is left if something was wrong.
	Folder string `json:"folder,omitempty"`
	// Result is ok, violation, broken (the run could not be done, see Error) or
	// interrupted.
	Result string `json:"result"`
	Error  string `json:"error,omitempty"`
}

// kindReport is what one kind of fault did. A round with two faults counts under
// both.
type kindReport struct {
	Count int `json:"count"`
	// NotInjected are those of Count in which it could not be done, or not in full.
	NotInjected int `json:"not_injected,omitempty"`
	Failovers   int `json:"failovers"`
	// ClientGap is the longest time in a round without an answer, of the group that
	// had the longest.
	ClientGap quantiles `json:"client_gap_ms"`
	// Unavailable is the sum of all times above 100 ms without an answer, of all
	// groups.
	Unavailable int64 `json:"unavailable_ms"`
	// NewLeader is the time until another leader had committed a write, for faults
	// that take the leader away.
	NewLeader *quantiles `json:"new_leader_ms,omitempty"`

	gaps, leaders []float64
}

type quantiles struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

func quantilesOf(all []float64) quantiles {
	if len(all) == 0 {
		return quantiles{}
	}
	all = slices.Sorted(slices.Values(all))
	at := func(q float64) float64 { return all[min(len(all)-1, int(q*float64(len(all))))] }
	return quantiles{P50: at(0.5), P99: at(0.99), Max: all[len(all)-1]}
}

// unavailableAbove is the time without an answer from which on it counts.
const unavailableAbove = 100 * time.Millisecond

// gaps are the longest time without an answer in a window, and the sum of those
// that count, of one group.
func gaps(requests []record.Request, group string, from, until clock.Instant) (longest, sum time.Duration) {
	last := from
	note := func(at clock.Instant) {
		gap := at.Sub(last)
		longest = max(longest, gap)
		if gap > unavailableAbove {
			sum += gap
		}
		last = at
	}
	for _, r := range requests {
		if r.Group == group && r.Error == "" && r.Return >= last && r.Return <= until {
			note(r.Return)
		}
	}
	note(until)
	return longest, sum
}

// observed is the time within began and ended in which nothing was broken that may
// move a group's primary, as the mean of all groups.
func observed(faults []record.Fault, groups []string, began, ended clock.Instant) time.Duration {
	sum := time.Duration(0)
	for _, g := range groups {
		sum += ended.Sub(began)
		for _, f := range faults {
			if !f.Harmless && !slices.Contains(f.Spared, g) {
				sum -= f.Whole.Sub(f.Began)
			}
		}
	}
	return sum / time.Duration(max(1, len(groups)))
}

// addRound counts a round under the kinds of its faults.
func (r *report) addRound(f record.Fault, groups []string, requests []record.Request, moved []*pb.Transition, newLeader time.Duration) {
	var longest, sum time.Duration
	for _, g := range groups {
		l, s := gaps(requests, g, f.Began, f.Whole)
		longest, sum = max(longest, l), sum+s
	}
	for kind := range strings.SplitSeq(f.Kind, "+") {
		k := r.Faults[kind]
		if k == nil {
			k = &kindReport{}
			r.Faults[kind] = k
		}
		k.Count++
		if slices.Contains(f.NotInjected, kind) {
			k.NotInjected++
		}
		k.gaps = append(k.gaps, millis(longest))
		k.Unavailable += sum.Milliseconds()
		if newLeader > 0 {
			k.leaders = append(k.leaders, millis(newLeader))
			q := quantilesOf(k.leaders)
			k.NewLeader = &q
		}
		for _, t := range moved {
			if isFailover(t) {
				k.Failovers++
			}
		}
		k.ClientGap = quantilesOf(k.gaps)
	}
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func isFailover(t *pb.Transition) bool {
	return t.GetKind() == pb.TransitionKind_TRANSITION_KIND_FAILOVER || t.GetKind() == pb.TransitionKind_TRANSITION_KIND_FORCED
}

// movedIn are the transitions with epochs after those of one fault's beginning,
// and not after those of the next one's.
func movedIn(all []*pb.Transition, from, until map[string]uint64) []*pb.Transition {
	var found []*pb.Transition
	for _, t := range all {
		end, ok := until[t.GetGroup()]
		if t.GetEpoch() > from[t.GetGroup()] && (until == nil || !ok || t.GetEpoch() <= end) {
			found = append(found, t)
		}
	}
	return found
}
