// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hastate/hastate/internal/logstore"
	"github.com/hastate/hastate/testcluster/chaos/rig"
)

// oldLog lets a majority come back with copies of their logs that are older than
// their states, as a restored image of a machine is. They must refuse: together
// they would elect one of them and go on without what they have acknowledged since.
// Then they get their newer logs back.
func oldLog(ctx context.Context, s *stage, d *draw) (broken, error) {
	hosts := d.shuffled(s)[:len(s.members)/2+1]
	b := broken{what: names(hosts) + " come back with older copies of their logs"}
	older, err := s.takeLogs(hosts)
	if err != nil {
		return b, err
	}
	for _, h := range s.members {
		if err := s.startHost(h); err != nil {
			return b, err
		}
	}
	b.then = func(ctx context.Context) error {
		if err := s.waitWhole(ctx); err != nil {
			return err
		}
		if err := s.waitFlushed(ctx, hosts); err != nil {
			return err
		}
		newer, err := s.takeLogs(hosts)
		if err != nil {
			return err
		}
		defer dropLogs(older, newer)
		if err := putLogs(older); err != nil {
			return err
		}
		// Whoever starts all the same keeps the older one: the histories show it.
		if refused, err := s.allRefuse(ctx, hosts); err != nil || !refused {
			return err
		}
		return putLogs(newer)
	}
	return b, nil
}

// takenLogs are copies of logs, in the folder of the run.
type takenLogs map[*rig.Host]string

// takeLogs ends all nodes and copies the logs of some.
func (s *stage) takeLogs(hosts []*rig.Host) (takenLogs, error) {
	if err := s.kill(true, true, s.members...); err != nil {
		return nil, err
	}
	taken := takenLogs{}
	for _, h := range hosts {
		log, err := logOf(h)
		if err != nil {
			return nil, err
		}
		dir, err := os.MkdirTemp(s.dir, "log-")
		if err != nil {
			return nil, fmt.Errorf("copy a log: %w", err)
		}
		taken[h] = filepath.Join(dir, filepath.Base(log))
		if err := copyLog(taken[h], log); err != nil {
			return nil, fmt.Errorf("copy the log of %s: %w", h.NodeID(), err)
		}
	}
	return taken, nil
}

func logOf(h *rig.Host) (string, error) {
	kind, err := logstore.Find(h.DataDir())
	if err == nil && kind == "" {
		err = fmt.Errorf("%s has no log", h.NodeID())
	}
	return logstore.PathIn(h.DataDir(), kind), err
}

// copyLog copies a log, a file or a folder of files, over another.
func copyLog(to, from string) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return os.CopyFS(to, os.DirFS(from))
	}
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}

func putLogs(taken takenLogs) error {
	var errs []error
	for h, path := range taken {
		log, err := logOf(h)
		if err == nil {
			err = copyLog(log, path)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func dropLogs(taken ...takenLogs) {
	for _, logs := range taken {
		for _, path := range logs {
			_ = os.RemoveAll(filepath.Dir(path)) // what is left goes with the folder of the run
		}
	}
}

// waitFlushed waits until the state files of some nodes go beyond all that their
// logs hold now.
func (s *stage) waitFlushed(ctx context.Context, hosts []*rig.Host) error {
	ctx, cancel := context.WithTimeout(ctx, wholeTimeout)
	defer cancel()
	tick := time.NewTicker(2 * lookEvery)
	defer tick.Stop()
	for _, h := range hosts {
		st, err := s.status(ctx, h, false)
		if err != nil {
			return err
		}
		for {
			flushed, err := s.metric(ctx, h, "hastate_flushed_index")
			if err == nil && uint64(flushed) > st.GetLastLogIndex() {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("the state file of %s did not get beyond entry %d: %w", h.NodeID(), st.GetLastLogIndex(), ctx.Err())
			case <-tick.C:
			}
		}
	}
	return nil
}

// allRefuse starts some hosts and reports whether every node of them ends.
func (s *stage) allRefuse(ctx context.Context, hosts []*rig.Host) (bool, error) {
	for _, h := range hosts {
		if err := s.startDamaged(ctx, h); err != nil {
			return false, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, refusePatience)
	defer cancel()
	for _, h := range hosts {
		select {
		case <-h.Node().Exited():
			// Why is judged with the other exits.
			s.ended = append(s.ended, exited{id: h.NodeID(), code: h.Node().ExitCode(), tail: lastLines(h.Node().Tail(), 12)})
			s.downed[h] = true
		case <-ctx.Done():
			s.say("  %s goes on with an older log", h.NodeID())
			return false, nil
		}
	}
	return true, nil
}
