// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/hastate/hastate/testcluster/chaos/rig"
)

// fault is one way to break a cluster.
type fault struct {
	kind, family string
	// weight is how often it is drawn, against the others.
	weight int
	// root: it needs namespaces and disks.
	root bool
	// harmless: no primary may move by it.
	harmless bool
	// exits says whether the end of what a process printed and its exit code show that
	// it ended by itself for a reason that the fault gives it; nil: none may end.
	exits func(tail string, code int) bool
	// must: alone on a whole cluster, what it asks of the cluster must be done.
	must bool
	// aimed: it touches no groups but those whose primary it takes away.
	aimed bool
	// alone: not to be paired with another fault.
	alone bool
	// loses: what a voter had is gone for good. Two of these at once may take what
	// only a majority had.
	loses bool
	// dark: groups may be without a primary for as long as it stays broken. Under any
	// other one that is alone none may be for longer than darkLeases.
	dark bool
	what string
	// break does it. What cannot be done now (nobody leads) is an error; the
	// round then goes on with whatever was broken.
	inject func(ctx context.Context, s *stage, d *draw) (broken, error)
}

// broken is what was done.
type broken struct {
	// what, for people.
	what string
	// lost are the groups whose primary is certainly taken away.
	lost []string
	// spared are groups whose primary is where nothing is broken, so that it must stay,
	// whoever leads: it keeps its lease while another leader is elected. Only for faults
	// that take what they break away from the others at once, and all of it, also if it
	// leads. A disk that hangs or is full, links that are slow, lossy, or cut in one
	// direction leave a leader that is followed and does less, or nothing: how long the
	// others put up with it is not bounded by an election, and a lease may run out
	// meanwhile wherever its holder is.
	spared []string
	// leader, if not nil, is the leader that was taken away: another one must lead
	// while it stays broken.
	leader *rig.Host
	// hold is how long it stays broken, from the beginning of the round.
	hold time.Duration
	// then is done after hold and before everything is put right; may be nil.
	then func(ctx context.Context) error
}

// faults are all, by family.
func faults() []fault {
	return slices.Concat(processFaults(), networkFaults(), diskFaults(), clockFaults(), memberFaults(), lateFaults(), modelFaults(), operatorFaults())
}

// chosen are the faults that a flag names: "all", "none", kinds, families, or
// the beginning of kinds up to a hyphen ("power-cut" is power-cut-all,
// power-cut-behind and power-cut-host); what is the whole name of a kind is that
// kind alone.
func chosen(names string, root bool) (found []fault, skipped []string, err error) {
	if names == "none" {
		return nil, nil, nil
	}
	for name := range strings.SplitSeq(names, ",") {
		if name = strings.TrimSpace(name); name == "none" {
			return nil, nil, errors.New("faults: none stands alone: leave it out, or the others")
		}
		n := 0
		exact := slices.ContainsFunc(faults(), func(f fault) bool { return f.kind == name })
		for _, f := range faults() {
			if name != "all" && name != f.kind && (exact || name != f.family && !strings.HasPrefix(f.kind, name+"-")) {
				continue
			}
			if name == "all" && f.weight == 0 {
				continue // only when it is asked for
			}
			n++
			if f.root && !root {
				skipped = append(skipped, f.kind)
				continue
			}
			f.weight = max(f.weight, 1)
			found = append(found, f)
		}
		if n == 0 {
			return nil, nil, fmt.Errorf("fault %q is not known: 'go run ./testcluster/chaos faults' lists them; or use all, or none", name)
		}
	}
	if len(found) == 0 {
		return nil, nil, fmt.Errorf("all faults asked for need root: %s", strings.Join(skipped, ", "))
	}
	return found, skipped, nil
}

// draw is the random source of a run or of a round, with what faults draw from it.
type draw struct {
	*rand.Rand
	seed uint64
	// lease is the length that times are drawn around.
	lease time.Duration
}

func newDraw(seed uint64, lease time.Duration) *draw {
	return (&draw{seed: seed, lease: lease}).round(0)
}

// round is the source of one round, from 1 on: how much the rounds before have
// drawn, which depends on what they met, makes no difference to it.
func (d *draw) round(n int) *draw {
	return &draw{Rand: rand.New(rand.NewPCG(d.seed, uint64(n))), seed: d.seed, lease: d.lease} //nolint:gosec // repeatable, not secret
}

// around is a time below, around or far above the lease.
func (d *draw) around() time.Duration {
	factor := []float64{0.3, 0.95, 1.1, 2.5}[d.IntN(4)]
	return time.Duration(float64(d.lease) * factor * (0.9 + 0.2*d.Float64()))
}

// above is a time in which a lease runs out and another primary serves.
func (d *draw) above() time.Duration {
	return time.Duration(float64(d.lease) * (1.9 + d.Float64()))
}

func (d *draw) group(s *stage) string { return s.groups[d.IntN(len(s.groups))] }

func (d *draw) host(s *stage) *rig.Host { return s.members[d.IntN(len(s.members))] }

// other is a member but for one.
func (d *draw) other(s *stage, but *rig.Host) *rig.Host {
	rest := slices.DeleteFunc(slices.Clone(s.members), func(h *rig.Host) bool { return h == but })
	return rest[d.IntN(len(rest))]
}

// target is the leader, the primary of a group, or any member.
func (d *draw) target(ctx context.Context, s *stage) (*rig.Host, string) {
	// All is drawn in any case: what is drawn after it depends on no answer.
	group, which, h := d.group(s), d.IntN(5), d.host(s)
	switch which {
	case 0:
		if h := s.leader(ctx); h != nil {
			return h, "the leader " + h.NodeID()
		}
	case 1, 2, 3: // failovers are what we are here for
		if h := s.primary(ctx, group); h != nil {
			return h, "the primary of " + group + ", " + h.NodeID()
		}
	}
	return h, h.NodeID()
}

// minority is a set of members that leaves a majority.
func (d *draw) minority(s *stage) []*rig.Host {
	n := 1 + d.IntN(max(1, (len(s.members)-1)/2))
	return d.shuffled(s)[:n]
}

// shuffled are all members, in any order.
func (d *draw) shuffled(s *stage) []*rig.Host {
	all := slices.Clone(s.members)
	d.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// pick draws one or two faults.
func (d *draw) pick(from []fault, pairs bool) []fault {
	first := d.one(from)
	if !pairs || first.alone || d.IntN(10) < 7 {
		return []fault{first}
	}
	rest := slices.DeleteFunc(slices.Clone(from), func(f fault) bool {
		// What is set at a model server takes the place of what was.
		return f.alone || f.kind == first.kind || f.loses && first.loses || f.family == modelFamily && first.family == modelFamily
	})
	if len(rest) == 0 {
		return []fault{first}
	}
	return []fault{first, d.one(rest)}
}

func (d *draw) one(from []fault) fault {
	total := 0
	for _, f := range from {
		total += f.weight
	}
	n := d.IntN(total)
	for _, f := range from {
		if n -= f.weight; n < 0 {
			return f
		}
	}
	panic("chaos: weights do not add up")
}

func names(hosts []*rig.Host) string {
	var ids []string
	for _, h := range hosts {
		ids = append(ids, h.NodeID())
	}
	return strings.Join(ids, ", ")
}

// sleep waits, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
