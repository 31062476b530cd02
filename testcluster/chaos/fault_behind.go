// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hastate/hastate/testcluster/chaos/rig"
)

// lostDiskBehind leaves an emptied voter alone with those that are behind. Together
// they are a majority, none of which has what was acknowledged last: they must not
// take it for one (docs/adr/0004). The others come back before the emptied voter is
// replaced, so that no more than one disk is ever lost.
func lostDiskBehind(ctx context.Context, s *stage, d *draw) (broken, error) {
	shuffled := d.shuffled(s)
	away := d.lease + time.Duration(d.Float64()*float64(d.lease)/2)
	leader := s.leader(ctx)
	if leader == nil {
		return broken{}, errNobody
	}
	rest := slices.DeleteFunc(shuffled, func(h *rig.Host) bool { return h == leader })
	minority := (len(s.members) - 1) / 2
	behind, empty := rest[:minority], rest[minority]
	gone := append([]*rig.Host{leader}, rest[minority+1:]...)
	b := broken{what: fmt.Sprintf("%s is behind by %v, then %s comes back with an empty disk and the leader %s is gone",
		names(behind), away.Round(time.Millisecond), empty.NodeID(), names(gone))}

	these, others := s.sides(behind)
	if err := s.both(these, others, rig.Policy{Cut: true}); err != nil {
		return b, err
	}
	if err := sleep(ctx, away); err != nil {
		return b, err
	}
	b.lost = s.held(ctx, append(slices.Clone(gone), empty)...)
	if err := s.kill(true, true, append(slices.Clone(gone), empty)...); err != nil {
		return b, err
	}
	if err := empty.Wipe(ctx); err != nil {
		return b, err
	}
	b.then = func(ctx context.Context) error {
		// Long enough for an election, and for writes that nobody should take.
		errs := []error{sleep(ctx, 3*d.lease)}
		for _, h := range gone {
			errs = append(errs, s.startHost(h))
		}
		return errors.Join(append(errs, s.replaceRefused(ctx, empty))...)
	}
	return b, errors.Join(s.both(these, others, rig.Policy{}), s.startHost(empty))
}

// replaceRefused replaces a node once it has ended, because the cluster refused it
// under its old id. One that takes part all the same is left to the checks.
func (s *stage) replaceRefused(ctx context.Context, h *rig.Host) error {
	timed, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		if p := h.Node(); !p.Running() {
			// Whether that is a refusal, and no crash, is judged with the other exits.
			s.ended = append(s.ended, exited{id: h.NodeID(), code: p.ExitCode(), tail: lastLines(p.Tail(), 12)})
			return s.replace(ctx, h)
		}
		if st, err := s.status(timed, h, false); err == nil && st.GetLeaderId() != "" && st.GetAppliedIndex() > 0 {
			s.say("  %s takes part under its old id", h.NodeID())
			return nil
		}
		select {
		case <-timed.Done():
			return s.replace(ctx, h)
		case <-tick.C:
		}
	}
}
