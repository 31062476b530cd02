// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/hastate/hastate/testcluster/chaos/rig"
)

// deafFaults are one-way cuts that are aimed. cut-oneway hits the leader now and
// then; here it is the leader each time, and in the direction that matters.
func deafFaults() []fault {
	return []fault{{
		kind: "deaf-leader", family: "network", weight: 1,
		what: "the leader is heard and hears nothing: others have what it can never know to be committed", inject: deafLeader,
	}}
}

// deafLeader cuts the ways to the leader. The others store what it sends until it
// steps down, and commit it under the next leader: the outcome of those writes is
// unknown to it and to its clients.
func deafLeader(ctx context.Context, s *stage, d *draw) (broken, error) {
	h := s.leader(ctx)
	if h == nil {
		return broken{}, errNobody
	}
	b := broken{what: fmt.Sprintf("the leader %s hears nothing", h.NodeID()), hold: d.above()}
	these, others := s.sides(one(h))
	return b, s.between(others, these, rig.Policy{Cut: true})
}
