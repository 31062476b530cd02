// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hastate/hastate/bench/loop"
	"github.com/hastate/hastate/bench/report"
	"github.com/hastate/hastate/bench/system"
)

const (
	workWatch, workIdle = "watch", "idle"
	// watchEvents are how many changes each watcher is told of, in one run.
	watchEvents = 30
	// watchTimeout bounds the wait for all watchers, to begin and to be told.
	watchTimeout = time.Minute
	// maxWatchers bounds a plan.
	maxWatchers = 100_000
)

// watch measures how long it takes from a write until the last of many watchers of its
// key is told. All of them are told of each change, or it is an error.
func (f *found) watch(ctx context.Context, s system.System, c *system.Cluster, watchers, repetition int) (err error) {
	conns := make([]system.Watcher, min(watchers, f.plan.conns))
	for i := range conns {
		conn, err := c.Connect(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, conn.Close()) }()
		w, ok := conn.(system.Watcher)
		if !ok {
			f.leaveOut(s.Name()+" "+workWatch, "this tool has no watch for it that many clients of a connection could share")
			return nil
		}
		conns[i] = w
	}
	// Not one of the keys that are written otherwise.
	key, value := f.plan.keys, []byte(strings.Repeat("w", f.plan.valueBytes))
	if err := conns[0].Put(ctx, key, value); err != nil {
		return err
	}
	told := newCount()
	failed := make(chan error, watchers)
	watching, stop := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer func() { stop(); all.Wait() }()
	for i := range watchers {
		all.Go(func() {
			if err := conns[i%len(conns)].Watch(watching, key, told.one); watching.Err() == nil {
				failed <- fmt.Errorf("a watch ended: %w", err)
			}
		})
	}
	if err := told.await(ctx, watchers, failed); err != nil {
		return fmt.Errorf("watches that begin: %w", err)
	}
	before, err := c.CPU()
	if err != nil {
		return err
	}
	r := loop.Result{Clients: watchers}
	var took []time.Duration
	for range watchEvents {
		begun := time.Now()
		if err := conns[0].Put(ctx, key, value); err != nil {
			return err
		}
		if err := told.await(ctx, watchers, failed); err != nil {
			return fmt.Errorf("watchers that are told: %w", err)
		}
		took = append(took, time.Since(begun))
		r.Took += time.Since(begun)
		r.Ops += watchers
	}
	after, err := c.CPU()
	if err != nil {
		return err
	}
	slices.Sort(took)
	r.P50, r.P99, r.Max = loop.Quantile(took, 0.5), loop.Quantile(took, 0.99), loop.Quantile(took, 1)
	f.add(report.NewRun(s.Name(), workWatch, repetition, r, after-before))
	return nil
}

// count counts what many goroutines notice, for one that waits.
type count struct {
	seen, want atomic.Int64
	// reached is sent to when seen gets to want.
	reached chan struct{}
}

func newCount() *count {
	c := &count{reached: make(chan struct{}, 1)}
	c.want.Store(-1)
	return c
}

func (c *count) one() {
	if c.seen.Add(1) == c.want.Load() {
		select {
		case c.reached <- struct{}{}:
		default:
		}
	}
}

// await waits until n more than at the last await have been counted, those before this
// call included.
func (c *count) await(ctx context.Context, n int, failed <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, watchTimeout)
	defer cancel()
	want := max(c.want.Load(), 0) + int64(n)
	c.want.Store(want)
	if c.seen.Load() >= want { // the last one may have come before it was wanted
		select {
		case <-c.reached:
		default:
		}
		return nil
	}
	select {
	case <-c.reached:
		return nil
	case err := <-failed:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%d of %d: %w", c.seen.Load()-want+int64(n), n, context.Cause(ctx))
	}
}
