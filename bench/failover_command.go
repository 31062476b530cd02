// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/hastate/hastate/bench/failover"
	"github.com/hastate/hastate/bench/system"
	"github.com/hastate/hastate/election"
)

const (
	// failoverVerb measures failovers, modelVerb is the model server of one.
	failoverVerb, modelVerb = "failover", "model"
)

// failoverPlan is what is to be measured.
type failoverPlan struct {
	profiles, cases []string
	options         failover.Options
	details         string
}

// runFailover is main of the verb failover.
func runFailover(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	p, err := parseFailover(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(stderr, "bench failover:", err)
		return exitUsage
	}
	p.options.Progress = stderr
	found, err := p.measure(ctx)
	if len(found) > 0 {
		err = errors.Join(err, failoverTable(stderr, found))
	}
	if p.details != "" {
		b, marshalErr := json.MarshalIndent(found, "", "  ")
		if marshalErr == nil {
			marshalErr = os.WriteFile(p.details, append(b, '\n'), 0o600)
		}
		err = errors.Join(err, marshalErr)
	}
	if err != nil {
		fmt.Fprintln(stderr, "bench failover:", err)
		return 1
	}
	all := map[string]map[string]failover.Figures{}
	for _, f := range found {
		if all[f.Profile] == nil {
			all[f.Profile] = map[string]failover.Figures{}
		}
		all[f.Profile][f.Case] = f.Figures(func(r failover.Round) float64 { return r.ServedMs })
	}
	if err := json.NewEncoder(stdout).Encode(all); err != nil {
		fmt.Fprintln(stderr, "bench failover:", err)
		return 1
	}
	return 0
}

func parseFailover(args []string, stderr io.Writer) (failoverPlan, error) {
	p := failoverPlan{}
	fs := flag.NewFlagSet("bench failover", flag.ContinueOnError)
	fs.SetOutput(stderr)
	profiles := fs.String("profiles", election.Lan.Name+","+election.Fast.Name, "timeouts of the nodes")
	cases := fs.String("cases", strings.Join(failover.Cases(), ","), "what is broken")
	fs.IntVar(&p.options.Rounds, "rounds", 200, "how often, for each profile and case")
	fs.StringVar(&p.options.LogStore, "log-store", "", "how the nodes keep their logs: bolt or segments (default: hanode's)")
	fs.StringVar(&p.options.Hanode, "hanode", "", "program to measure (default: built from this checkout)")
	fs.StringVar(&p.options.Dir, "dir", "", "where the data is, on the disk to be measured (default: the folder for temporary files)")
	fs.StringVar(&p.details, "details", "", "file for every single round, as JSON")
	if err := fs.Parse(args); err != nil {
		return p, err
	}
	if fs.NArg() > 0 {
		return p, fmt.Errorf("argument %q is not known: there are only flags, see -help", fs.Arg(0))
	}
	for name := range strings.SplitSeq(*profiles, ",") {
		if _, err := election.ProfileByName(name); err != nil {
			return p, err
		}
		p.profiles = append(p.profiles, name)
	}
	for name := range strings.SplitSeq(*cases, ",") {
		if !slices.Contains(failover.Cases(), name) {
			return p, fmt.Errorf("case %q is not known: use some of %s", name, strings.Join(failover.Cases(), ", "))
		}
		p.cases = append(p.cases, name)
	}
	if p.options.Rounds < 1 || p.options.Rounds > failover.MaxRounds {
		return p, fmt.Errorf("%d rounds: from 1 to %d", p.options.Rounds, failover.MaxRounds)
	}
	return p, nil
}

// measure does all, one after the other. What it has found by then is returned also with
// an error.
func (p *failoverPlan) measure(ctx context.Context) (all []failover.Found, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p.options.Model = []string{self, modelVerb}
	if p.options.Hanode == "" {
		dir, err := os.MkdirTemp(p.options.Dir, "hastate-bench-build-")
		if err != nil {
			return nil, fmt.Errorf("a folder to build in: %w", err)
		}
		defer func() { _ = os.RemoveAll(dir) }() // what is left is in a folder for temporary files
		if p.options.Hanode, err = system.Build(ctx, dir); err != nil {
			return nil, err
		}
	}
	for _, p.options.Profile = range p.profiles {
		for _, p.options.Case = range p.cases {
			f, err := failover.Run(ctx, p.options)
			if len(f.Rounds) > 0 {
				all = append(all, f)
			}
			if err != nil {
				return all, fmt.Errorf("%s at %s: %w", f.Case, f.Profile, err)
			}
		}
	}
	return all, nil
}

// failoverTable prints quantiles of all columns.
func failoverTable(w io.Writer, all []failover.Found) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "profile\tcase\tn\tprimary p50\tp99\tmax\ttold p50\tp99\tmax\tserved p50\tp99\tmax ms\ttwo believers\t")
	for _, f := range all {
		fmt.Fprintf(t, "%s\t%s\t%d\t", f.Profile, f.Case, len(f.Rounds))
		for _, column := range []func(failover.Round) float64{
			func(r failover.Round) float64 { return r.PrimaryMs },
			func(r failover.Round) float64 { return r.ToldMs },
			func(r failover.Round) float64 { return r.ServedMs },
		} {
			q := f.Figures(column)
			fmt.Fprintf(t, "%.1f\t%.1f\t%.1f\t", q.P50Ms, q.P99Ms, q.MaxMs)
		}
		fmt.Fprintf(t, "%d\t\n", f.TwoBelievers)
	}
	return t.Flush()
}
