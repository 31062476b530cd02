// SPDX-License-Identifier: Apache-2.0

package load

import (
	"slices"
	"testing"

	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

func TestGroupWatch_Streams(t *testing.T) {
	groups, err := newLog[record.GroupEvent](t.TempDir(), "group-events")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = groups.close() }()
	w := &groupWatch{
		l: &Load{o: Options{Clock: clock.Boot{}}, groups: groups, epochs: newEpochs()}, anew: true, listed: map[string]bool{},
	}
	current := func(name string) { w.on(&pb.WatchResponse{Group: &pb.Group{Name: name, Revision: 5}}) }
	change := func(name string, revision uint64) {
		w.on(&pb.WatchResponse{Revision: revision, Group: &pb.Group{Name: name, Revision: revision}})
	}
	beat := func() { w.on(&pb.WatchResponse{Heartbeat: true, Revision: 9}) }
	current("a")
	current("b") // 1
	beat()
	change("a", 9) // still
	beat()
	change("b", 10) // also at another node
	current("a")    // 2: it has fallen behind
	current("a")    // 3: it broke off in the middle of the current state
	current("b")
	beat()
	current("a") // 4: nothing had changed between two
	var got, revisions []int
	for _, e := range groups.since(0) {
		got, revisions = append(got, e.Stream), append(revisions, int(e.Revision)) //nolint:gosec // small
	}
	if want := []int{1, 1, 1, 1, 2, 3, 3, 4}; !slices.Equal(got, want) {
		t.Errorf("streams %v, not %v", got, want)
	}
	if want := []int{5, 5, 9, 10, 5, 5, 5, 5}; !slices.Equal(revisions, want) {
		t.Errorf("revisions %v, not %v", revisions, want)
	}
}
