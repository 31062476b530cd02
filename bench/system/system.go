// SPDX-License-Identifier: Apache-2.0

// Package system starts what is compared: clusters of three real processes on
// loopback, durable, each with the safe settings that its makers recommend for speed.
package system

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hastate/hastate/internal/proc"
)

const (
	// nodes of every cluster.
	nodes = 3
	// startTimeout bounds how long a cluster may take until it serves.
	startTimeout = time.Minute
	// opTimeout bounds one operation.
	opTimeout = 10 * time.Second
	// tick is between two looks at something that is waited for.
	tick = 20 * time.Millisecond
)

// System is something that can be measured.
type System interface {
	// Name stands in tables and flags.
	Name() string
	// Missing says what has to be installed for it to run here; empty: nothing.
	Missing() string
	// Start starts a new cluster whose data is in dir, and waits until it serves.
	Start(ctx context.Context, dir string) (*Cluster, error)
}

// Conn is a connection that many goroutines may use. Keys are numbers, each written in
// the form that a system takes.
type Conn interface {
	// Put returns when a majority has the value on its disk.
	Put(ctx context.Context, key int, value []byte) error
	// Get reads linearizably. A key that is not there is no error.
	Get(ctx context.Context, key int) error
	Close() error
}

// Watcher is a Conn that can also watch.
type Watcher interface {
	Conn
	// Watch calls told once when it has begun, and then for each change of a key that is
	// there, until ctx ends or it cannot go on.
	Watch(ctx context.Context, key int, told func()) error
}

// Cluster is three processes that run. Its owner calls Stop.
type Cluster struct {
	// Connect makes one more connection.
	Connect func(ctx context.Context) (Conn, error)
	procs   []*proc.Process
}

// Stop ends the processes and waits for them.
func (c *Cluster) Stop() error {
	var errs []error
	for _, p := range c.procs {
		errs = append(errs, p.Kill())
	}
	return errors.Join(errs...)
}

// run starts a process of the cluster.
func (c *Cluster) run(spec proc.Spec) error {
	p, err := proc.Start(spec)
	if err != nil {
		return err
	}
	c.procs = append(c.procs, p)
	return nil
}

// fail stops a cluster that did not come up, and says what its processes printed.
func (c *Cluster) fail(err error) error {
	var b strings.Builder
	for _, p := range c.procs {
		fmt.Fprintf(&b, "\n--- %s ---\n%s", p.Spec.Name, p.Tail())
	}
	return errors.Join(fmt.Errorf("%w%s", err, b.String()), c.Stop())
}

// await tries until it succeeds, startTimeout has passed, or a process has ended.
func (c *Cluster) await(ctx context.Context, try func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	look := time.NewTicker(tick)
	defer look.Stop()
	for {
		short, done := context.WithTimeout(ctx, time.Second)
		err := try(short)
		done()
		if err == nil {
			return nil
		}
		for _, p := range c.procs {
			if !p.Running() {
				return fmt.Errorf("%s ended with exit code %d", p.Spec.Name, p.ExitCode())
			}
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return fmt.Errorf("it does not serve: %w (last: %w)", context.Cause(ctx), err)
		}
	}
}

// ready waits until a first write is answered. A cluster that does not come up is stopped.
func (c *Cluster) ready(ctx context.Context) (*Cluster, error) {
	err := c.await(ctx, func(ctx context.Context) error {
		conn, err := c.Connect(ctx)
		if err != nil {
			return err
		}
		return errors.Join(conn.Put(ctx, 0, []byte("first")), conn.Close())
	})
	if err != nil {
		return nil, c.fail(err)
	}
	return c, nil
}

// CPU is the processor time that all processes of the cluster have used.
func (c *Cluster) CPU() (time.Duration, error) {
	all := time.Duration(0)
	for _, p := range c.procs {
		used, err := CPUOf(p.Pid())
		if err != nil {
			return 0, fmt.Errorf("%s: %w", p.Spec.Name, err)
		}
		all += used
	}
	return all, nil
}

// clockTick is the unit of /proc/PID/stat: USER_HZ, 100 on every Linux of Go.
const clockTick = time.Second / 100

// CPUOf reads user and system time, fields 14 and 15 of proc(5) stat. The name of the
// program, in parentheses, may hold anything.
func CPUOf(pid int) (time.Duration, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, err
	}
	return parseCPU(string(b))
}

func parseCPU(stat string) (time.Duration, error) {
	after := strings.LastIndexByte(stat, ')')
	fields := strings.Fields(stat[after+1:])
	if after < 0 || len(fields) < 13 {
		return 0, fmt.Errorf("%q is no process status", stat)
	}
	ticks := int64(0)
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%q is no process status: %w", stat, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick, nil
}

// addresses are free ones on loopback.
func addresses(n int) ([]string, error) {
	ports, err := proc.Ports(n)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, p := range ports {
		all = append(all, "127.0.0.1:"+strconv.Itoa(p))
	}
	return all, nil
}
