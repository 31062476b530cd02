// SPDX-License-Identifier: Apache-2.0

package check

import (
	"cmp"
	"math"
	"slices"
	"sort"

	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

// eventsOf splits events by group, in order of the revision at which the group
// came to be as they show it. A watch that begins anew, and one that catches up,
// tells a group with a younger state than the change that it was told for.
func eventsOf(events []record.GroupEvent) map[string][]*pb.Group {
	groups := map[string][]*pb.Group{}
	for _, e := range events {
		if g := e.Group; g != nil {
			groups[g.GetName()] = append(groups[g.GetName()], g)
		}
	}
	for _, list := range groups {
		slices.SortStableFunc(list, func(a, b *pb.Group) int { return cmp.Compare(a.GetRevision(), b.GetRevision()) })
	}
	return groups
}

// epochsGrow: the epoch of a group only grows, and whoever tells of one names the
// same holder.
func epochsGrow(f *found, events []record.GroupEvent, leases []record.Lease, served []record.Served) {
	groups := eventsOf(events)
	holders := map[tenure]string{} // without a node
	holder := func(who, group string, epoch uint64, node string) {
		t := tenure{"", group, epoch}
		if was, ok := holders[t]; ok && was != node {
			f.add("", "group %s: epoch %d has two holders: %s, and by %s %s", group, epoch, was, who, node)
		}
		holders[t] = node
	}
	for _, name := range sorted(groups, cmp.Compare[string]) {
		var before *pb.Group
		for _, g := range groups[name] {
			if g.GetEpoch() < before.GetEpoch() {
				f.add("", "group %s: epoch %d at revision %d was followed by epoch %d at revision %d",
					name, before.GetEpoch(), before.GetRevision(), g.GetEpoch(), g.GetRevision())
			}
			if node := cmp.Or(g.GetHolder(), g.GetLastHolder()); node != "" {
				holder("a watch", name, g.GetEpoch(), node)
			}
			before = g
		}
	}
	for _, l := range leases {
		holder("its own belief", l.Group, l.Epoch, l.Node)
	}
	for _, s := range served {
		holder("what it served", s.Group, s.Epoch, s.Node)
	}
}

// ending is an epoch of which is known by which revision it was over.
type ending struct{ epoch, revision uint64 }

// fenced: no write under an epoch has a revision after one at which the group had
// a newer epoch, or had been released by this one.
func fenced(f *found, events []record.GroupEvent, ops []record.Op) {
	endings := map[string][]ending{}
	for name, list := range eventsOf(events) {
		endings[name] = endingsOf(list)
	}
	for _, op := range ops {
		if op.Epoch == 0 || op.Outcome != record.OK || op.Revision == 0 || op.Kind == record.Get {
			continue
		}
		list := endings[op.Group]
		i := sort.Search(len(list), func(i int) bool { return list[i].epoch >= op.Epoch })
		if i < len(list) && op.Revision > list[i].revision {
			f.add(placeOf(op).String(), "%s was accepted at revision %d, but epoch %d was over by revision %d",
				describe(op), op.Revision, op.Epoch, list[i].revision)
		}
	}
}

// endingsOf are the epochs of a group in order, each with the lowest revision at
// which it, and so all before it, was over.
func endingsOf(groups []*pb.Group) []ending {
	over := map[uint64]uint64{}
	note := func(epoch, revision uint64) {
		if was, ok := over[epoch]; !ok || revision < was {
			over[epoch] = revision
		}
	}
	for _, g := range groups {
		if g.GetPhase() == pb.GroupPhase_GROUP_PHASE_VACANT {
			note(g.GetEpoch(), g.GetRevision())
		} else if g.GetEpoch() > 0 {
			note(g.GetEpoch()-1, g.GetRevision())
		}
	}
	list := make([]ending, 0, len(over))
	for _, epoch := range sorted(over, cmp.Compare[uint64]) {
		list = append(list, ending{epoch, over[epoch]})
	}
	// An epoch is also over when a later one is.
	lowest := uint64(math.MaxUint64)
	for i := len(list) - 1; i >= 0; i-- {
		lowest = min(lowest, list[i].revision)
		list[i].revision = lowest
	}
	return list
}
