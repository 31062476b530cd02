// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"testing"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// backedUp is the state of another time and cluster.
func backedUp(t *testing.T) (*pb.ArchiveHeader, []byte) {
	t.Helper()
	old := newMachine(t)
	must(t, old, initCluster("old"), openClient("w"), setMember("gone"), registerModel("m", "1", digestA))
	for _, g := range []string{"both", "freed", "lost"} {
		must(t, old, report(g, "gone"))
	}
	must(t, old,
		cmdGrant(&pb.Grant{Group: "both", Holder: "n1", TtlMs: 1000}),
		cmdGrant(&pb.Grant{Group: "freed", Holder: "n1", TtlMs: 1000}),
		cmdGrant(&pb.Grant{Group: "lost", Holder: "n9", TtlMs: 9000}))
	must(t, old, with(2, 1, 0, put("both", "s", "backup")))
	must(t, old, configure("both", &pb.GroupPolicy{MaxFailovers: 3}))
	return save(t, old)
}

// liveCluster has leases that the backup knows nothing of: of both and new,
// and one of freed that was released. The epochs are returned.
func liveCluster(t *testing.T) (m *Machine, lease, freed, fresh uint64) {
	t.Helper()
	m = newMachine(t)
	must(t, m, initCluster("live"), setMember("n1"), openClient("w"), put("both", "s", "live"), put("both", "t", "live"))
	for _, g := range []string{"both", "freed", "new", "idle"} {
		must(t, m, report(g, "n1"))
	}
	must(t, m, configure("unused", nil))
	lease = must(t, m, cmdGrant(&pb.Grant{Group: "both", Holder: "n2", TtlMs: 2000})).GetEpoch()
	freed = must(t, m, cmdGrant(&pb.Grant{Group: "freed", Holder: "n2", TtlMs: 5000})).GetEpoch()
	must(t, m, cmdRelease(&pb.Release{Group: "freed", Holder: "n2", Epoch: freed}))
	fresh = must(t, m, cmdGrant(&pb.Grant{Group: "new", Holder: "n3", TtlMs: 2000})).GetEpoch()
	must(t, m, cmdServing("new", "n3", fresh, 1))
	for range 20 {
		must(t, m, put("x", "y", "z"))
	}
	return m, lease, freed, fresh
}

// TestRestoreOfABackup: the sessions and settings are the backup's, the leases
// and members are the live ones, and no lease that may be running looks vacant.
func TestRestoreOfABackup(t *testing.T) {
	h, data := backedUp(t)
	live, lease, freed, fresh := liveCluster(t)
	applied, _ := live.Applied()
	revision := live.Revision()

	h.Backup, h.Index, h.Term, h.CreatedUnixMs = true, applied+1, 4, 77
	if err := restore(live, h, data); err != nil {
		t.Fatal(err)
	}
	if index, term := live.Applied(); index != applied+1 || term != 4 {
		t.Errorf("applied %d of term %d", index, term)
	}
	if live.ClusterID() != "live" || len(live.Members()) != 1 || live.Members()[0].GetNodeId() != "n1" {
		t.Errorf("cluster %q, members %v", live.ClusterID(), live.Members())
	}
	if live.Revision() != max(revision, h.GetRevision())+1 {
		t.Errorf("revision %d after %d and %d", live.Revision(), revision, h.GetRevision())
	}
	if x, _, _ := live.Session("both", "s"); string(x.GetValue()) != "backup" {
		t.Errorf("session %v", x)
	}
	if _, found, _ := live.Session("both", "t"); found {
		t.Error("a session that is not in the backup is still there")
	}
	if _, found := live.Model("m", "1"); !found {
		t.Error("the backup's model is missing")
	}

	check := func(name string, phase pb.GroupPhase, holder string, epoch uint64, ttl uint32) *pb.Group {
		t.Helper()
		g, _ := live.Group(name)
		if g.GetPhase() != phase || g.GetHolder() != holder || g.GetEpoch() != epoch || g.GetTtlMs() != ttl ||
			g.GetLastRenew() != applied+1 || g.GetRevoked() != (phase != vacant) {
			t.Errorf("group %s: %v; want %v, holder %s, epoch %d, ttl %d", name, g, phase, holder, epoch, ttl)
		}
		return g
	}
	// The longest lease that may run is 5,000 ms, and 9,000 of the lost one.
	if g := check("both", granted, "n2", lease, 5000); g.GetPolicy().GetMaxFailovers() != 3 {
		t.Errorf("policy %v", g.GetPolicy())
	}
	check("freed", vacant, "", freed, 5000)
	check("lost", granted, "n9", 5, 9000)
	check("new", serving, "n3", fresh, 5000)
	check("idle", vacant, "", 0, 5000)
	if _, found := live.Group("unused"); found {
		t.Error("a group that is neither in the backup nor in use is still there")
	}
	if h := live.History("lost", 0); len(h) != 1 || h[0].GetOutcome() != outcomeFailed || h[0].GetEndedUnixMs() != 77 {
		t.Errorf("history of the lost group: %v", h)
	}
	if h := live.History("new", 0); len(h) != 1 || h[0].GetOutcome() != outcomeServing {
		t.Errorf("history of the new group: %v", h)
	}

	// Renewals are refused, the holder may release, and a grant wins over a
	// holder that does not.
	if r := must(t, live, renew("n2", renewal("both", lease))); len(r.GetRefused()) != 1 {
		t.Errorf("renewal: %v", r)
	}
	must(t, live, cmdRelease(&pb.Release{Group: "both", Holder: "n2", Epoch: lease}))
	must(t, live, cmdGrant(&pb.Grant{Group: "lost", Holder: "n1", IfEpoch: 5, IfLastRenew: applied + 1}))
	// A writer's number from before must not hit another writer's window.
	want(t, apply(t, live, with(2, 1, 0, put("both", "s", "w"))), codeExpired)
	if c := must(t, live, openClient("w")).GetClient(); c <= revision {
		t.Errorf("client %d was given out before", c)
	}
}

func TestRebasedKeepsEpochsGrowing(t *testing.T) {
	at := meta{applied: 100, revision: 9}
	archived := &pb.Group{Name: "g", Phase: vacant, Epoch: 50, TtlMs: 10}
	live := &pb.Group{Name: "g", Phase: vacant, Epoch: 40, TtlMs: 20}
	if g := rebased(archived, live, at, 30, 77); g.GetEpoch() != 50 || g.GetTtlMs() != 30 {
		t.Errorf("vacant: %v", g)
	}
	live.Phase, live.Holder = serving, "n1"
	if g := rebased(archived, live, at, 30, 77); g.GetEpoch() != 40 || g.GetHolder() != "n1" || !g.GetRevoked() || g.GetReleaseReason() != restoredReason || g.GetReleasedUnixMs() != 77 {
		t.Errorf("held: %v", g)
	}
	if g := rebased(archived, nil, at, 5, 77); g.GetEpoch() != 50 || g.GetTtlMs() != 10 || g.GetLastRenew() != 100 || g.GetRevision() != 9 {
		t.Errorf("not live: %v", g)
	}
}
