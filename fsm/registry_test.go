// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

var (
	digestA = digestPrefix + strings.Repeat("a", digestHexDigits)
	digestB = digestPrefix + strings.Repeat("b", digestHexDigits)
)

func registerModel(name, version, digest string) *pb.Command {
	return &pb.Command{Op: &pb.Command_RegisterModel{RegisterModel: &pb.RegisterModel{Model: &pb.ModelVersion{
		Ref: &pb.ModelRef{Name: name, Version: version, Digest: digest}, Uri: "hf:x/y",
	}}}}
}

func setAlias(name, alias, version, ifVersion string) *pb.Command {
	return &pb.Command{Op: &pb.Command_SetModelAlias{SetModelAlias: &pb.SetModelAlias{Name: name, Alias: alias, Version: version, IfVersion: ifVersion}}}
}

func TestModels(t *testing.T) {
	m := newMachine(t)
	must(t, m, registerModel("m", "1", digestA))
	revision := m.Revision()
	must(t, m, registerModel("m", "1", digestA))
	if m.Revision() != revision {
		t.Error("registering the same again changed something")
	}
	want(t, apply(t, m, registerModel("m", "1", digestB)), codeExists)
	for _, bad := range []string{"", "sha256:ab", "md5:" + strings.Repeat("a", 64), digestPrefix + strings.Repeat("A", 64)} {
		want(t, apply(t, m, registerModel("m", "9", bad)), codeInvalid)
	}
	want(t, apply(t, m, registerModel("", "9", digestA)), codeInvalid)
	must(t, m, registerModel("m", "2", digestB), registerModel("m2", "1", digestB))
	want(t, apply(t, m, setAlias("m", "champion", "3", "")), codeNotFound)
	must(t, m, setAlias("m", "champion", "1", ""))
	want(t, apply(t, m, setAlias("m", "champion", "2", "2")), codeConflict)
	want(t, apply(t, m, setAlias("m", "candidate", "2", "1")), codeConflict)
	must(t, m, setAlias("m", "champion", "2", "1"))
	if v, found := m.ModelByAlias("m", "champion"); !found || v.GetRef().GetDigest() != digestB || v.GetCreatedUnixMs() == 0 {
		t.Errorf("champion: %v", v)
	}
	if v, a := m.Models("m"); len(v) != 2 || len(a) != 1 {
		t.Errorf("models of m: %v, %v", v, a)
	}
	if v, _ := m.Models(""); len(v) != 3 {
		t.Errorf("all models: %v", v)
	}
	del := &pb.Command{Op: &pb.Command_DeleteModelAlias{DeleteModelAlias: &pb.DeleteModelAlias{Name: "m", Alias: "champion"}}}
	must(t, m, del)
	want(t, apply(t, m, del), codeNotFound)
	if _, found := m.ModelByAlias("m", "champion"); found {
		t.Error("the alias is still there")
	}
}

func TestConfigureGroup(t *testing.T) {
	m := newMachine(t)
	must(t, m, configure("g", nil))
	g := groupOf(t, m, "g")
	if p := g.GetPolicy(); g.GetPhase() != vacant || p.GetMaxFailovers() != 10 || p.GetCalmMs() != 600_000 || p.GetDrainMs() != 10_000 || p.GetPromoteTimeoutMs() != 10_000 {
		t.Errorf("defaults: %v", g)
	}
	must(t, m, configure("g", &pb.GroupPolicy{TtlMs: 600, MaxFailovers: 0, DrainMs: 5}))
	if p := groupOf(t, m, "g").GetPolicy(); p.GetTtlMs() != 600 || p.GetMaxFailovers() != 0 || p.GetDrainMs() != 5 || p.GetPromoteTimeoutMs() != 10_000 {
		t.Errorf("policy: %v", p)
	}
	revision := m.Revision()
	must(t, m, configure("g", nil))
	if m.Revision() != revision {
		t.Error("changing nothing changed something")
	}
	want(t, apply(t, m, configure("g", &pb.GroupPolicy{TtlMs: hastate.MaxTTLMillis + 1})), codeInvalid)
	want(t, apply(t, m, configure("g", &pb.GroupPolicy{CalmMs: maxPolicyMillis + 1})), codeLimit)
	want(t, apply(t, m, configure("", nil)), codeInvalid)
	desire := func(ref *pb.ModelRef, forget bool) *pb.Result {
		return apply(t, m, &pb.Command{Op: &pb.Command_ConfigureGroup{ConfigureGroup: &pb.ConfigureGroup{Group: "g", DesiredModel: ref, ClearDesiredModel: forget}}})
	}
	want(t, desire(&pb.ModelRef{Name: "m", Version: "1"}, false), codeNotFound)
	want(t, desire(&pb.ModelRef{Name: "m", Version: "1", Digest: "x"}, false), codeInvalid)
	want(t, desire(&pb.ModelRef{Name: "m", Version: "1", Digest: digestA}, true), codeInvalid)
	must(t, m, registerModel("m", "1", digestA))
	want(t, desire(&pb.ModelRef{Name: "m", Version: "1"}, false), codeOK)
	if d := groupOf(t, m, "g").GetDesiredModel(); d.GetDigest() != digestA {
		t.Errorf("desired: %v", d)
	}
	want(t, desire(nil, true), codeOK)
	if d := groupOf(t, m, "g").GetDesiredModel(); d != nil {
		t.Errorf("desired: %v", d)
	}
	pause := &pb.Command{Op: &pb.Command_PauseGroup{PauseGroup: &pb.PauseGroup{Group: "g", Reason: "upgrade"}}}
	must(t, m, pause)
	if g := groupOf(t, m, "g"); !g.GetPaused() || g.GetPauseReason() != "upgrade" {
		t.Errorf("paused: %v", g)
	}
	must(t, m, &pb.Command{Op: &pb.Command_ResumeGroup{ResumeGroup: &pb.ResumeGroup{Group: "g"}}})
	if g := groupOf(t, m, "g"); g.GetPaused() || g.GetPauseReason() != "" {
		t.Errorf("resumed: %v", g)
	}
}

func TestInstances(t *testing.T) {
	m := newMachine(t)
	must(t, m, report("g", "n1"), report("g", "n2"), report("h", "n1"))
	if len(m.Instances("g")) != 2 || len(m.Instances("")) != 3 || len(m.Groups()) != 2 {
		t.Errorf("instances %v, groups %v", m.Instances(""), m.Groups())
	}
	revision := m.Revision()
	must(t, m, report("g", "n1"))
	if m.Revision() != revision {
		t.Error("the same report changed something")
	}
	remove := &pb.Command{Op: &pb.Command_RemoveInstance{RemoveInstance: &pb.RemoveInstance{Group: "g", NodeId: "n1"}}}
	must(t, m, remove)
	want(t, apply(t, m, remove), codeNotFound)
	for name, in := range map[string]*pb.Instance{
		"none":          nil,
		"no node":       {Group: "g", State: 1},
		"no group":      {NodeId: "n", State: 1},
		"no state":      {Group: "g", NodeId: "n"},
		"unknown state": {Group: "g", NodeId: "n", State: 99},
	} {
		if r := apply(t, m, &pb.Command{Op: &pb.Command_ReportInstance{ReportInstance: &pb.ReportInstance{Instance: in}}}); r.GetCode() != codeInvalid {
			t.Errorf("%s: %v", name, r)
		}
	}
}

func TestClusterAndMembers(t *testing.T) {
	m := newMachine(t)
	want(t, apply(t, m, initCluster("")), codeInvalid)
	must(t, m, initCluster("c1"), initCluster("c1"))
	want(t, apply(t, m, initCluster("c2")), codeInvalid)
	if m.ClusterID() != "c1" {
		t.Errorf("cluster id %q", m.ClusterID())
	}
	must(t, m, setMember("n2"), setMember("n1"))
	revision := m.Revision()
	c := setMember("n1")
	c.GetSetMember().GetMember().Leader, c.GetSetMember().GetMember().AppliedIndex = true, 99
	must(t, m, c) // What a node observes is not agreed on.
	if ms := m.Members(); len(ms) != 2 || ms[0].GetNodeId() != "n1" || ms[0].GetLeader() || m.Revision() != revision {
		t.Errorf("members %v", ms)
	}
	del := &pb.Command{Op: &pb.Command_DeleteMember{DeleteMember: &pb.DeleteMember{NodeId: "n2"}}}
	must(t, m, del)
	want(t, apply(t, m, del), codeNotFound)
}

// TestRecordsAreNotChanged: what was given out stays as it was.
func TestRecordsAreNotChanged(t *testing.T) {
	m := newMachine(t)
	must(t, m, report("g", "n1"))
	must(t, m, cmdGrant(&pb.Grant{Group: "g", Holder: "n1"}))
	g := groupOf(t, m, "g")
	h := m.History("g", 1)[0]
	must(t, m, cmdServing("g", "n1", 2, 1), renew("n1", renewal("g", 2)))
	if g.GetPhase() != granted || g.GetLastRenew() != 2 || h.GetOutcome() != outcomePending {
		t.Errorf("records were changed behind their reader's back: %v, %v", g, h)
	}
}

func TestInterfaces(t *testing.T) {
	var _ raft.FSM = newMachine(t)
}

func TestConfigure_NewGroup(t *testing.T) {
	m := newMachine(t)
	must(t, m, configure("g", &pb.GroupPolicy{MaxLag: 7}))
	if p := groupOf(t, m, "g").GetPolicy(); p.GetMaxLag() != 7 || p.GetMaxFailovers() != defaultMaxFailovers || p.GetCalmMs() != defaultCalmMillis ||
		p.GetDrainMs() != defaultDrainMillis || p.GetPromoteTimeoutMs() != defaultPromoteMillis {
		t.Errorf("policy of a new group: %v", p)
	}
	must(t, m, configure("g", &pb.GroupPolicy{}))
	if p := groupOf(t, m, "g").GetPolicy(); p.GetMaxFailovers() != 0 {
		t.Errorf("the rule cannot be turned off: %v", p)
	}
}

func TestGroupNames(t *testing.T) {
	for _, name := range []string{"a", "A-1_b.c", "default"} {
		if bad := checkGroup(name); bad != nil {
			t.Errorf("%q: %v", name, bad)
		}
	}
	for _, name := range []string{"", "a b", "a/b", "gr\u00fcn", "a\x00", "a:b"} {
		if checkGroup(name) == nil {
			t.Errorf("%q is accepted", name)
		}
	}
}
