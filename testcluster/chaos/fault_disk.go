// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hastate/hastate/testcluster/chaos/rig"
)

// refusePatience is how long a node may take to refuse its files.
const refusePatience = 5 * time.Second

// errNobody: the one that should be broken could not be found out.
var errNobody = errors.New("nobody to break: no leader or primary is known")

func diskFaults() []fault {
	const family = "disk"
	return []fault{
		{kind: "disk-stall", family: family, weight: 2, exits: stalled, what: "every write of the leader's disk hangs for 10 s (G9)", alone: true, inject: diskStall},
		{kind: "disk-stall-host", family: family, weight: 2, exits: stalled, alone: true, what: "the disk of any host, often of a primary that does not lead, hangs for three leases", inject: diskStallHost},
		{kind: "power-cut-all", family: family, weight: 3, root: true, alone: true, what: "power cut of all hosts at once, often just after a log was truncated: what was not fsynced is gone", inject: powerCutAll},
		{kind: "power-cut-behind", family: family, weight: 1, root: true, alone: true, what: "the disks of all but the leader hang, then the power of all hosts is cut and the leader's comes back last: what it alone had must not have been acknowledged", inject: powerCutBehind},
		{kind: "power-cut-host", family: family, weight: 2, root: true, what: "power cut of one host, often the leader's", inject: func(ctx context.Context, s *stage, d *draw) (broken, error) {
			h, who := d.target(ctx, s)
			lost, spared := s.held(ctx, h), s.elsewhere(ctx, h)
			b, err := powerCut(s, who, h)
			b.lost, b.spared, b.hold = lost, spared, d.above()
			return b, err
		}},
		{kind: "disk-full", family: family, weight: 1, root: true, exits: noSpace, what: "no space is left on the disk of a host", inject: diskFull},
		{kind: "lost-disk", family: family, weight: 1, loses: true, exits: refusedJoin, what: "a voter comes back under its id with an empty disk: it must not vote, and is replaced", inject: lostDisk},
		{kind: "torn-log", family: family, weight: 1, exits: refusedData, alone: true, what: "the used end or the newest meta page of a node's log file is torn: it may refuse to start, and is replaced", inject: damage(harmLog(tear, tearSegment))},
		{kind: "old-log", family: family, weight: 1, exits: refusedData, alone: true, what: "a majority comes back with logs that are older than its states: it must refuse, and gets its newer ones back", inject: oldLog},
		{kind: "flip-bits", family: family, weight: 1, exits: refusedData, alone: true, what: "bits of what is used of a node's files are flipped while it is down, often those of what clients have written", inject: func(ctx context.Context, s *stage, d *draw) (broken, error) {
			choose := harmLog(flip, flipSegment)
			if d.IntN(2) == 1 {
				choose = func(h *rig.Host, _ *draw) (string, harm, error) {
					return filepath.Join(h.DataDir(), "state.db"), flip, nil
				}
			}
			return damage(choose)(ctx, s, d)
		}},
	}
}

// stallFor is how long the leader's disk hangs: longer than the library would
// ever recover from, longer than the limit at which the process ends.
const stallFor = 10 * time.Second

func diskStall(ctx context.Context, s *stage, _ *draw) (broken, error) {
	h := s.leader(ctx)
	if h == nil {
		return broken{}, errNobody
	}
	b := broken{what: fmt.Sprintf("the disk of the leader %s hangs for %v", h.NodeID(), stallFor), leader: h, hold: stallFor}
	b.then = func(ctx context.Context) error { return h.Thaw(ctx) }
	return b, h.Freeze(ctx)
}

// diskStallHost hangs a disk that the leader need not have: a primary renews its
// lease through the leader, whatever its own disk does. It stands alone: whatever
// else touches a frozen disk, or ends a process that writes to it, would wait for
// the thaw that comes after it.
func diskStallHost(ctx context.Context, s *stage, d *draw) (broken, error) {
	h, who := d.target(ctx, s)
	b := broken{hold: 3 * d.lease}
	b.what = fmt.Sprintf("the disk of %s hangs for %v", who, b.hold)
	b.then = func(ctx context.Context) error { return h.Thaw(ctx) }
	return b, h.Freeze(ctx)
}

// powerCutAll cuts the power at any time, or just after a node has truncated its
// log: what it has dropped there is nowhere else than in the state file.
func powerCutAll(ctx context.Context, s *stage, d *draw) (broken, error) {
	who := "all"
	if d.IntN(2) == 0 {
		if h := s.waitTruncated(ctx); h != nil {
			who = "all, after " + h.NodeID() + " has truncated its log"
		}
	}
	return powerCut(s, who, s.members...)
}

// powerCutBehind leaves the newest entries on the leader's disk alone: for as long as the
// other disks hang nothing may be acknowledged, since the others elect one of them.
func powerCutBehind(ctx context.Context, s *stage, d *draw) (broken, error) {
	leader := s.leader(ctx)
	if leader == nil {
		return broken{}, errNobody
	}
	// Too short for a node to give up its disk, or for anybody to miss a lease.
	hang := time.Duration(1+d.IntN(3)) * d.lease / 8
	b := broken{what: fmt.Sprintf("power cut: all, after the disks of all but the leader %s hung for %v; it comes back last", leader.NodeID(), hang), hold: 3 * d.lease}
	var others []*rig.Host
	for _, h := range s.members {
		if h == leader {
			continue
		}
		others = append(others, h)
		if err := h.Freeze(ctx); err != nil {
			return b, err
		}
	}
	if err := sleep(ctx, hang); err != nil {
		return b, err
	}
	if _, err := powerCut(s, "", s.members...); err != nil {
		return b, err
	}
	var errs []error
	for _, h := range others {
		errs = append(errs, s.startHost(h))
	}
	return b, errors.Join(errs...)
}

// waitTruncated waits until a member drops the beginning of its log; nil if none
// does for as long as the load should need.
func (s *stage) waitTruncated(ctx context.Context) *rig.Host {
	const metric = "hastate_log_first_index"
	ctx, cancel := context.WithTimeout(ctx, 12*time.Second)
	defer cancel()
	before := map[*rig.Host]float64{}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		for _, h := range s.members {
			first, err := s.metric(ctx, h, metric)
			if err != nil {
				continue
			}
			if was, known := before[h]; known && first > was {
				return h
			}
			before[h] = first
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func powerCut(s *stage, who string, hosts ...*rig.Host) (broken, error) {
	for _, h := range hosts {
		s.downed[h] = true
	}
	return broken{what: "power cut: " + who}, s.rig.PowerCut(hosts...)
}

func diskFull(ctx context.Context, s *stage, d *draw) (broken, error) {
	h, who := d.target(ctx, s)
	return broken{what: "the disk of " + who + " is full", hold: d.above()}, h.Fill()
}

// lostDisk brings a voter back that knows nothing of what it has acknowledged
// (docs/adr/0004). Until it is replaced the others are a majority without it.
func lostDisk(ctx context.Context, s *stage, d *draw) (broken, error) {
	h, who := d.target(ctx, s)
	b := broken{what: who + " comes back with an empty disk", lost: s.held(ctx, h), spared: s.elsewhere(ctx, h), hold: d.above()}
	if err := s.kill(true, true, h); err != nil {
		return b, err
	}
	if err := h.Wipe(ctx); err != nil {
		return b, err
	}
	b.then = func(ctx context.Context) error { return s.replace(ctx, h) }
	return b, s.startHost(h)
}

// damage ends a node, damages a file of its, and starts it again. It must refuse
// to start or go on with the very state that the others have; it must never
// serve another one, which the check of convergence and the histories show. If it
// refuses, it is replaced, as an operator would do.
func damage(choose func(*rig.Host, *draw) (string, harm, error)) func(context.Context, *stage, *draw) (broken, error) {
	return func(ctx context.Context, s *stage, d *draw) (broken, error) {
		h, who := d.target(ctx, s)
		b := broken{lost: s.held(ctx, h), spared: s.elsewhere(ctx, h), what: who + " ends"}
		if err := s.kill(true, true, h); err != nil {
			return b, err
		}
		path, how, err := choose(h, d)
		if err != nil {
			return b, err
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return b, fmt.Errorf("damage %s: %w", path, err)
		}
		what, err := how(f, d)
		b.what = fmt.Sprintf("%s of %s: %s", filepath.Base(path), who, what)
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			return b, err
		}
		b.hold = d.lease
		b.then = func(ctx context.Context) error { return s.startOrReplace(ctx, h) }
		return b, nil
	}
}

// startOrReplace starts a node whose files were damaged. If it refuses to start,
// it is replaced.
func (s *stage) startOrReplace(ctx context.Context, h *rig.Host) error {
	if err := s.startDamaged(ctx, h); err != nil {
		return err
	}
	timed, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		if p := h.Node(); !p.Running() {
			s.say("  %s refuses to start, and is replaced: %s", h.NodeID(), lastLines(p.Tail(), 1))
			// Whether that is a refusal, and no crash, is judged with the other exits.
			s.ended = append(s.ended, exited{id: h.NodeID(), code: p.ExitCode(), tail: lastLines(p.Tail(), 12)})
			return s.replace(ctx, h)
		}
		if st, err := s.status(timed, h, false); err == nil && st.GetLeaderId() != "" && st.GetAppliedIndex() >= st.GetCommitIndex() {
			s.say("  %s goes on with its damaged file", h.NodeID())
			return nil
		}
		select {
		case <-timed.Done():
			return fmt.Errorf("%s neither starts nor ends after its files were damaged: %s", h.NodeID(), lastLines(h.Node().Tail(), 5))
		case <-tick.C:
		}
	}
}

// startDamaged starts a host whose node may refuse its files, and so end while it is
// told what else is broken: then that it ended is what counts.
func (s *stage) startDamaged(ctx context.Context, h *rig.Host) error {
	err := s.startHost(h)
	if err == nil || h.Node() == nil {
		return err
	}
	timer := time.NewTimer(refusePatience)
	defer timer.Stop()
	select {
	case <-h.Node().Exited():
		return nil
	case <-timer.C:
	case <-ctx.Done():
	}
	return err
}
