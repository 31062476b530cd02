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
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hastate/hastate/election"
	"github.com/hastate/hastate/internal/logstore"
	"github.com/hastate/hastate/testcluster/chaos/model"
	"github.com/hastate/hastate/testcluster/chaos/mutant"
	"github.com/hastate/hastate/testcluster/chaos/rig"
)

// checks are the names that a violation can have: docs/chaos.md says what they mean.
var checks = []string{
	mutant.Linearizability, mutant.OnePrimary, mutant.ExactlyOnce, mutant.Watch, mutant.Convergence, mutant.Promotion, mutant.History,
	mutant.FalseFailover, mutant.Durability, mutant.Availability, "one-leader", "exit", "operator", "leak", "proof",
}

// Exit codes of a run.
const (
	exitOK        = 0
	exitViolation = 1 // something was seen that must never be
	exitUsage     = 2
	exitBroken    = 3 // the run itself could not be done
)

func main() {
	inside := false
	if rig.Again() {
		code, entered, err := rig.Enter(nil)
		if err != nil {
			fmt.Fprintln(os.Stderr, "chaos:", err)
		}
		if inside = entered; !inside {
			os.Exit(code)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := dispatch(ctx, os.Args[1:], inside)
	stop()
	os.Exit(code)
}

func dispatch(ctx context.Context, args []string, inside bool) int {
	verb := ""
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		verb = args[0]
	}
	var err error
	switch verb {
	case "":
		return runCommand(ctx, args, inside)
	case "mutants":
		return mutantsCommand(ctx, args[1:])
	case "faults":
		for _, f := range faults() {
			root := ""
			if f.root {
				root = " (root)"
			}
			fmt.Printf("%-11s %-23s %s%s\n", f.family, f.kind, f.what, root)
		}
	case "model":
		if err = model.Run(ctx, args[1:], os.Stderr); errors.Is(err, model.ErrCrashed) {
			return model.CrashCode
		} else if errors.Is(err, model.ErrStopped) {
			return model.StopCode
		}
	case "burn":
		err = burn(ctx, args[1:])
	default:
		fmt.Fprintf(os.Stderr, "chaos: %q is not known: use no verb to run, or mutants, faults\n", verb)
		return exitUsage
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "chaos %s: %v\n", verb, err)
		return exitBroken
	}
	return exitOK
}

// options of a run.
type options struct {
	seed          uint64
	duration      time.Duration
	faults        string
	nodes, groups int
	profile       string
	// chapter is how many rounds are checked together.
	chapter int
	pairs   bool
	root    bool
	// burn is how many processes keep a core busy each, burnDisk likewise a disk.
	burn, burnDisk int
	watchdogOff    bool
	// logStore is how the nodes keep their logs; empty: as they do by default.
	logStore string
	// until are checks of which one violation ends the run; "any" is every check.
	until []string
	// hanode is the program to test, self this one.
	hanode, self string
	// dir is where the folder of the run is made; keep: it is left.
	dir  string
	keep bool
	// disks: every host has one of its own, if root.
	disks bool
	// images is where the images of the hosts' disks are made.
	images string
	// think is the pause of a load worker between two operations.
	think    time.Duration
	progress io.Writer
}

func parse(args []string) (options, error) {
	o := options{progress: io.Discard}
	fs := flag.NewFlagSet("chaos", flag.ContinueOnError)
	fs.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano())%1_000_000_000, "draw the same faults as an earlier run") //nolint:gosec // any number will do
	fs.DurationVar(&o.duration, "duration", 3*time.Minute, "how long to break things")
	fs.StringVar(&o.faults, "faults", "all", "what to break: all, none, families or kinds, comma-separated ('go run ./testcluster/chaos faults' lists them)")
	fs.IntVar(&o.nodes, "nodes", 3, "nodes of the cluster: 3 or 5")
	fs.IntVar(&o.groups, "groups", 2, "groups, each with a model server beside every node")
	fs.StringVar(&o.profile, "profile", election.Lan.Name, "timeouts: fast, lan or wan")
	fs.IntVar(&o.chapter, "chapter", 8, "rounds after which everything is checked")
	fs.BoolVar(&o.pairs, "pairs", true, "break two things at once now and then")
	fs.IntVar(&o.burn, "burn", 0, "processes that keep a core busy each, meanwhile")
	fs.IntVar(&o.burnDisk, "burn-disk", 0, "processes that keep the disk busy with fsyncs, meanwhile")
	fs.BoolVar(&o.watchdogOff, "watchdog-off", false, "without the stall watchdog: shows what hashicorp/raft does alone")
	fs.StringVar(&o.logStore, "log-store", "", "how the nodes keep their logs: bolt or segments (default: hanode's)")
	until := fs.String("until", "", "end at the first violation of one of these checks, comma-separated; or any")
	fs.StringVar(&o.hanode, "hanode", "", "program to test, built with -tags chaos (default: built from this module)")
	fs.StringVar(&o.dir, "dir", "", "where to make the folder of the run (default: the system's)")
	fs.StringVar(&o.images, "images", defaultImages(), "where to make the images of the hosts' disks, and the files of -burn-disk; in memory the machine's own disk is not in the way")
	fs.BoolVar(&o.keep, "keep", false, "leave the folder of the run also when all is well")
	fs.DurationVar(&o.think, "think", 15*time.Millisecond, "pause of each of the workers between two session operations")
	fs.BoolVar(&o.disks, "disks", true, "loop devices as disks, if root; otherwise the data is in the folder of the run, and no disk can be filled or lose its power (default with -faults none: false, because the kernel's threads for them wait for busy cores)")
	root := fs.Bool("root", os.Geteuid() == 0, "network namespaces and disks for every host; needs root")
	verbose := fs.Bool("v", false, "tell what is done, on standard error")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	o.root = *root
	given := false
	fs.Visit(func(f *flag.Flag) { given = given || f.Name == "disks" })
	o.disks = o.disks && (given || o.faults != "none")
	if *until != "" {
		o.until = strings.Split(*until, ",")
	}
	for _, name := range o.until {
		if name != "any" && !slices.Contains(checks, name) {
			return o, fmt.Errorf("-until %q is no check: use any, or some of %s", name, strings.Join(checks, ", "))
		}
	}
	if *verbose {
		o.progress = os.Stderr
	}
	switch _, err := election.ProfileByName(o.profile); {
	case fs.NArg() > 0:
		return o, fmt.Errorf("argument %q is not known: everything is a flag", fs.Arg(0))
	case err != nil:
		return o, err
	case o.logStore != "" && !slices.Contains(logstore.Kinds, logstore.Kind(o.logStore)):
		return o, fmt.Errorf("-log-store %q is not known: use one of %q", o.logStore, logstore.Kinds)
	case o.nodes != 3 && o.nodes != 5:
		return o, fmt.Errorf("%d nodes: use 3 or 5", o.nodes)
	case o.groups < 1 || o.groups > 16:
		return o, fmt.Errorf("%d groups: use 1 to 16", o.groups)
	case o.duration <= 0 || o.duration > 7*24*time.Hour:
		return o, fmt.Errorf("a duration of %v: use one up to a week, such as 20m", o.duration)
	case o.chapter < 1 || o.think <= 0 || o.burn < 0 || o.burnDisk < 0:
		return o, errors.New("chapter must be at least 1, think above 0, burn and burn-disk at least 0")
	case o.root && os.Geteuid() != 0:
		return o, errors.New("-root needs root: run it with sudo, or leave it out to run on loopback")
	}
	if _, _, err := chosen(o.faults, o.root); err != nil {
		return o, err
	}
	return o, nil
}

// defaultImages is memory, where there is such a place.
func defaultImages() string {
	const memory = "/dev/shm"
	if info, err := os.Stat(memory); err == nil && info.IsDir() {
		return memory
	}
	return os.TempDir()
}

func runCommand(ctx context.Context, args []string, inside bool) int {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err == nil {
		o.self, err = os.Executable()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		return exitUsage
	}
	code, err := prepareAndRun(ctx, o, args, inside)
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
	}
	return code
}

// prepareAndRun builds the program, enters the namespaces of the run, and runs.
// It is passed twice by a run of root: outside, where it builds, and inside.
func prepareAndRun(ctx context.Context, o options, args []string, inside bool) (code int, err error) {
	if o.hanode == "" {
		dir, err := os.MkdirTemp(o.dir, "hastate-chaos-build-")
		if err != nil {
			return exitBroken, fmt.Errorf("make a folder to build in: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		o.hanode = filepath.Join(dir, "hanode")
		if out, err := exec.CommandContext(ctx, "go", "build", "-tags", "chaos", "-o", o.hanode, "github.com/hastate/hastate/cmd/hanode").CombinedOutput(); err != nil {
			return exitBroken, fmt.Errorf("build hanode: %w: %s", err, out)
		}
		// Inside, the seed and the program are given.
		args = append(append([]string{}, args...), "-hanode", o.hanode, "-seed", fmt.Sprint(o.seed))
	}
	if o.root && !inside {
		code, _, err := rig.Enter(args)
		return code, err
	}
	if !o.root {
		fmt.Fprintln(os.Stderr, "chaos: not root: loopback addresses, faults inside the nodes, no power cuts and no full disks")
	}
	for _, v := range os.Environ() { // the nodes' configuration is the run's
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "HANODE_") {
			_ = os.Unsetenv(name) // it is set
		}
	}
	report, err := runAll(ctx, o)
	code = report.judge(ctx.Err() != nil, err)
	if encodeErr := json.NewEncoder(os.Stdout).Encode(report); encodeErr != nil {
		return exitBroken, errors.Join(err, encodeErr)
	}
	fmt.Fprintf(os.Stderr, "chaos: %s: %d rounds, %d failovers, %d violations in %.0f s\n", report.Result, report.Rounds, report.Failovers, report.Found, report.Seconds)
	return code, err
}

// judge says how the run has ended, in the report and as an exit code.
func (r *report) judge(interrupted bool, err error) (code int) {
	r.Result, code = "ok", exitOK
	switch {
	case len(r.Violations) > 0:
		r.Result, code = "violation", exitViolation
	case interrupted:
		r.Result, code = "interrupted", exitBroken
	case err != nil:
		r.Result, code = "broken", exitBroken
	}
	if err != nil {
		r.Error = err.Error()
	}
	return code
}
