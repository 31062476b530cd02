// SPDX-License-Identifier: Apache-2.0

// Package failover measures how long clients are without a primary: three nodes with a
// model server each, as real processes on loopback, broken in one way again and again.
package failover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hastate/hastate/bench/loop"
	"github.com/hastate/hastate/internal/clock"
)

const (
	// roundTimeout bounds a round, and the repair after it.
	roundTimeout = 90 * time.Second
	// MaxRounds bounds the rounds of a case.
	MaxRounds = 10_000
)

// Options say what to measure.
type Options struct {
	// Hanode is the program of the nodes.
	Hanode string
	// Model is the program and the first arguments of the model server.
	Model []string
	// Profile of the timeouts, LogStore of the nodes (empty: hanode's).
	Profile, LogStore string
	// Case is one of Cases.
	Case string
	// Rounds is how often it is broken.
	Rounds int
	// Dir is where the data is.
	Dir string
	// Progress is told of each round; not nil.
	Progress io.Writer
}

// Round is one time that something was broken. Milliseconds from just before that.
type Round struct {
	// PrimaryMs: the model server of the new primary has obeyed its Promote, by its
	// own record. 0 if none moved, as when only the Raft leader was lost.
	PrimaryMs float64 `json:"primary_ms"`
	// ToldMs: a watch of the primary was told that another one serves, or 0.
	ToldMs float64 `json:"told_ms"`
	// ServedMs: a client had its first answer from the new primary. Where no primary
	// moves: its first write that was acknowledged. For a switchover: from the last
	// answer of the old primary.
	ServedMs float64 `json:"served_ms"`
}

// Found is what the rounds of a case showed.
type Found struct {
	Case, Profile string
	Rounds        []Round
	// TwoBelievers is the number of rounds in which a model server answered a client
	// under an epoch after another one had answered under a later one.
	TwoBelievers int
}

// Figures are the quantiles of ServedMs.
type Figures struct {
	N            int     `json:"n"`
	P50Ms        float64 `json:"p50_ms"`
	P99Ms        float64 `json:"p99_ms"`
	MaxMs        float64 `json:"max_ms"`
	TwoBelievers int     `json:"two_believers"`
}

// Figures of one column: Round.ServedMs or another one.
func (f Found) Figures(column func(Round) float64) Figures {
	var took []time.Duration
	for _, r := range f.Rounds {
		took = append(took, time.Duration(column(r)*float64(time.Millisecond)))
	}
	slices.Sort(took)
	return Figures{
		N: len(took), P50Ms: ms(loop.Quantile(took, 0.5)), P99Ms: ms(loop.Quantile(took, 0.99)), MaxMs: ms(loop.Quantile(took, 1)),
		TwoBelievers: f.TwoBelievers,
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Run starts a cluster, breaks it and puts it right as often as asked, and stops it.
// What it has found by then is returned also with an error.
func Run(ctx context.Context, o Options) (found Found, err error) {
	found = Found{Case: o.Case, Profile: o.Profile}
	how, ok := cases[o.Case]
	switch {
	case !ok:
		return found, fmt.Errorf("case %q is not known: one of %v", o.Case, Cases())
	case o.Rounds < 1 || o.Rounds > MaxRounds:
		return found, fmt.Errorf("%d rounds: from 1 to %d", o.Rounds, MaxRounds)
	}
	// What was written before, a build for example, must not be in the way of fsyncs.
	unix.Sync()
	dir, err := os.MkdirTemp(o.Dir, "hastate-failover-")
	if err != nil {
		return found, fmt.Errorf("a folder for the data: %w", err)
	}
	c, err := start(ctx, o, dir)
	defer func() { err = errors.Join(err, c.stop(), os.RemoveAll(dir)) }()
	if err != nil {
		return found, fmt.Errorf("start the cluster: %w%s", err, c.tails())
	}
	probes := c.probe(ctx)
	for range o.Rounds {
		r, err := c.round(ctx, how)
		if err != nil {
			probes()
			return found, fmt.Errorf("round %d: %w%s", len(found.Rounds)+1, err, c.tails())
		}
		found.Rounds = append(found.Rounds, r)
		fmt.Fprintf(o.Progress, "%s %s %4d: primary %.1f told %.1f served %.1f ms\n", o.Profile, o.Case, len(found.Rounds), r.PrimaryMs, r.ToldMs, r.ServedMs)
	}
	probes()
	found.TwoBelievers, err = c.believers()
	return found, err
}

// round breaks the whole cluster once, measures, and makes it whole.
func (c *cluster) round(ctx context.Context, how fault) (Round, error) {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	if err := how.prepare(ctx, c); err != nil {
		return Round{}, fmt.Errorf("prepare: %w", err)
	}
	before, err := c.waitServing(ctx, 0)
	if err != nil {
		return Round{}, err
	}
	// Renewals and heartbeats tick: a kill comes at any time between two.
	if err := pause(ctx, rand.N(time.Second)); err != nil { //nolint:gosec // not a secret
		return Round{}, err
	}
	m := c.measure(ctx, before.Epoch)
	defer m.stop()
	if err := m.awaitAnswer(ctx); err != nil { // clients are served when it breaks
		return Round{}, err
	}
	began := clock.Boot{}.Now()
	c.began = append(c.began, began)
	if err := how.inject(ctx, c); err != nil {
		return Round{}, fmt.Errorf("break: %w", err)
	}
	r, err := how.await(ctx, c, m, began)
	if err != nil {
		return r, err
	}
	m.stop()
	if err := c.repair(ctx); err != nil {
		return r, fmt.Errorf("put right: %w", err)
	}
	return r, nil
}

// pause waits.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
