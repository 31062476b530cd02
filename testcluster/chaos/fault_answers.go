// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/hastate/hastate/testcluster/chaos/rig"
)

// lateSteps is in how many steps a delay grows: what is under way is held up by no
// more than one of them, which no election timeout notices.
const lateSteps = 4

// lateAnswers lets a primary hear of its renewals late, by almost as much as it
// accepts, and then silences it. A holder must not count from when it heard: the
// leader does not. The answers that are under way still arrive.
func lateAnswers(ctx context.Context, s *stage, d *draw) (broken, error) {
	group, other := d.group(s), d.IntN(len(s.members)-1)
	// A third of the lease is too late to be used.
	late := time.Duration(float64(d.lease) * (0.28 + 0.03*d.Float64()))
	h := s.primary(ctx, group)
	if h == nil {
		return broken{}, errNobody
	}
	// The leader needs no answer from others.
	if s.leader(ctx) == h {
		_, rest := s.sides(one(h))
		if err := s.lead(ctx, s.rig.Hosts()[rest[other]]); err != nil {
			return broken{}, err
		}
	}
	b := broken{what: fmt.Sprintf("the primary of %s, %s, hears everything %v late, then is not heard", group, h.NodeID(), late.Round(time.Millisecond)), lost: s.held(ctx, h)}
	these, others := s.sides(one(h))
	for i := range lateSteps {
		if err := s.between(others, these, rig.Policy{Delay: late * time.Duration(i+1) / lateSteps}); err != nil {
			return b, err
		}
		if err := sleep(ctx, d.lease/8); err != nil {
			return b, err
		}
	}
	b.then = func(ctx context.Context) error {
		if err := sleep(ctx, d.lease/2+time.Duration(d.Float64()*float64(d.lease)/2)); err != nil {
			return err
		}
		if err := s.between(these, others, rig.Policy{Cut: true}); err != nil {
			return err
		}
		return sleep(ctx, 5*d.lease/2)
	}
	return b, nil
}
