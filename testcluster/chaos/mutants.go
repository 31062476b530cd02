// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hastate/hastate/internal/proc"
	"github.com/hastate/hastate/testcluster/chaos/mutant"
)

// mutantsCommand runs the suite against each seeded bug, and prints a table: it
// must catch every one within its limit.
func mutantsCommand(ctx context.Context, args []string) int {
	fs := flag.NewFlagSet("chaos mutants", flag.ContinueOnError)
	only := fs.String("only", "", "these alone, comma-separated")
	quick := fs.Bool("quick", false, "only those with a limit of a minute or less")
	seed := fs.Uint64("seed", uint64(time.Now().UnixNano())%1_000_000_000, "first seed; each mutant has another") //nolint:gosec // any number will do
	keep := fs.Bool("keep", false, "leave the folders of the runs")
	verbose := fs.Bool("v", false, "tell what is done, on standard error")
	if err := fs.Parse(args); err != nil {
		return exitUsage
	}
	if fs.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "chaos mutants: argument %q is not known: name mutants with -only\n", fs.Arg(0))
		return exitUsage
	}
	o := hunt{seed: *seed, keep: *keep, progress: io.Discard}
	if *verbose {
		o.progress = os.Stderr
	}
	todo := mutant.List()
	if *only != "" {
		todo = nil
		for name := range strings.SplitSeq(*only, ",") {
			m, err := mutant.Find(name)
			if err != nil {
				fmt.Fprintln(os.Stderr, "chaos mutants:", err)
				return exitUsage
			}
			todo = append(todo, m)
		}
	}
	if *quick {
		todo = slices.DeleteFunc(todo, func(m mutant.Mutant) bool { return m.Limit > time.Minute })
	}
	results, err := o.all(ctx, todo)
	if tableErr := mutant.WriteTable(os.Stdout, results); tableErr != nil {
		err = errors.Join(err, tableErr)
	}
	missed := slices.DeleteFunc(slices.Clone(results), func(r mutant.Result) bool { return r.Caught })
	fmt.Printf("%d of %d mutants caught\n", len(results)-len(missed), len(todo))
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos mutants:", err)
		return exitBroken
	}
	if len(missed) > 0 || len(results) < len(todo) {
		return exitViolation
	}
	return exitOK
}

// hunt runs this program against mutants, one after the other.
type hunt struct {
	seed     uint64
	keep     bool
	progress io.Writer
}

func (o hunt) all(ctx context.Context, todo []mutant.Mutant) (results []mutant.Result, err error) {
	dir, err := os.MkdirTemp("", "hastate-mutants-")
	if err != nil {
		return nil, fmt.Errorf("make a scratch folder: %w", err)
	}
	defer func() {
		if o.keep {
			fmt.Fprintln(o.progress, "left in", dir)
			return
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	for i, m := range todo {
		r, err := o.one(ctx, m, filepath.Join(dir, m.Name), o.seed+uint64(i)) //nolint:gosec // small
		if err != nil {
			return results, fmt.Errorf("%s: %w", m.Name, err)
		}
		fmt.Fprintf(o.progress, "%-28s caught %v by %s after %.0f s (seed %d): %s\n", m.Name, r.Caught, r.Check, r.Seconds, r.Seed, r.Detail)
		results = append(results, r)
	}
	return results, nil
}

// one builds a mutant and runs the suite against it until a check catches it that
// counts for it. A check that a busy machine can trip counts only if the unchanged
// hanode passes it in as long a run with the same seed.
func (o hunt) one(ctx context.Context, m mutant.Mutant, dir string, seed uint64) (mutant.Result, error) {
	result := mutant.Result{Mutant: m.Name, Seed: seed}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return result, err
	}
	hanode := filepath.Join(dir, "hanode")
	if err := mutant.Build(ctx, m, hanode); err != nil {
		return result, err
	}
	count := counts(m)
	args := []string{
		"-seed", fmt.Sprint(seed), "-faults", m.Faults, "-dir", dir, "-chapter", "2", "-until", strings.Join(count, ","),
	}
	out, code, err := o.run(ctx, m.Limit, append(args, "-hanode", hanode, "-duration", m.Limit.String())...)
	if err != nil {
		return result, err
	}
	if result, err = verdict(result, out, code, count); err != nil || !result.Caught || !slices.Contains(noisy, result.Check) {
		return result, err
	}
	span := time.Duration(max(result.Seconds, 10) * float64(time.Second))
	out, code, err = o.run(ctx, span, append(args, "-duration", span.String())...)
	if err != nil {
		return result, err
	}
	control, err := verdict(mutant.Result{Mutant: m.Name, Seed: seed}, out, code, count)
	if err == nil && control.Caught {
		result.Caught, result.Detail = false, "the unchanged hanode is caught too: "+control.Detail
	}
	return result, err
}

// noisy are the checks that a busy machine can trip.
var noisy = []string{mutant.Convergence, mutant.Availability, mutant.FalseFailover, "exit", "leak", "operator"}

// counts are the checks that count as a catch of a mutant: those that nothing but a
// bug trips, and the one that is expected.
func counts(m mutant.Mutant) []string {
	all := []string{mutant.Linearizability, mutant.OnePrimary, mutant.ExactlyOnce, mutant.Watch, mutant.Promotion, mutant.History, "one-leader"}
	switch m.Check {
	case mutant.Durability: // it shows as a write that is gone, or as states that differ
		all = append(all, mutant.Convergence)
	case mutant.Availability:
		all = append(all, mutant.Availability, mutant.Convergence)
	}
	if !slices.Contains(all, m.Check) {
		all = append(all, m.Check)
	}
	return all
}

// run runs this program and returns what it printed.
func (o hunt) run(ctx context.Context, limit time.Duration, args ...string) (out []byte, code int, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, 0, err
	}
	var printed bytes.Buffer
	p, err := proc.Start(proc.Spec{Name: "chaos", Path: self, Output: &printed, Args: args})
	if err != nil {
		return nil, 0, err
	}
	if err := waitProcess(ctx, p, limit+3*time.Minute); err != nil {
		return nil, 0, err
	}
	return printed.Bytes(), p.ExitCode(), nil
}

// waitProcess waits for a process, ends it with ctx, and kills it when it takes
// longer than it may.
func waitProcess(ctx context.Context, p *proc.Process, most time.Duration) error {
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-p.Exited():
		return nil
	case <-ctx.Done():
		return errors.Join(ctx.Err(), p.Stop(30*time.Second))
	case <-timer.C:
		return errors.Join(fmt.Errorf("it did not end within %v: %s", most, lastLines(p.Tail(), 10)), p.Signal(syscall.SIGQUIT), p.Kill())
	}
}

// verdict reads the report of a run. A run that could not be done is no catch, nor
// is a violation of a check that does not count.
func verdict(result mutant.Result, out []byte, code int, count []string) (mutant.Result, error) {
	var r report
	for line := range bytes.Lines(out) {
		if bytes.HasPrefix(line, []byte(`{"seed"`)) {
			if err := json.Unmarshal(line, &r); err != nil {
				return result, fmt.Errorf("read the report: %w", err)
			}
		}
	}
	if code != exitOK && (code != exitViolation || len(r.Violations) == 0) {
		return result, fmt.Errorf("the run ended with exit code %d: %s", code, lastLines(string(out), 15))
	}
	result.Seconds, result.Detail = r.Seconds, fmt.Sprintf("%d rounds, nothing was seen that counts", r.Rounds)
	for _, v := range r.Violations {
		if slices.Contains(count, v.Check) {
			result.Caught, result.Check, result.Detail = true, v.Check, firstLine(v.Text)
			break
		}
	}
	return result, nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
