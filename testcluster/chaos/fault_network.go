// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/hastate/hastate/testcluster/chaos/rig"
)

func networkFaults() []fault {
	const family = "network"
	return []fault{
		{kind: "cut-leader", family: family, weight: 2, what: "the leader is cut off, from its clients too now and then", inject: cutting(func(ctx context.Context, s *stage, d *draw) []*rig.Host {
			return one(s.leader(ctx))
		})},
		{kind: "cut-primary", family: family, weight: 4, what: "the primary's host is cut off", inject: cutting(func(ctx context.Context, s *stage, d *draw) []*rig.Host {
			return one(s.primary(ctx, d.group(s)))
		})},
		{kind: "cut-uncounted", family: family, weight: 2, alone: true, what: "the primary's host is cut off, and its model server obeys Demote but does not count its lease", inject: cutUncounted},
		{kind: "late-answers-then-cut", family: family, weight: 1, alone: true, what: "all that comes to a primary is late, by almost as much as it accepts, then it is not heard any more", inject: lateAnswers},
		{kind: "mute-leader", family: family, weight: 1, root: true, alone: true, dark: true, what: "a leader that is not heard hears its successor while it still counts as one, and is given a write", inject: muteLeader},
		{kind: "deaf-leader", family: family, weight: 1, what: "the leader is heard and hears nothing: others have what it can never know to be committed", inject: deafLeader},
		{kind: "cut-minority", family: family, weight: 2, what: "a minority of the hosts is cut off", inject: cutting(func(_ context.Context, s *stage, d *draw) []*rig.Host {
			return d.minority(s)
		})},
		{kind: "cut-oneway", family: family, weight: 2, what: "a host is heard and hears nothing, or the other way round", inject: cutOneWay},
		{kind: "cut-partial", family: family, weight: 2, what: "two hosts do not reach each other, both reach the rest", inject: cutPartial},
		{kind: "flap", family: family, weight: 1, what: "the links of a host go and come several times a second", inject: flap},
		{kind: "slow-link", family: family, weight: 2, what: "delay and jitter on all links of a host", inject: linking(func(d *draw) rig.Policy {
			return rig.Policy{Delay: time.Duration(10+d.IntN(150)) * time.Millisecond, Jitter: time.Duration(d.IntN(60)) * time.Millisecond}
		})},
		{kind: "lossy-link", family: family, weight: 2, what: "loss and reordering on all links of a host", inject: linking(func(d *draw) rig.Policy {
			return rig.Policy{Loss: 0.02 + 0.2*d.Float64(), Reorder: 0.2 * d.Float64(), Delay: time.Duration(d.IntN(5)) * time.Millisecond}
		})},
		{kind: "reset-storm", family: family, weight: 1, what: "connections of a host are reset over and over", inject: linking(func(d *draw) rig.Policy {
			return rig.Policy{Reset: 0.05 + 0.3*d.Float64()}
		})},
	}
}

func one(h *rig.Host) []*rig.Host {
	if h == nil {
		return nil
	}
	return []*rig.Host{h}
}

// between sets the policy of the links from the hosts of a to those of b. A link that
// is cut stays so if another fault only makes it bad: of two faults that are drawn
// together none may put right what the other has broken.
func (s *stage) between(a, b []int, p rig.Policy) error {
	for _, from := range a {
		for _, to := range b {
			if from == to {
				continue
			}
			p, link := p, [2]int{from, to}
			switch {
			case p.Cut || p == (rig.Policy{}):
				s.cuts[link] = p.Cut
			case s.cuts[link]:
				p.Cut = true
			}
			if err := s.rig.Link(from, to).Set(p); err != nil {
				return fmt.Errorf("link from %d to %d: %w", from, to, err)
			}
		}
	}
	return nil
}

// both sets the policy of the links between the hosts of a and those of b.
func (s *stage) both(a, b []int, p rig.Policy) error {
	if err := s.between(a, b, p); err != nil {
		return err
	}
	return s.between(b, a, p)
}

// sides are the indexes of some hosts and of the other members.
func (s *stage) sides(hosts []*rig.Host) (these, others []int) {
	for _, h := range s.members {
		if slices.Contains(hosts, h) {
			these = append(these, h.Index())
		} else {
			others = append(others, h.Index())
		}
	}
	return these, others
}

// cutting cuts hosts off from the others, and half of the time from the clients,
// in both directions.
func cutting(choose func(context.Context, *stage, *draw) []*rig.Host) func(context.Context, *stage, *draw) (broken, error) {
	return func(ctx context.Context, s *stage, d *draw) (broken, error) {
		hosts := choose(ctx, s, d)
		if hosts == nil {
			return broken{}, errNobody
		}
		b := broken{what: "cut off " + names(hosts), spared: s.elsewhere(ctx, hosts...), hold: d.around()}
		if b.hold > 2*d.lease {
			b.lost = s.held(ctx, hosts...)
		}
		these, others := s.sides(hosts)
		if d.IntN(2) == 0 && s.o.root {
			others, b.what = append(others, rig.Hub), b.what+", from clients too"
		}
		b.what = fmt.Sprintf("%s for %v", b.what, b.hold.Round(time.Millisecond))
		if err := s.between(these, others, rig.Policy{Cut: true}); err != nil {
			return b, err
		}
		return b, s.between(others, these, rig.Policy{Cut: true})
	}
}

// cutUncounted leaves it to the node to silence the model server in time: nothing
// else does.
func cutUncounted(ctx context.Context, s *stage, d *draw) (broken, error) {
	h := s.primary(ctx, d.group(s))
	if h == nil {
		return broken{}, errNobody
	}
	held := s.held(ctx, h)
	for _, g := range held { // another one may have counted its lease to the end before, and not been demoted
		if err := h.ModelControl(ctx, g, []byte(`{"uncounted":true}`)); err != nil {
			return broken{}, err
		}
	}
	b := broken{what: h.NodeID() + " is cut off, its model servers do not count their leases", lost: held, spared: s.elsewhere(ctx, h), hold: d.above() + d.lease}
	these, others := s.sides(one(h))
	if err := s.between(these, others, rig.Policy{Cut: true}); err != nil {
		return b, err
	}
	return b, s.between(others, these, rig.Policy{Cut: true})
}

func cutOneWay(ctx context.Context, s *stage, d *draw) (broken, error) {
	h, who := d.target(ctx, s)
	b := broken{hold: d.around()}
	these, others := s.sides(one(h))
	if d.IntN(2) == 0 {
		b.what = who + " hears nothing"
		return b, s.between(others, these, rig.Policy{Cut: true})
	}
	b.what = who + " is not heard"
	return b, s.between(these, others, rig.Policy{Cut: true})
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

func cutPartial(ctx context.Context, s *stage, d *draw) (broken, error) {
	h, who := d.target(ctx, s)
	other := d.other(s, h)
	b := broken{what: fmt.Sprintf("%s and %s do not reach each other", who, other.NodeID()), hold: d.above()}
	a, z := []int{h.Index()}, []int{other.Index()}
	if err := s.between(a, z, rig.Policy{Cut: true}); err != nil {
		return b, err
	}
	return b, s.between(z, a, rig.Policy{Cut: true})
}

func flap(ctx context.Context, s *stage, d *draw) (broken, error) {
	h, who := d.target(ctx, s)
	these, others := s.sides(one(h))
	others = slices.DeleteFunc(others, func(i int) bool { return s.cuts[[2]int{i, h.Index()}] || s.cuts[[2]int{h.Index(), i}] })
	b := broken{what: "the links of " + who + " flap"}
	if len(others) == 0 {
		return b, errNobody
	}
	b.then = func(ctx context.Context) error {
		for i := range 10 {
			p := rig.Policy{Cut: i%2 == 0}
			if err := s.between(these, others, p); err != nil {
				return err
			}
			if err := s.between(others, these, p); err != nil {
				return err
			}
			if err := sleep(ctx, time.Duration(50+d.IntN(400))*time.Millisecond); err != nil {
				return err
			}
		}
		return nil
	}
	return b, nil
}

// linking makes all links of a host bad, clients' included where that can be had.
func linking(choose func(*draw) rig.Policy) func(context.Context, *stage, *draw) (broken, error) {
	return func(ctx context.Context, s *stage, d *draw) (broken, error) {
		h, who := d.target(ctx, s)
		p := choose(d)
		these, others := s.sides(one(h))
		if s.o.root && d.IntN(2) == 0 {
			others = append(others, rig.Hub)
		}
		b := broken{what: fmt.Sprintf("links of %s: %+v", who, p), hold: d.above()}
		if err := s.between(these, others, p); err != nil {
			return b, err
		}
		return b, s.between(others, these, p)
	}
}
