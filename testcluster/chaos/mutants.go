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
	hard := fs.Bool("hard", false, "also those that a run may miss; each says why")
	seed := fs.Uint64("seed", uint64(time.Now().UnixNano())%1_000_000_000, "first seed; each mutant has another") //nolint:gosec // any number will do
	keep := fs.Bool("keep", false, "leave the folders of the runs")
	verbose := fs.Bool("v", false, "tell what is done, on standard error")
	if err := fs.Parse(args); err != nil {
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
	if *only == "" && !*hard {
		todo = slices.DeleteFunc(todo, func(m mutant.Mutant) bool { return m.Hard != "" })
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

// one builds a mutant and runs the suite against it until the first violation.
func (o hunt) one(ctx context.Context, m mutant.Mutant, dir string, seed uint64) (mutant.Result, error) {
	result := mutant.Result{Mutant: m.Name, Seed: seed}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return result, err
	}
	hanode := filepath.Join(dir, "hanode")
	if err := mutant.Build(ctx, m, hanode); err != nil {
		return result, err
	}
	self, err := os.Executable()
	if err != nil {
		return result, err
	}
	var out bytes.Buffer
	p, err := proc.Start(proc.Spec{Name: "chaos against " + m.Name, Path: self, Output: &out, Args: []string{
		"-hanode", hanode, "-seed", fmt.Sprint(seed), "-faults", m.Faults, "-duration", m.Limit.String(), "-dir", dir,
		"-chapter", "2", "-until-violation",
	}})
	if err != nil {
		return result, err
	}
	if err := waitProcess(ctx, p, m.Limit+3*time.Minute); err != nil {
		return result, err
	}
	return verdict(result, out.Bytes(), p.ExitCode())
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

// verdict reads the report of a run. A run that could not be done is no catch.
func verdict(result mutant.Result, out []byte, code int) (mutant.Result, error) {
	var r report
	for line := range bytes.Lines(out) {
		if bytes.HasPrefix(line, []byte(`{"seed"`)) {
			if err := json.Unmarshal(line, &r); err != nil {
				return result, fmt.Errorf("read the report: %w", err)
			}
		}
	}
	result.Seconds = r.Seconds
	switch {
	case code == exitViolation && len(r.Violations) > 0:
		v := r.Violations[0]
		result.Caught, result.Check, result.Seconds, result.Detail = true, v.Check, r.FirstViolation, firstLine(v.Text)
	case code == exitOK:
		result.Detail = fmt.Sprintf("%d rounds, nothing was seen", r.Rounds)
	default:
		return result, fmt.Errorf("the run ended with exit code %d: %s", code, lastLines(string(out), 15))
	}
	return result, nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
