// SPDX-License-Identifier: Apache-2.0

// Command soak kills real nodes at random under a load of session writes, now and
// then all at once, and counts what was lost or applied twice. Run it with
// `make soak`. A killed process leaves what it has written with the kernel: this
// is not a test of power loss.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/hastate/hastate"
)

func main() {
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o := options{progress: io.Discard}
	flag.IntVar(&o.rounds, "rounds", 50, "how many kills")
	flag.IntVar(&o.writers, "writers", 8, "sessions written to, each by one writer")
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "kill the same nodes as an earlier run") //nolint:gosec // any number will do
	flag.StringVar(&o.hanode, "hanode", "", "program to test (default: built from this module)")
	flag.StringVar(&o.profile, "profile", "lan", "timeouts")
	flag.DurationVar(&o.timeout, "timeout", 10*time.Minute, "longest run")
	flag.Parse()
	if o.rounds < 1 || o.writers < 1 || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "soak: -rounds and -writers must be at least 1, and there are no arguments")
		return 2
	}
	if term.IsTerminal(int(os.Stderr.Fd())) {
		o.progress = os.Stderr
	}
	report, err := soak(ctx, o)
	if encodeErr := json.NewEncoder(os.Stdout).Encode(report); encodeErr != nil {
		err = errors.Join(err, encodeErr)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		return 1
	}
	return 0
}

type options struct {
	rounds, writers int
	seed            uint64
	hanode, profile string
	timeout         time.Duration
	// progress is shown there, on one line.
	progress io.Writer
}

// report is the one line that a run ends with.
type report struct {
	Seed uint64 `json:"seed"`
	// Kills counts the rounds, LeaderKills those that hit the leader, AllKills
	// those that hit all nodes at once.
	Kills        int `json:"kills"`
	LeaderKills  int `json:"leader_kills"`
	AllKills     int `json:"all_kills"`
	Acknowledged int `json:"acknowledged"`
	Unknown      int `json:"unknown"`
	// Watched counts the changes that a reader was told of meanwhile.
	Watched      int `json:"watched"`
	Lost         int `json:"lost"`
	AppliedTwice int `json:"applied_twice"`
	Seconds      int `json:"seconds"`
	// HashesEqual: all three nodes hold the same state at the end.
	HashesEqual bool `json:"hashes_equal"`
}

// soak runs with a folder of its own, which is left for a look if something was
// wrong.
func soak(ctx context.Context, o options) (r report, err error) {
	timed, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	dir, err := os.MkdirTemp("", "hastate-soak-")
	if err != nil {
		return r, fmt.Errorf("make a scratch folder: %w", err)
	}
	r, err = soakIn(timed, o, dir)
	switch {
	case ctx.Err() != nil:
		return r, errors.Join(errors.New("interrupted"), os.RemoveAll(dir))
	case err != nil:
		return r, fmt.Errorf("%w (the data is left in %s)", err, dir)
	}
	return r, os.RemoveAll(dir)
}

// soakIn starts the cluster and the load, kills, and checks.
func soakIn(ctx context.Context, o options, dir string) (r report, err error) {
	started := time.Now()
	r.Seed = o.seed
	if o.hanode == "" {
		o.hanode = filepath.Join(dir, "hanode")
		if out, err := exec.CommandContext(ctx, "go", "build", "-o", o.hanode, "github.com/hastate/hastate/cmd/hanode").CombinedOutput(); err != nil {
			return r, fmt.Errorf("build hanode: %w: %s", err, out)
		}
	}
	c, err := startCluster(ctx, o, dir)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, c.stop()) }()

	l, err := startLoad(ctx, c.client.Sessions(hastate.DefaultGroup), o.writers)
	if err == nil {
		err = c.rounds(ctx, l, &r)
	}
	l.stop()
	r.Seconds = int(time.Since(started).Seconds())
	if err := errors.Join(err, ctx.Err(), l.check(ctx, &r)); err != nil {
		return r, err
	}
	if r.HashesEqual, err = c.hashesEqual(ctx); err != nil {
		return r, err
	}
	if !r.HashesEqual {
		return r, errors.New("the nodes hold different states")
	}
	return r, nil
}

// rounds kills and starts again.
func (c *cluster) rounds(ctx context.Context, l *load, r *report) error {
	defer func() { fmt.Fprintln(c.o.progress) }()
	rng := rand.New(rand.NewPCG(c.o.seed, c.o.seed)) //nolint:gosec // repeatable, not secret
	for r.Kills < c.o.rounds && ctx.Err() == nil {
		if err := c.round(ctx, rng, l, r); err != nil {
			return fmt.Errorf("round %d: %w", r.Kills+1, err)
		}
		r.Kills++
		fmt.Fprintf(c.o.progress, "\rkills %d of %d, acknowledged %d ", r.Kills, c.o.rounds, l.acked.Load())
	}
	return nil
}
