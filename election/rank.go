// SPDX-License-Identifier: Apache-2.0

package election

import (
	"cmp"
	"fmt"
	"slices"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Candidate is how one instance stands when the leader looks for a primary.
type Candidate struct {
	NodeID      string
	State       pb.InstanceState
	ModelDigest string
	// AppliedIndex is how far the node beside it has applied the log.
	AppliedIndex uint64
	// Load is requests in flight and queued.
	Load      uint32
	Tags      *pb.InstanceTags
	Unwilling bool
	// Reason is what the node says about State, for people.
	Reason string
}

// Preference is what the group asks of a candidate.
type Preference struct {
	// DesiredDigest: only instances with this model; empty: any.
	DesiredDigest string
	// NewestIndex is the newest applied index known, MaxLag how far a candidate
	// may be behind it (0: no limit).
	NewestIndex, MaxLag uint64
	Zone                string
	// Only restricts the choice to one node; empty: all.
	Only string
	// Force also takes instances that are not hot, tagged no-failover or
	// unwilling, if nothing better is there.
	Force bool
}

// Refusal says why a candidate was left out.
type Refusal struct {
	NodeID string
	Reason string
}

// heat orders states by how soon an instance can serve; 0 cannot be made to.
func heat(s pb.InstanceState) int {
	switch s {
	case pb.InstanceState_INSTANCE_STATE_READY:
		return 3
	case pb.InstanceState_INSTANCE_STATE_WARM:
		return 2
	case pb.InstanceState_INSTANCE_STATE_LIVE:
		return 1
	}
	return 0
}

// Rank returns the eligible candidates, best first, and why each other one is
// not eligible (DESIGN section 4). The order of the argument does not matter.
func Rank(candidates []Candidate, p Preference) ([]Candidate, []Refusal) {
	var eligible []Candidate
	var refused []Refusal
	for _, c := range candidates {
		if why := refusal(c, p); why != "" {
			refused = append(refused, Refusal{NodeID: c.NodeID, Reason: why})
			continue
		}
		eligible = append(eligible, c)
	}
	slices.SortFunc(eligible, func(a, b Candidate) int { return compare(a, b, p) })
	slices.SortFunc(refused, func(a, b Refusal) int { return cmp.Compare(a.NodeID, b.NodeID) })
	return eligible, refused
}

func refusal(c Candidate, p Preference) string {
	switch {
	case p.Only != "" && c.NodeID != p.Only:
		return "another node was asked for"
	case heat(c.State) == 0:
		return fmt.Sprintf("it is %s: %s", stateName(c.State), c.Reason)
	case p.DesiredDigest != "" && c.ModelDigest != p.DesiredDigest && !p.Force:
		return fmt.Sprintf("it has model %q, the group wants %q", c.ModelDigest, p.DesiredDigest)
	case p.MaxLag > 0 && c.AppliedIndex+p.MaxLag < p.NewestIndex && !p.Force:
		return fmt.Sprintf("it is %d entries behind, %d are allowed", p.NewestIndex-c.AppliedIndex, p.MaxLag)
	case c.Unwilling && !p.Force:
		return "it is stopping, or backs off after a failed promotion"
	case c.Tags.GetNoFailover() && p.Only == "" && !p.Force:
		return "it is tagged no-failover"
	}
	return ""
}

func compare(a, b Candidate, p Preference) int {
	yes := func(ok bool) int {
		if ok {
			return 0
		}
		return 1
	}
	return cmp.Or(
		cmp.Compare(yes(!a.Tags.GetNoFailover()), yes(!b.Tags.GetNoFailover())),
		cmp.Compare(yes(!a.Unwilling), yes(!b.Unwilling)),
		cmp.Compare(heat(b.State), heat(a.State)),
		cmp.Compare(yes(a.ModelDigest == p.DesiredDigest), yes(b.ModelDigest == p.DesiredDigest)),
		cmp.Compare(b.Tags.GetPriority(), a.Tags.GetPriority()),
		cmp.Compare(yes(p.Zone != "" && a.Tags.GetZone() == p.Zone), yes(p.Zone != "" && b.Tags.GetZone() == p.Zone)),
		cmp.Compare(a.Load, b.Load),
		cmp.Compare(a.NodeID, b.NodeID),
	)
}

func stateName(s pb.InstanceState) string {
	const prefix = "INSTANCE_STATE_"
	return s.String()[min(len(prefix), len(s.String())):]
}
