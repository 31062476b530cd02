// SPDX-License-Identifier: Apache-2.0

// Command soak kills real nodes at random under a load of session writes and
// counts what was lost or applied twice. Run it with `make soak`.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o := options{}
	flag.IntVar(&o.rounds, "rounds", 50, "how many kills")
	flag.IntVar(&o.writers, "writers", 8, "sessions written to, each by one writer")
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "repeat a run") //nolint:gosec // any number will do
	flag.StringVar(&o.hanode, "hanode", "", "program to test (default: built from this module)")
	flag.StringVar(&o.profile, "profile", "lan", "timeouts")
	flag.DurationVar(&o.timeout, "timeout", 10*time.Minute, "longest run")
	flag.Parse()
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
}

// report is the one line that a run ends with.
type report struct {
	Seed         uint64 `json:"seed"`
	Kills        int    `json:"kills"`
	LeaderKills  int    `json:"leader_kills"`
	Acknowledged int    `json:"acknowledged"`
	Unknown      int    `json:"unknown"`
	Lost         int    `json:"lost"`
	AppliedTwice int    `json:"applied_twice"`
	Seconds      int    `json:"seconds"`
	// HashesEqual: all three nodes hold the same state at the end.
	HashesEqual bool `json:"hashes_equal"`
}

// soak starts the cluster and the load, kills, and checks.
func soak(ctx context.Context, o options) (r report, err error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	started := time.Now()
	r.Seed = o.seed
	dir, err := os.MkdirTemp("", "hastate-soak-")
	if err != nil {
		return r, fmt.Errorf("make a scratch folder: %w", err)
	}
	defer func() {
		if err == nil {
			err = os.RemoveAll(dir)
		}
	}()
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

	l, err := startLoad(ctx, c, o.writers)
	if err != nil {
		return r, err
	}
	rng := rand.New(rand.NewPCG(o.seed, o.seed)) //nolint:gosec // repeatable, not secret
	for r.Kills < o.rounds && ctx.Err() == nil && l.broken() == nil {
		led, err := c.killOne(ctx, rng, l)
		if err != nil {
			l.stop()
			return r, fmt.Errorf("round %d: %w (data is left in %s)", r.Kills+1, err, dir)
		}
		r.Kills++
		if led {
			r.LeaderKills++
		}
		fmt.Fprintf(os.Stderr, "\rkills %d of %d, acknowledged %d ", r.Kills, o.rounds, l.acknowledged())
	}
	fmt.Fprintln(os.Stderr)
	l.stop()
	r.Seconds = int(time.Since(started).Seconds())
	if err := errors.Join(ctx.Err(), l.broken()); err != nil {
		return r, fmt.Errorf("%w (data is left in %s)", err, dir)
	}
	if err := l.check(ctx, &r); err != nil {
		return r, fmt.Errorf("%w (data is left in %s)", err, dir)
	}
	if r.HashesEqual, err = c.hashesEqual(ctx); err != nil {
		return r, err
	}
	if !r.HashesEqual {
		return r, fmt.Errorf("the nodes hold different states (data is left in %s)", dir)
	}
	return r, nil
}
