// SPDX-License-Identifier: Apache-2.0

package check

import (
	"strings"
	"testing"

	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

// toldIn is what a stream told of a group, changed at that revision.
func toldIn(stream int, group string, revision, epoch uint64) record.GroupEvent {
	return record.GroupEvent{Stream: stream, Revision: revision, Group: &pb.Group{Name: group, Revision: revision, Epoch: epoch}}
}

func TestGroupWatch(t *testing.T) {
	moved := toldIn(1, "g", 9, 3) // the address of its primary
	moved.Group.Revision = 8
	young := toldIn(1, "g", 9, 3)
	young.Group.Revision = 5
	for name, c := range map[string]struct {
		events []record.GroupEvent
		want   string
	}{
		"none":                {},
		"grows":               {events: []record.GroupEvent{toldIn(1, "h", 7, 7), toldIn(1, "g", 6, 3), toldIn(1, "g", 8, 3), toldIn(1, "h", 9, 9)}},
		"the address":         {events: []record.GroupEvent{toldIn(1, "g", 8, 3), moved}},
		"anew":                {events: []record.GroupEvent{toldIn(1, "g", 8, 8), toldIn(2, "g", 8, 8), toldIn(2, "g", 9, 9)}},
		"anew at a lagging":   {events: []record.GroupEvent{toldIn(1, "g", 8, 8), toldIn(2, "g", 5, 5)}},
		"twice":               {events: []record.GroupEvent{toldIn(1, "g", 8, 8), toldIn(1, "g", 8, 8)}, want: "revision 8 came twice"},
		"back":                {events: []record.GroupEvent{toldIn(1, "g", 8, 8), toldIn(1, "g", 6, 8)}, want: "revision 6 came after revision 8"},
		"resumed too early":   {events: []record.GroupEvent{toldIn(1, "g", 1, 1), toldIn(1, "h", 2, 1), toldIn(1, "g", 8, 1), toldIn(1, "h", 7, 1)}, want: "came after revision 8 of another group"},
		"epoch back":          {events: []record.GroupEvent{toldIn(1, "g", 8, 8), toldIn(1, "g", 9, 7)}, want: "epoch 7 came after epoch 8"},
		"an older state":      {events: []record.GroupEvent{toldIn(1, "g", 8, 3), young}, want: "its state of revision 5 came after that of revision 8"},
		"back in a later one": {events: []record.GroupEvent{toldIn(1, "g", 3, 3), toldIn(2, "g", 8, 8), toldIn(2, "g", 9, 7)}, want: "stream 2, group g: epoch 7"},
	} {
		t.Run(name, func(t *testing.T) {
			v := GroupWatch(c.events)
			switch {
			case c.want == "" && len(v) != 0:
				t.Error(v)
			case c.want != "" && (len(v) == 0 || !strings.Contains(v[0].Text, c.want) || v[0].Check != checkWatch):
				t.Errorf("%v, not %q", v, c.want)
			}
		})
	}
}

func TestResyncs(t *testing.T) {
	events := []record.SessionEvent{
		{Watcher: 1, Resync: true},
		{Watcher: 2, Resync: true},
		{Watcher: 1, Group: "g", Key: "k", Revision: 3},
		{Watcher: 1, Group: "g", Resumed: true, Revision: 3},
		{Watcher: 1, Resync: true},
		{Watcher: 1, Resync: true},
	}
	if n := Resyncs(events); n != 2 {
		t.Errorf("%d resyncs, not 2", n)
	}
	if n := Resumes(events); n != 1 {
		t.Errorf("%d resumes, not 1", n)
	}
}

func TestWatches_Resumed(t *testing.T) {
	for revision, want := range map[uint64]string{5: "", 4: "resumed after revision 4", 6: "resumed after revision 6"} {
		v := Watches([]record.SessionEvent{
			{Watcher: 1, Group: "g", Resync: true},
			{Watcher: 1, Group: "g", Key: "k", Revision: 3},
			{Watcher: 1, Group: "g", Key: "k", Revision: 5},
			{Watcher: 1, Group: "g", Resumed: true, Revision: revision},
			{Watcher: 1, Group: "g", Key: "k", Revision: 7},
		}, nil, nil)
		if want == "" && len(v) != 0 || want != "" && (len(v) != 1 || !strings.Contains(v[0].Text, want)) {
			t.Errorf("resumed at %d: %v", revision, v)
		}
	}
}
