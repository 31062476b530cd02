// SPDX-License-Identifier: Apache-2.0

package election

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Candidate is how one instance stands when the leader looks for a primary. A
// node has at most one instance in a group: NodeID is unique among candidates.
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
	// DesiredDigest: only instances with this model; empty: any, none is preferred.
	DesiredDigest string
	// NewestIndex is the newest applied index known, MaxLag how far a candidate
	// may be behind it (0: no limit).
	NewestIndex, MaxLag uint64
	Zone                string
	// Only restricts the choice to one node, also if it is tagged no-failover: it
	// was named. Empty: all.
	Only string
	// Force also takes instances that have another model, are too far behind, are
	// tagged no-failover or are unwilling, if nothing better is there.
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
	case heat(c.State) == 0 && c.Reason == "":
		return "it is " + stateName(c.State)
	case heat(c.State) == 0:
		return fmt.Sprintf("it is %s: %s", stateName(c.State), c.Reason)
	case !p.wantsModel(c) && !p.Force:
		return fmt.Sprintf("it has model %q, the group wants %q", c.ModelDigest, p.DesiredDigest)
	case p.lags(c) && !p.Force:
		return fmt.Sprintf("it is %d entries behind, %d are allowed", p.NewestIndex-c.AppliedIndex, p.MaxLag)
	case c.Unwilling && !p.Force:
		return "it is stopping, or backs off after a failed promotion"
	case c.Tags.GetNoFailover() && p.Only == "" && !p.Force:
		return "it is tagged no-failover"
	}
	return ""
}

// wantsModel reports whether the candidate has a model that will do.
func (p Preference) wantsModel(c Candidate) bool {
	return p.DesiredDigest == "" || c.ModelDigest == p.DesiredDigest
}

// lags reports whether the candidate is too far behind.
func (p Preference) lags(c Candidate) bool {
	return p.MaxLag > 0 && c.AppliedIndex < p.NewestIndex && p.NewestIndex-c.AppliedIndex > p.MaxLag
}

// compare orders two candidates, the better first. It is 0 only for the same node.
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
		cmp.Compare(yes(p.wantsModel(a)), yes(p.wantsModel(b))),
		cmp.Compare(yes(!p.lags(a)), yes(!p.lags(b))),
		cmp.Compare(b.Tags.GetPriority(), a.Tags.GetPriority()),
		cmp.Compare(yes(p.Zone != "" && a.Tags.GetZone() == p.Zone), yes(p.Zone != "" && b.Tags.GetZone() == p.Zone)),
		cmp.Compare(a.Load, b.Load),
		cmp.Compare(a.NodeID, b.NodeID),
	)
}

func stateName(s pb.InstanceState) string {
	return strings.TrimPrefix(s.String(), "INSTANCE_STATE_")
}
