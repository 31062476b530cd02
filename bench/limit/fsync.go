// SPDX-License-Identifier: Apache-2.0

// Package limit measures what the machine can do at best, in the same run as all else.
package limit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hastate/hastate/bench/loop"
)

// block is what is written before each sync.
const block = 4 << 10

// Fdatasync writes a block over and over in a file that was filled before, syncs it
// each time, and returns the median and the 99th percentile of a write with its sync.
func Fdatasync(dir string, duration time.Duration) (p50, p99 time.Duration, err error) {
	path := filepath.Join(dir, "fdatasync")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(path)) }()
	const blocks = 1024
	if _, err := f.Write(make([]byte, blocks*block)); err != nil {
		return 0, 0, fmt.Errorf("fill %s: %w", path, err)
	}
	if err := f.Sync(); err != nil {
		return 0, 0, err
	}
	var took []time.Duration
	content := make([]byte, block)
	for end := time.Now().Add(duration); len(took) == 0 || time.Now().Before(end); {
		content[0]++
		begun := time.Now()
		if _, err := f.WriteAt(content, int64(len(took)%blocks)*block); err != nil {
			return 0, 0, err
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return 0, 0, fmt.Errorf("fdatasync %s: %w", path, err)
		}
		took = append(took, time.Since(begun))
	}
	slices.Sort(took)
	return loop.Quantile(took, 0.5), loop.Quantile(took, 0.99), nil
}
