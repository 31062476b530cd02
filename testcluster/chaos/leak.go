// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"github.com/hastate/hastate/testcluster/chaos/record"
)

// sample is what a node used at one time.
type sample struct {
	at time.Time
	// rss and disk in bytes.
	rss, goroutines, files, disk float64
}

// leaks are the samples of every process that was seen, by node and pid: a node
// that was started anew begins anew.
type leaks map[string][]sample

// look takes a sample of every member, at rest.
func (l leaks) look(ctx context.Context, s *stage) {
	for _, h := range s.members {
		m, err := s.metrics(ctx, h)
		if err != nil {
			continue // it is looked at again
		}
		key := fmt.Sprintf("%s (pid %d)", h.NodeID(), h.Node().Pid())
		l[key] = append(l[key], sample{
			at: time.Now(), rss: m["process_resident_memory_bytes"], goroutines: m["go_goroutines"], files: m["process_open_fds"],
			disk: folderBytes(h.DataDir()),
		})
	}
}

func folderBytes(dir string) float64 {
	total := 0.0
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // a file that has just gone
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
			total += float64(info.Size())
		}
		return nil
	})
	return total
}

const (
	// minSamples of a process, over minAge, are needed to tell growth from warming
	// up.
	minSamples = 9
	minAge     = 5 * time.Minute
)

func old(all []sample) bool {
	return len(all) >= minSamples && all[len(all)-1].at.Sub(all[0].at) >= minAge
}

// judged is how many processes lived long enough to tell.
func (l leaks) judged() int {
	n := 0
	for _, all := range l {
		if old(all) {
			n++
		}
	}
	return n
}

// grown says what has grown from the second third of a process's life to the
// last, beyond what the allocator and a state that grows explain. The first third
// is warming up.
func (l leaks) grown() []record.Violation {
	var found []record.Violation
	for key, all := range l {
		if !old(all) {
			continue
		}
		third := len(all) / 3
		for _, what := range []struct {
			name          string
			of            func(sample) float64
			factor, slack float64
		}{
			{"resident memory", func(s sample) float64 { return s.rss }, 1.3, 24 << 20},
			{"goroutines", func(s sample) float64 { return s.goroutines }, 1.2, 40},
			{"file descriptors", func(s sample) float64 { return s.files }, 1.2, 16},
			{"data folder", func(s sample) float64 { return s.disk }, 1.5, 32 << 20},
		} {
			before, after := median(all[third:2*third], what.of), median(all[2*third:], what.of)
			if after > what.factor*before+what.slack {
				found = append(found, record.Violation{Check: "leak", Text: fmt.Sprintf("%s: %s grew from %.0f to %.0f", key, what.name, before, after)})
			}
		}
	}
	return found
}

func median(all []sample, of func(sample) float64) float64 {
	var values []float64
	for _, s := range all {
		values = append(values, of(s))
	}
	slices.Sort(values)
	return values[len(values)/2]
}
