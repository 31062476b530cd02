// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/check"
	"github.com/hastate/hastate/testcluster/chaos/load"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

// linearizeTimeout bounds the search for an order of one session's operations.
const linearizeTimeout = 20 * time.Second

// check checks a chapter whose load has stopped and whose cluster is whole, or
// did not become whole.
func (r *run) check(ctx context.Context, l *load.Load) error {
	ops := l.Ops(0)
	if err := r.atRest(ctx); err != nil {
		return err
	}
	linear := check.Linearizable(ops, linearizeTimeout)
	r.add(linear.Violations)
	if len(linear.Violations) > 0 {
		if _, err := linear.WritePictures(r.dir); err != nil {
			return err
		}
	}
	counts, found := check.ExactlyOnce(ops)
	r.add(found)
	if n := l.Strange(); n > 0 {
		r.say("  %d writes ended with errors that clients are not prepared for", n)
		r.report.Strange += n
	}
	events := l.SessionEvents(0)
	r.add(check.Watches(events, ops, l.Final()))
	r.add(check.GroupWatch(l.GroupEvents(0)))
	r.judgeCauses()
	r.count(ops, counts, linear, events)
	proof := check.ProofInput{
		Groups: r.stage.groups, Callers: true, Requests: l.Requests(0), GroupEvents: l.GroupEvents(0), SessionEvents: events,
		Ops: ops, Once: counts, Undecided: len(linear.Undecided),
	}
	return r.checkLeases(ops, proof)
}

// atRest waits until all nodes hold the same state, which is then the end of the
// chapter, and looks at what is kept of it. A cluster that is not whole is left.
func (r *run) atRest(ctx context.Context) error {
	if r.broken() {
		return nil
	}
	err := r.stage.sameState(ctx)
	if d := (*differ)(nil); errors.As(err, &d) {
		r.violate("convergence", "%v", err)
		return nil
	}
	if err != nil {
		r.violate("convergence", "%v\n%s", err, r.stage.tails())
		return nil
	}
	r.leaks.look(ctx, r.stage)
	r.countElections(ctx)
	return r.keepTransitions(ctx)
}

func (r *run) count(ops []record.Op, c check.Counts, l *check.Linearizability, events []record.SessionEvent) {
	r.report.Operations += len(ops)
	for _, op := range ops {
		switch {
		case op.Outcome == record.Unknown:
			r.report.Unknown++
		case op.Outcome == record.OK && op.Kind != record.Get:
			r.report.Acknowledged++
		}
	}
	r.report.Lost += c.Lost
	r.report.Duplicated += c.Duplicated
	r.report.Undecided += len(l.Undecided)
	r.report.WatchEvents += len(events)
	r.report.Resumes += check.Resumes(events)
	r.report.Resyncs += check.Resyncs(events)
	r.report.AppendsRead += c.Acknowledged
}

// countElections adds up how often the term has changed since the last look.
func (r *run) countElections(ctx context.Context) {
	term := 0.0
	for _, h := range r.stage.members {
		if t, err := r.stage.metric(ctx, h, "hastate_raft_term"); err == nil {
			term = max(term, t)
		}
	}
	if r.terms > 0 && term > r.terms {
		r.report.Elections += int(term - r.terms)
	}
	r.terms = max(r.terms, term)
}

// keepTransitions reads what the cluster still knows of its history.
func (r *run) keepTransitions(ctx context.Context) error {
	all, err := r.stage.transitions(ctx)
	if err != nil {
		return err
	}
	r.history.keep(all)
	return nil
}

// keep adds transitions to those that were read before.
func (h *history) keep(all []*pb.Transition) {
	for _, t := range all {
		of := h.transitions[t.GetGroup()]
		if of == nil {
			of = map[uint64][]*pb.Transition{}
			h.transitions[t.GetGroup()] = of
		}
		forms := of[t.GetNumber()]
		if n := len(forms); n == 0 || !proto.Equal(forms[n-1], t) {
			of[t.GetNumber()] = append(forms, t)
		}
	}
}

// allTransitions are the transitions, each as it was read last.
func (r *run) allTransitions() []*pb.Transition {
	var all []*pb.Transition
	for _, forms := range r.formsOfTransitions() {
		all = append(all, forms[len(forms)-1])
	}
	return all
}

// formsOfTransitions are the transitions in order, each in all its forms.
func (r *run) formsOfTransitions() [][]*pb.Transition {
	var all [][]*pb.Transition
	for _, g := range slices.Sorted(maps.Keys(r.history.transitions)) {
		of := r.history.transitions[g]
		for _, n := range slices.Sorted(maps.Keys(of)) {
			all = append(all, of[n])
		}
	}
	return all
}

// checkLeases checks what holders and model servers have written down since the
// run began: they outlive chapters.
func (r *run) checkLeases(ops []record.Op, proof check.ProofInput) error {
	leases, err := readAll[record.Lease](r.dir, "leases-*.jsonl")
	if err != nil {
		return err
	}
	served, err := readAll[record.Served](r.dir, "served-*.jsonl")
	if err != nil {
		return err
	}
	promotions, err := readAll[record.Promotion](r.dir, "promotions-*.jsonl")
	if err != nil {
		return err
	}
	r.report.Served = len(served)
	if proof.Leases, proof.Served, proof.Promotions = leases, served, promotions; !r.broken() {
		r.add(check.Proof(proof))
	}
	led, err := leaders(filepath.Join(r.dir, "logs"))
	if err != nil {
		return err
	}
	r.add(led)
	r.add(check.Promotions(r.allTransitions(), r.history.events, promotions))
	r.add(check.OnePrimary(leases, served, r.history.events, ops, r.history.requests))
	return nil
}

func readAll[T any](dir, pattern string) ([]T, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "records", pattern))
	if err != nil {
		return nil, err
	}
	var all []T
	for _, path := range paths {
		some, err := record.Read[T](path)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	return all, nil
}

// finish checks what only the whole run tells, and counts.
func (r *run) finish(ctx context.Context) {
	all := r.allTransitions()
	if !r.broken() && ctx.Err() == nil {
		r.add(check.History(slices.Concat(r.formsOfTransitions()...), r.history.faults, check.HistoryOptions{Events: r.history.events, Lease: r.draw.lease}))
	}
	var causeless []record.Violation
	if ctx.Err() == nil { // a round that was interrupted is among the faults of none
		causeless = r.judgeCauses()
	}
	r.report.False = len(causeless)
	now := clock.Boot{}.Now()
	r.report.Observed = observed(r.history.faults, r.stage.groups, now.Add(-time.Since(r.began)), now).Hours()
	r.report.FalsePerHour = float64(len(causeless)) / max(r.report.Observed, 1e-9)
	r.add(r.leaks.grown())
	r.report.LeaksJudged = r.leaks.judged()
	if r.report.Rounds == 0 && ctx.Err() == nil {
		r.violate("proof", "no round was done: nothing is proved")
	}
	r.report.Requests = len(r.history.requests)
	slices.SortFunc(r.history.requests, func(a, b record.Request) int { return int(a.Return - b.Return) })
	for i, f := range r.history.faults {
		var until map[string]uint64
		if i+1 < len(r.history.faults) {
			until = r.history.faults[i+1].Epochs
		}
		moved := movedIn(all, f.Epochs, until)
		requests := within(r.history.requests, f.Began, f.Whole)
		r.judgeDark(f, requests)
		r.report.addRound(f, r.stage.groups, requests, moved, r.history.newLeader[f.Round])
		for _, t := range moved {
			switch {
			case isFailover(t):
				r.report.Failovers++
			case t.GetKind() == pb.TransitionKind_TRANSITION_KIND_SWITCHOVER:
				r.report.Switchovers++
			case t.GetKind() == pb.TransitionKind_TRANSITION_KIND_REGRANT:
				r.report.Regrants++
			}
		}
	}
}

// judgeCauses finds the transitions so far that had no cause.
func (r *run) judgeCauses() []record.Violation {
	causeless := check.FalseFailovers(r.allTransitions(), r.history.faults, r.history.events)
	r.add(causeless)
	return causeless
}

// within are the requests that were answered in a window; all are in order of
// their answers.
func within(all []record.Request, from, until clock.Instant) []record.Request {
	by := func(r record.Request, at clock.Instant) int { return int(r.Return - at) }
	first, _ := slices.BinarySearchFunc(all, from, by)
	last, _ := slices.BinarySearchFunc(all, until+1, by)
	return all[first:last]
}
