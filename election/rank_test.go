// SPDX-License-Identifier: Apache-2.0

package election

import (
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const (
	ready = pb.InstanceState_INSTANCE_STATE_READY
	warm  = pb.InstanceState_INSTANCE_STATE_WARM
	live  = pb.InstanceState_INSTANCE_STATE_LIVE
)

func ids(cs []Candidate) string {
	var s []string
	for _, c := range cs {
		s = append(s, c.NodeID)
	}
	return strings.Join(s, " ")
}

// TestRank_Order: each criterion decides if all that come before it are equal, and
// beats all that come after it.
func TestRank_Order(t *testing.T) {
	tags := func(noFailover bool, priority int32, zone string) *pb.InstanceTags {
		return &pb.InstanceTags{NoFailover: noFailover, Priority: priority, Zone: zone}
	}
	force := Preference{DesiredDigest: "d", MaxLag: 10, NewestIndex: 100, Zone: "z", Force: true}
	for _, c := range []struct {
		name          string
		better, worse Candidate
		p             Preference
	}{
		{"not tagged before willing", Candidate{NodeID: "b", State: live, Unwilling: true}, Candidate{NodeID: "a", State: ready, ModelDigest: "d", AppliedIndex: 100, Tags: tags(true, 9, "z")}, force},
		{"willing before hot", Candidate{NodeID: "b", State: live}, Candidate{NodeID: "a", State: ready, ModelDigest: "d", AppliedIndex: 100, Unwilling: true}, force},
		{"ready before warm", Candidate{NodeID: "b", State: ready}, Candidate{NodeID: "a", State: warm, Tags: tags(false, 9, "z")}, Preference{Zone: "z"}},
		{"warm before live", Candidate{NodeID: "b", State: warm}, Candidate{NodeID: "a", State: live, Tags: tags(false, 9, "z")}, Preference{Zone: "z"}},
		{"model before lag", Candidate{NodeID: "b", State: ready, ModelDigest: "d"}, Candidate{NodeID: "a", State: ready, AppliedIndex: 100}, force},
		{"lag before priority", Candidate{NodeID: "b", State: ready, ModelDigest: "d", AppliedIndex: 90}, Candidate{NodeID: "a", State: ready, ModelDigest: "d", AppliedIndex: 89, Tags: tags(false, 9, "z")}, force},
		{"priority before zone", Candidate{NodeID: "b", State: ready, Tags: tags(false, 2, "")}, Candidate{NodeID: "a", State: ready, Tags: tags(false, 1, "z")}, Preference{Zone: "z"}},
		{"untagged has priority 0", Candidate{NodeID: "b", State: ready}, Candidate{NodeID: "a", State: ready, Tags: tags(false, -1, "")}, Preference{}},
		{"zone before load", Candidate{NodeID: "b", State: ready, Load: 9, Tags: tags(false, 0, "z")}, Candidate{NodeID: "a", State: ready}, Preference{Zone: "z"}},
		{"load before id", Candidate{NodeID: "b", State: ready, Load: 1}, Candidate{NodeID: "a", State: ready, Load: 2}, Preference{}},
		{"id", Candidate{NodeID: "a", State: ready}, Candidate{NodeID: "b", State: ready}, Preference{}},
		{"no model desired: none is preferred", Candidate{NodeID: "a", State: ready, ModelDigest: "x"}, Candidate{NodeID: "b", State: ready}, Preference{}},
		{"no zone preferred", Candidate{NodeID: "a", State: ready, Tags: tags(false, 0, "z")}, Candidate{NodeID: "b", State: ready}, Preference{}},
		{"lag within the limit does not count", Candidate{NodeID: "a", State: ready, AppliedIndex: 90}, Candidate{NodeID: "b", State: ready, AppliedIndex: 100}, Preference{NewestIndex: 100, MaxLag: 10}},
	} {
		for _, in := range [][]Candidate{{c.better, c.worse}, {c.worse, c.better}} {
			got, refused := Rank(in, c.p)
			if want := c.better.NodeID + " " + c.worse.NodeID; ids(got) != want {
				t.Errorf("%s: %q, want %q (refused: %v)", c.name, ids(got), want, refused)
			}
		}
	}
}

func TestRank_Refusals(t *testing.T) {
	noFailover := &pb.InstanceTags{NoFailover: true}
	for _, c := range []struct {
		name   string
		c      Candidate
		p      Preference
		reason string
		forced bool // taken with Force
	}{
		{"down", Candidate{State: pb.InstanceState_INSTANCE_STATE_DOWN, Reason: "nothing listens"}, Preference{}, "it is DOWN: nothing listens", false},
		{"loading, no reason", Candidate{State: pb.InstanceState_INSTANCE_STATE_LOADING}, Preference{}, "it is LOADING", false},
		{"draining", Candidate{State: pb.InstanceState_INSTANCE_STATE_DRAINING}, Preference{}, "it is DRAINING", false},
		{"failed", Candidate{State: pb.InstanceState_INSTANCE_STATE_FAILED, Reason: "hung"}, Preference{}, "it is FAILED: hung", false},
		{"unspecified", Candidate{}, Preference{}, "it is UNSPECIFIED", false},
		{"a state of a newer version", Candidate{State: 99}, Preference{}, "it is 99", false},
		{"another model", Candidate{State: ready, ModelDigest: "x"}, Preference{DesiredDigest: "d"}, `it has model "x", the group wants "d"`, true},
		{"behind", Candidate{State: ready, AppliedIndex: 89}, Preference{NewestIndex: 100, MaxLag: 10}, "it is 11 entries behind, 10 are allowed", true},
		{"behind, a huge limit does not overflow", Candidate{State: ready, AppliedIndex: 1}, Preference{NewestIndex: 100, MaxLag: math.MaxUint64}, "", true},
		{"ahead of what is known", Candidate{State: ready, AppliedIndex: 101}, Preference{NewestIndex: 100, MaxLag: 10}, "", true},
		{"no limit", Candidate{State: ready}, Preference{NewestIndex: 100}, "", true},
		{"unwilling", Candidate{State: ready, Unwilling: true}, Preference{}, "it is stopping, or backs off after a failed promotion", true},
		{"tagged", Candidate{State: ready, Tags: noFailover}, Preference{}, "it is tagged no-failover", true},
		{"tagged, but named", Candidate{State: ready, Tags: noFailover, NodeID: "n"}, Preference{Only: "n"}, "", true},
		{"another was named", Candidate{State: ready}, Preference{Only: "n"}, "another node was asked for", false},
		{"live is enough", Candidate{State: live}, Preference{}, "", true},
	} {
		for _, force := range []bool{false, true} {
			c.p.Force = force
			taken, refused := Rank([]Candidate{c.c}, c.p)
			want := c.reason == "" || force && c.forced
			if (len(taken) == 1) != want || len(taken)+len(refused) != 1 {
				t.Errorf("%s, force %v: taken %v, refused %v", c.name, force, taken, refused)
			}
			if !want && (refused[0].Reason != c.reason || refused[0].NodeID != c.c.NodeID) {
				t.Errorf("%s, force %v: %q, want %q", c.name, force, refused[0].Reason, c.reason)
			}
		}
	}
	if taken, refused := Rank(nil, Preference{}); taken != nil || refused != nil {
		t.Errorf("of nobody: %v, %v", taken, refused)
	}
}

func drawCandidate(t *rapid.T, id string) Candidate {
	c := Candidate{
		NodeID: id, State: pb.InstanceState(rapid.Int32Range(0, 8).Draw(t, "state")),
		ModelDigest:  rapid.SampledFrom([]string{"", "d", "e"}).Draw(t, "digest"),
		AppliedIndex: rapid.SampledFrom([]uint64{0, 89, 90, 100, math.MaxUint64}).Draw(t, "applied"),
		Load:         rapid.Uint32Range(0, 2).Draw(t, "load"), Unwilling: rapid.Bool().Draw(t, "unwilling"),
	}
	if rapid.Bool().Draw(t, "tags") {
		c.Tags = &pb.InstanceTags{
			NoFailover: rapid.Bool().Draw(t, "no-failover"), Priority: rapid.Int32Range(-1, 1).Draw(t, "priority"),
			Zone: rapid.SampledFrom([]string{"", "z", "y"}).Draw(t, "zone"),
		}
	}
	return c
}

func drawPreference(t *rapid.T) Preference {
	return Preference{
		DesiredDigest: rapid.SampledFrom([]string{"", "d"}).Draw(t, "desired"),
		NewestIndex:   100, MaxLag: rapid.SampledFrom([]uint64{0, 10, math.MaxUint64}).Draw(t, "lag"),
		Zone: rapid.SampledFrom([]string{"", "z"}).Draw(t, "preferred"),
		Only: rapid.SampledFrom([]string{"", "n1"}).Draw(t, "only"), Force: rapid.Bool().Draw(t, "force"),
	}
}

// TestRank_Properties: the order of the argument does not matter; each candidate is
// either taken or refused with a reason; the order is total; Force only adds.
func TestRank_Properties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var in []Candidate
		for i := range rapid.IntRange(0, 6).Draw(t, "n") {
			in = append(in, drawCandidate(t, fmt.Sprintf("n%d", i)))
		}
		p := drawPreference(t)
		taken, refused := Rank(in, p)
		taken2, refused2 := Rank(rapid.Permutation(in).Draw(t, "order"), p)
		if !reflect.DeepEqual(taken, taken2) || !reflect.DeepEqual(refused, refused2) {
			t.Fatalf("the order of the argument matters: %q, %q", ids(taken), ids(taken2))
		}
		if len(taken)+len(refused) != len(in) {
			t.Fatalf("%d of %d taken, %d refused", len(taken), len(in), len(refused))
		}
		for _, r := range refused {
			if r.Reason == "" || r.NodeID == "" {
				t.Fatalf("%+v says too little", r)
			}
		}
		for i := range taken {
			for j := range taken {
				ab, ba := compare(taken[i], taken[j], p), compare(taken[j], taken[i], p)
				if ab != -ba || (ab == 0) != (i == j) || i < j && ab >= 0 {
					t.Fatalf("%s and %s compare as %d and %d at %d and %d", taken[i].NodeID, taken[j].NodeID, ab, ba, i, j)
				}
			}
		}
		p.Force = true
		if forced, _ := Rank(in, p); len(forced) < len(taken) {
			t.Fatalf("Force takes %d, without it %d are taken", len(forced), len(taken))
		}
	})
}
