// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hastate/hastate/election"
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/load"
	"github.com/hastate/hastate/testcluster/chaos/mutant"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

// run is one run of the suite.
type run struct {
	// images is the folder of the disks.
	images   string
	o        options
	dir      string
	stage    *stage
	draw     *draw
	faults   []fault
	began    time.Time
	report   report
	history  history
	leaks    leaks
	chapters int
	// told is how many violations of each check there were.
	told map[string]int
	// seen are all violations, lost is set by the first one after which there is
	// nothing more to learn: the cluster did not come back.
	seen map[record.Violation]bool
	lost bool
	// ended: what the run was to go on until was found.
	ended bool
	// written are the faults, for people who look at the folder.
	written *record.File[record.Fault]
	// terms is the newest Raft term that was seen.
	terms float64
}

// history is what was recorded of the whole run; a chapter's load keeps the rest.
type history struct {
	faults []record.Fault
	// newLeader is the time to another leader, by round, for faults that take the
	// leader away.
	newLeader map[int]time.Duration
	// transitions by group and number: the cluster keeps the newest only. Each is there
	// in every form in which it was read, the last one last: the check compares them.
	transitions map[string]map[uint64][]*pb.Transition
	events      []record.GroupEvent
	requests    []record.Request
}

// runAll makes the folder of the run, runs, and leaves the folder if something was
// wrong.
func runAll(ctx context.Context, o options) (report, error) {
	r := &run{o: o, report: report{
		Seed: o.seed, Nodes: o.nodes, Groups: o.groups, Profile: o.profile, Root: o.root, Disks: o.root && o.disks,
		Faults: map[string]*kindReport{}, Violations: []record.Violation{},
	}}
	var err error
	if r.dir, err = os.MkdirTemp(o.dir, "hastate-chaos-"); err != nil {
		return r.report, fmt.Errorf("make the folder of the run: %w", err)
	}
	if r.images, err = os.MkdirTemp(o.images, "hastate-chaos-disks-"); err != nil {
		return r.report, fmt.Errorf("make the folder of the disks: %w", err)
	}
	err = errors.Join(r.all(ctx), os.RemoveAll(r.images))
	if ctx.Err() != nil {
		err = errors.Join(errors.New("interrupted"), err)
	}
	if err != nil || len(r.report.Violations) > 0 || o.keep {
		r.report.Folder = r.dir
		return r.report, err
	}
	return r.report, os.RemoveAll(r.dir)
}

func (r *run) all(ctx context.Context) (err error) {
	profile, err := election.ProfileByName(r.o.profile)
	if err != nil {
		return err
	}
	r.draw = newDraw(r.o.seed, profile.Lease)
	if r.faults, r.report.SkippedNoRoot, err = chosen(r.o.faults, r.o.root); err != nil {
		return err
	}
	r.leaks, r.history.newLeader = leaks{}, map[int]time.Duration{}
	r.history.transitions = map[string]map[uint64][]*pb.Transition{}
	if err := os.MkdirAll(filepath.Join(r.dir, "records"), 0o755); err != nil { //nolint:gosec // for people to look at
		return err
	}
	if r.written, err = record.NewFile[record.Fault](filepath.Join(r.dir, "records", "faults.jsonl")); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.written.Close()) }()
	if r.stage, err = openStage(ctx, r.o, r.dir, r.images, r.say); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.stage.close()) }()
	if err := r.stage.start(ctx); err != nil {
		return fmt.Errorf("start the cluster: %w\n%s", err, r.stage.tails())
	}
	burning, err := startBurners(r.o, r.diskFolder())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, burning.stop()) }()

	r.countElections(ctx) // from here on
	r.began = time.Now()
	fmt.Fprintf(os.Stderr, "chaos: seed %d, folder %s\n", r.o.seed, r.dir) // also if it is killed
	for more := true; more && err == nil && ctx.Err() == nil; {
		more, err = r.chapter(ctx)
	}
	r.report.Seconds = time.Since(r.began).Round(time.Millisecond).Seconds()
	r.finish(ctx)
	return err
}

// diskFolder is on the file system that the nodes' data is on.
func (r *run) diskFolder() string {
	if r.o.root && r.o.disks {
		return r.images
	}
	return filepath.Join(r.dir, "disks")
}

// over says that no further round shall begin.
func (r *run) over() bool {
	return time.Since(r.began) >= r.o.duration || r.ended
}

// chapter is a load with some rounds under it, and then all checks.
func (r *run) chapter(ctx context.Context) (more bool, err error) {
	r.chapters++
	l, err := load.Start(ctx, load.Options{
		Endpoints: r.stage.rig.Endpoints(), Groups: r.stage.groups, Dir: r.dir, Seed: r.draw.Uint64(), Think: r.o.think, Servers: r.stage.servers(),
		Prefix: fmt.Sprintf("c%d-", r.chapters), DialOptions: r.stage.dial(),
	})
	if err != nil {
		return false, fmt.Errorf("start the load: %w", err)
	}
	stop := sync.OnceValue(func() error {
		timeout := stopTimeout
		if r.broken() {
			timeout = brokenStopTimeout
		}
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		return l.Stop(ctx, addresses(r.stage.members)...)
	})
	defer func() { _ = stop() }() // it was told before, or something worse was
	begin, cancel := context.WithTimeout(ctx, wholeTimeout)
	defer cancel()
	if err := l.Progress(begin, 20); err != nil && ctx.Err() == nil {
		r.violate("convergence", "nothing is acknowledged: %v\n%s", err, r.stage.tails())
	}
	for range r.o.chapter {
		if r.over() || r.lost || ctx.Err() != nil {
			break
		}
		if err := r.round(ctx); err != nil && ctx.Err() == nil {
			r.violate("convergence", "%v\n%s", err, r.stage.tails())
			break
		}
	}
	if err := stop(); err != nil && !r.broken() && ctx.Err() == nil {
		r.violate(mutant.Availability, "the load does not come to its end: %v", err)
	}
	r.history.events = append(r.history.events, l.GroupEvents(0)...)
	r.history.requests = append(r.history.requests, l.Requests(0)...)
	if ctx.Err() != nil { // nothing is at rest, or whole: nothing is judged
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), brokenStopTimeout)
		defer cancel()
		r.countElections(late)
		_ = r.keepTransitions(late) // for the counts; what is down tells nothing
		return false, nil
	}
	if err := r.check(ctx, l); err != nil {
		return false, err
	}
	return !r.over() && !r.broken(), nil
}

// stopTimeout bounds the end of a load on a whole cluster, brokenStopTimeout on one
// that did not come back, which may have nothing to say.
const (
	stopTimeout       = 30 * time.Second
	brokenStopTimeout = 5 * time.Second
)

// broken says that the cluster did not come back: nothing more can be learnt.
func (r *run) broken() bool { return r.lost }

// round breaks something, puts it right, and waits until all is whole.
func (r *run) round(ctx context.Context) error {
	r.report.Rounds++
	epochs, err := r.stage.epochs(ctx)
	if err != nil {
		return fmt.Errorf("round %d: before anything was broken: %w", r.report.Rounds, err)
	}
	f := record.Fault{Round: r.report.Rounds, Epochs: epochs, Began: clock.Boot{}.Now(), Harmless: true}
	var picked []fault
	if len(r.faults) == 0 { // a run without faults
		f.Kind, f.What = "none", "nothing is broken"
		if err := sleep(ctx, min(10*time.Second, r.o.duration-time.Since(r.began))); err != nil {
			return err
		}
	} else {
		d := r.draw.round(r.report.Rounds)
		picked = d.pick(r.faults, r.o.pairs)
		r.breakAll(ctx, d, picked, &f)
	}
	f.Healed = clock.Boot{}.Now()
	if err := r.stage.heal(ctx); err != nil {
		return fmt.Errorf("round %d (%s): put it right: %w", f.Round, f.What, err)
	}
	err = r.stage.waitWhole(ctx)
	r.judgeExits(picked, f)
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("round %d (%s): %w", f.Round, f.What, err)
	}
	f.Whole = clock.Boot{}.Now()
	if f.WholeEpochs, err = r.stage.epochs(ctx); err != nil && ctx.Err() == nil {
		return fmt.Errorf("round %d (%s): after it was whole: %w", f.Round, f.What, err)
	}
	r.history.faults = append(r.history.faults, f)
	if err := r.written.Write(f); err != nil {
		return err
	}
	r.say("%4d %6.1f s  %-28s %s (whole %v after it was put right)", f.Round, time.Since(r.began).Seconds(), f.Kind, f.What,
		f.Whole.Sub(f.Healed).Round(time.Millisecond))
	return nil
}

// breakAll breaks what was picked, holds it, and does what comes after.
func (r *run) breakAll(ctx context.Context, d *draw, picked []fault, f *record.Fault) {
	var all []broken
	var kinds, whats []string
	hold := time.Duration(0)
	for _, p := range picked {
		b, err := p.inject(ctx, r.stage, d)
		kinds = append(kinds, p.kind)
		f.Harmless = f.Harmless && p.harmless
		if err != nil {
			r.notInjected(f, p.kind)
			r.say("  %s: %v", p.kind, err)
			r.judgeOrder(picked, f.Round, err)
		}
		if b.what == "" {
			b.what = p.kind + " could not be done"
		}
		whats = append(whats, b.what)
		f.Lost = append(f.Lost, b.lost...)
		hold = max(hold, b.hold)
		all = append(all, b)
		if b.leader != nil && err == nil {
			r.timeNewLeader(ctx, b, f)
		}
	}
	f.Kind, f.What = strings.Join(kinds, "+"), strings.Join(whats, "; ")
	if len(picked) == 1 {
		f.Spared = r.spared(picked[0], all[0])
	}
	_ = sleep(ctx, hold-clock.Boot{}.Now().Sub(f.Began)) // ended by ctx: so is all
	for i, b := range slices.Backward(all) {
		if b.then == nil {
			continue
		}
		if err := b.then(ctx); err != nil {
			r.say("  %s: %v", b.what, err)
			r.notInjected(f, picked[i].kind)
			r.judgeOrder(picked, f.Round, err)
		}
	}
}

// notInjected counts a fault that could not be done in full, once.
func (r *run) notInjected(f *record.Fault, kind string) {
	if !slices.Contains(f.NotInjected, kind) {
		f.NotInjected = append(f.NotInjected, kind)
		r.report.NotInjected++
	}
}

// spared are the groups that a fault, being the only one, cannot touch.
func (r *run) spared(p fault, b broken) []string {
	if !p.aimed || len(b.lost) == 0 {
		return b.spared
	}
	return slices.DeleteFunc(slices.Clone(r.stage.groups), func(g string) bool { return slices.Contains(b.lost, g) })
}

// timeNewLeader waits for another leader that answers, as long as the fault holds.
func (r *run) timeNewLeader(ctx context.Context, b broken, f *record.Fault) {
	timed, cancel := context.WithTimeout(ctx, b.hold)
	defer cancel()
	if err := r.stage.waitNewLeader(timed, b.leader); err != nil {
		if ctx.Err() == nil {
			r.violate("availability", "round %d: no new leader for %v: %s: %v", f.Round, b.hold, b.what, err)
		}
		return
	}
	took := clock.Boot{}.Now().Sub(f.Began)
	r.history.newLeader[f.Round] = took
	if most := r.newLeaderWithin(); took > most {
		r.violate("availability", "round %d: a new leader served only after %v, more than %v: %s", f.Round, took, most, b.what)
	}
}

// darkLeases is for how many leases a group may be without an answer when one
// thing is broken. It is far above what a failover takes, so that it is no measure
// of speed: what takes longer waits for something that does not come.
const darkLeases = 6

// judgeDark: one fault does not keep a group from being served.
func (r *run) judgeDark(f record.Fault, requests []record.Request) {
	if strings.Contains(f.Kind, "+") || slices.ContainsFunc(faults(), func(known fault) bool { return known.kind == f.Kind && known.dark }) {
		return
	}
	for _, g := range r.stage.groups {
		if longest, _ := gaps(requests, g, f.Began, f.Whole); longest > darkLeases*r.draw.lease {
			r.violate(mutant.Availability, "round %d (%s): group %s was not served for %v, more than %d leases", f.Round, f.What, g, longest.Round(time.Millisecond), darkLeases)
		}
	}
}

// newLeaderWithin is how long it may take until another leader serves: two and a
// half leases, 3 s at lan.
func (r *run) newLeaderWithin() time.Duration { return r.draw.lease * 5 / 2 }

// judgeExits: a process ends by itself only where a fault explains it.
func (r *run) judgeExits(picked []fault, f record.Fault) {
	ended := r.stage.ended
	r.stage.ended = nil
	told := map[string]bool{} // one that is started again and again fills no report
	for _, e := range ended {
		if told[e.id] || slices.ContainsFunc(picked, func(p fault) bool { return p.exits != nil && p.exits(e.tail, e.code) }) {
			continue
		}
		told[e.id] = true
		r.violate("exit", "round %d (%s): %s ended by itself with exit code %d:\n%s", f.Round, f.What, e.id, e.code, e.tail)
	}
}

func (r *run) violate(check, format string, args ...any) {
	r.add([]record.Violation{{Check: check, Text: fmt.Sprintf(format, args...)}})
}

func (r *run) add(found []record.Violation) {
	if r.seen == nil {
		r.seen, r.told = map[record.Violation]bool{}, map[string]int{}
	}
	for _, v := range found {
		if r.seen[v] {
			continue // records that outlive chapters are checked again at the end of each
		}
		r.seen[v] = true
		r.lost = r.lost || v.Check == "convergence"
		r.ended = r.ended || slices.Contains(r.o.until, "any") || slices.Contains(r.o.until, v.Check)
		r.report.Found++
		r.say("VIOLATION %s: %s", v.Check, v.Text)
		if r.told[v.Check]++; r.told[v.Check] <= maxViolations {
			r.report.Violations = append(r.report.Violations, v)
		}
	}
}

// maxViolations bounds the report, for each check: one that finds much leaves room for
// the others.
const maxViolations = 10

func (r *run) say(format string, args ...any) { fmt.Fprintf(r.o.progress, format+"\n", args...) }
