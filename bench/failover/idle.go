// SPDX-License-Identifier: Apache-2.0

package failover

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hastate/hastate/bench/system"
)

// settle is how long a new cluster has until it counts as idle.
const settle = 5 * time.Second

// Idle is what a node costs beside a model server that nobody asks for anything.
type Idle struct {
	// CPUPercent of a core, and RSSMiB resident, of the node that takes most.
	CPUPercent float64 `json:"cpu_percent"`
	RSSMiB     float64 `json:"rss_mib"`
	// FsyncsPerS is what the disk was asked to flush while this ran, by anybody, divided
	// by the number of nodes.
	FsyncsPerS float64 `json:"fsyncs_per_s"`
}

// MeasureIdle looks at a cluster that only keeps its primary, for a duration. Case and
// Rounds of the options do not count.
func MeasureIdle(ctx context.Context, o Options, d time.Duration) (idle Idle, err error) {
	unix.Sync()
	dir, err := os.MkdirTemp(o.Dir, "hastate-idle-")
	if err != nil {
		return idle, fmt.Errorf("a folder for the data: %w", err)
	}
	c, err := start(ctx, o, dir)
	defer func() { err = errors.Join(err, c.stop(), os.RemoveAll(dir)) }()
	if err != nil {
		return idle, fmt.Errorf("start the cluster: %w%s", err, c.tails())
	}
	if err := pause(ctx, settle); err != nil {
		return idle, err
	}
	begun := time.Now()
	before, flushesBefore, err := c.cost(dir)
	if err != nil {
		return idle, err
	}
	if err := pause(ctx, d); err != nil {
		return idle, err
	}
	after, flushes, err := c.cost(dir)
	if err != nil {
		return idle, err
	}
	took := time.Since(begun).Seconds()
	for i, h := range c.hosts {
		rss, err := residentMiB(h.node.Pid())
		if err != nil {
			return idle, err
		}
		idle.RSSMiB = max(idle.RSSMiB, rss)
		idle.CPUPercent = max(idle.CPUPercent, 100*(after[i]-before[i]).Seconds()/took)
	}
	idle.FsyncsPerS = float64(flushes-flushesBefore) / took / hosts
	return idle, nil
}

// cost is the processor time of each node, and the flushes of the disk that dir is on.
func (c *cluster) cost(dir string) (cpu []time.Duration, flushes uint64, err error) {
	for _, h := range c.hosts {
		used, err := system.CPUOf(h.node.Pid())
		if err != nil {
			return nil, 0, fmt.Errorf("%s: %w", h.node.Spec.Name, err)
		}
		cpu = append(cpu, used)
	}
	var stat syscall.Stat_t
	if err := syscall.Stat(dir, &stat); err != nil {
		return nil, 0, err
	}
	text, err := os.ReadFile("/proc/diskstats")
	if err != nil {
		return nil, 0, err
	}
	flushes, err = flushesOf(string(text), unix.Major(stat.Dev), unix.Minor(stat.Dev))
	return cpu, flushes, err
}

// flushesOf reads the flush requests that a device has completed: the 16th figure after
// its name (Documentation/admin-guide/iostats.rst of Linux, from 5.5 on).
func flushesOf(diskstats string, major, minor uint32) (uint64, error) {
	for line := range strings.Lines(diskstats) {
		f := strings.Fields(line)
		if len(f) < 19 || f[0] != strconv.FormatUint(uint64(major), 10) || f[1] != strconv.FormatUint(uint64(minor), 10) {
			continue
		}
		return strconv.ParseUint(f[18], 10, 64)
	}
	return 0, fmt.Errorf("/proc/diskstats says nothing of the flushes of device %d:%d: choose a folder on a disk with -dir", major, minor)
}

// residentMiB reads VmRSS of proc(5) status.
func residentMiB(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kib, err := strconv.ParseFloat(f[1], 64)
			return kib / 1024, err
		}
	}
	return 0, errors.New("a process without VmRSS: it has ended")
}
