// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hastate/hastate/bench/failover"
	"github.com/hastate/hastate/bench/limit"
	"github.com/hastate/hastate/bench/loop"
	"github.com/hastate/hastate/bench/report"
	"github.com/hastate/hastate/bench/system"
	"github.com/hastate/hastate/election"
)

const (
	workPut, workGet = "put", "get"
	// echo is the name of the machine's limit among the systems.
	echo = "grpc-echo"
	// maxClients, maxKeys and maxValue bound a plan.
	maxClients, maxKeys, maxValue = 4096, 4_000_000, 1 << 20
	// idleTime is how long an idle cluster is looked at.
	idleTime = 30 * time.Second
	// readKeys is how many keys are there to be read.
	readKeys = 10_000
)

// plan is what is to be measured.
type plan struct {
	systems, work []string
	clients       []int
	watchers      []int
	repetitions   int
	duration      time.Duration
	warm          time.Duration
	valueBytes    int
	keys, conns   int
	hanode        string
	dir, details  string
	progress      io.Writer
}

func (p *plan) check() error {
	switch {
	case p.repetitions < 1 || p.repetitions > 1000:
		return fmt.Errorf("%d repetitions: from 1 to 1000", p.repetitions)
	case p.duration < 10*time.Millisecond || p.duration > time.Hour || p.warm < 0 || p.warm > time.Hour:
		return fmt.Errorf("%v after %v: from 10ms to an hour, and at most an hour before it", p.duration, p.warm)
	case p.valueBytes < 1 || p.valueBytes > maxValue:
		return fmt.Errorf("%d bytes of value: from 1 to %d", p.valueBytes, maxValue)
	case p.keys < 1 || p.keys > maxKeys:
		return fmt.Errorf("%d keys: from 1 to %d", p.keys, maxKeys)
	case p.conns < 1 || p.conns > maxClients:
		return fmt.Errorf("%d connections: from 1 to %d", p.conns, maxClients)
	}
	for _, name := range p.systems {
		if _, err := p.system(name); err != nil {
			return err
		}
	}
	return nil
}

// system by its name.
func (p *plan) system(name string) (system.System, error) {
	all := []system.System{
		system.Hastate{Program: p.hanode, LogStore: "segments"},
		system.Hastate{Program: p.hanode, LogStore: "bolt"},
		system.Hastate{Program: p.hanode, LogStore: "segments", Unary: true},
		system.Hastate{Program: p.hanode, LogStore: "bolt", Unary: true},
		system.Etcd{},
		system.ZooKeeper{},
	}
	var known []string
	for _, s := range all {
		if s.Name() == name {
			return s, nil
		}
		known = append(known, s.Name())
	}
	return nil, fmt.Errorf("system %q is not known: one of %s", name, strings.Join(known, ", "))
}

// measure does all, one system at a time, so that none takes processor time from
// another one.
func (p *plan) measure(ctx context.Context) (found, error) {
	f := found{plan: p}
	dir, err := p.scratch("limits")
	if err != nil {
		return f, err
	}
	defer func() { _ = os.RemoveAll(dir) }() // what is left is in a folder for temporary files
	if p.hanode == "" {
		if p.hanode, err = system.Build(ctx, dir); err != nil {
			return f, err
		}
	}
	repetitions := p.repetitions
	if slices.Equal(p.work, []string{workIdle}) {
		repetitions = 0
	}
	for repetition := range repetitions {
		if err := f.limits(ctx, dir, repetition); err != nil {
			return f, fmt.Errorf("limits of the machine: %w", err)
		}
		for _, name := range p.systems {
			s, err := p.system(name)
			if err != nil {
				return f, err
			}
			if why := s.Missing(); why != "" {
				f.leaveOut(name, why)
				continue
			}
			if err := f.cluster(ctx, s, repetition); err != nil {
				return f, fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	if slices.Contains(p.work, workIdle) {
		return f, f.idle(ctx)
	}
	return f, nil
}

// idle measures what a node costs while nothing happens, at the default settings.
func (f *found) idle(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	idle, err := failover.MeasureIdle(ctx, failover.Options{
		Hanode: f.plan.hanode, Model: []string{self, modelVerb}, Profile: election.Lan.Name, Dir: f.plan.dir,
	}, idleTime)
	if err != nil {
		return fmt.Errorf("idle: %w", err)
	}
	f.Idle = &idle
	fmt.Fprintf(f.plan.progress, "idle: %.2f %% of a core, %.1f MiB, %.1f fsyncs/s\n", idle.CPUPercent, idle.RSSMiB, idle.FsyncsPerS)
	return nil
}

// limits measures the disk and the echo.
func (f *found) limits(ctx context.Context, dir string, repetition int) (err error) {
	p50, p99, err := limit.Fdatasync(dir, min(f.plan.duration, 2*time.Second))
	if err != nil {
		return err
	}
	f.Fdatasync = append(f.Fdatasync, disk{P50Ms: float64(p50.Microseconds()) / 1000, P99Ms: float64(p99.Microseconds()) / 1000})
	e, err := limit.StartEcho(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Stop()) }()
	for _, clients := range f.plan.clients {
		r, err := e.Run(ctx, clients, f.plan.conns, f.plan.valueBytes, f.plan.duration)
		if err != nil {
			return err
		}
		f.add(report.NewRun(echo, echo, repetition, r, 0))
	}
	return nil
}

// cluster measures a new cluster of a system.
func (f *found) cluster(ctx context.Context, s system.System, repetition int) (err error) {
	dir, err := f.plan.scratch(s.Name())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	c, err := s.Start(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Stop()) }()
	for _, work := range f.plan.work {
		if work == workIdle { // by itself, see idle
			continue
		}
		if work == workWatch {
			for _, watchers := range f.plan.watchers {
				if err := f.watch(ctx, s, c, watchers, repetition); err != nil {
					return fmt.Errorf("%d watchers: %w", watchers, err)
				}
			}
			continue
		}
		for _, clients := range f.plan.clients {
			if err := f.one(ctx, s, c, work, clients, repetition); err != nil {
				return fmt.Errorf("%s by %d clients: %w", work, clients, err)
			}
		}
	}
	return nil
}

// one run.
func (f *found) one(ctx context.Context, s system.System, c *system.Cluster, work string, clients, repetition int) (err error) {
	conns := make([]system.Conn, min(clients, f.plan.conns))
	for i := range conns {
		if conns[i], err = c.Connect(ctx); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, conns[i].Close()) }()
	}
	op, err := f.plan.operation(ctx, work, conns, clients)
	if err != nil {
		return err
	}
	if f.plan.warm > 0 {
		if _, err := loop.Run(ctx, clients, f.plan.warm, op); err != nil {
			return err
		}
	}
	before, err := c.CPU()
	if err != nil {
		return err
	}
	r, err := loop.Run(ctx, clients, f.plan.duration, op)
	if err != nil {
		return err
	}
	after, err := c.CPU()
	if err != nil {
		return err
	}
	f.add(report.NewRun(s.Name(), work, repetition, r, after-before))
	return nil
}

// operation is what one client does. Keys are drawn anew for each run, from all of them
// alike; what is read has been written before.
func (p *plan) operation(ctx context.Context, work string, conns []system.Conn, clients int) (func(context.Context, int) error, error) {
	value := []byte(strings.Repeat("v", p.valueBytes))
	draw := make([]*rand.Rand, clients)
	for i := range draw {
		draw[i] = rand.New(rand.NewPCG(rand.Uint64(), uint64(i))) //nolint:gosec // keys are no secret
	}
	if work == workPut {
		return func(ctx context.Context, i int) error {
			return conns[i%len(conns)].Put(ctx, draw[i].IntN(p.keys), value)
		}, nil
	}
	there := min(p.keys, readKeys)
	if err := fill(ctx, conns, there, value); err != nil {
		return nil, fmt.Errorf("write what is to be read: %w", err)
	}
	return func(ctx context.Context, i int) error { return conns[i%len(conns)].Get(ctx, draw[i].IntN(there)) }, nil
}

// fill writes the first keys.
func fill(ctx context.Context, conns []system.Conn, keys int, value []byte) error {
	const writers = 64
	failed := make(chan error, writers)
	for w := range writers {
		go func() {
			var err error
			for key := w; key < keys && err == nil; key += writers {
				err = conns[w%len(conns)].Put(ctx, key, value)
			}
			failed <- err
		}()
	}
	var errs []error
	for range writers {
		errs = append(errs, <-failed)
	}
	return errors.Join(errs...)
}

// load is the load average of the last minute.
func load() float64 {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(b), " ")
	n, _ := strconv.ParseFloat(first, 64) // 0 if it is another system's
	return n
}
