// SPDX-License-Identifier: Apache-2.0

package check

import "github.com/hastate/hastate/testcluster/chaos/record"

// GroupWatch checks the order in which a watch told of the groups. events are
// those of one load, in order of arrival.
//
// Within one stream the revision of each change is above all changes before it,
// whichever group and however often the watch went on at another node, and neither
// the revision nor the epoch of a group falls. The current state, with which a
// stream begins, has the groups in any order.
func GroupWatch(events []record.GroupEvent) []record.Violation {
	f := &found{check: checkWatch}
	streams := map[int]*groupStream{}
	for _, e := range events {
		if e.Group == nil {
			continue
		}
		s := streams[e.Stream]
		if s == nil {
			s = &groupStream{f: f, number: e.Stream, known: map[string]record.GroupEvent{}}
			streams[e.Stream] = s
		}
		s.take(e)
	}
	return f.violations()
}

// groupStream is what one stream has told.
type groupStream struct {
	f      *found
	number int
	// known is the last event of each group.
	known map[string]record.GroupEvent
	// last is the revision of the last change. The first event of a group may be
	// the current state, which is none.
	last uint64
}

func (s *groupStream) bad(e record.GroupEvent, format string, args ...any) {
	s.f.add("", "group watch, stream %d, group %s: "+format, append([]any{s.number, e.Group.GetName()}, args...)...)
}

func (s *groupStream) take(e record.GroupEvent) {
	before, ok := s.known[e.Group.GetName()]
	s.known[e.Group.GetName()] = e
	if !ok {
		return
	}
	switch {
	case e.Revision == before.Revision:
		s.bad(e, "revision %d came twice", e.Revision)
	case e.Revision < before.Revision:
		s.bad(e, "revision %d came after revision %d", e.Revision, before.Revision)
	case e.Revision <= s.last:
		s.bad(e, "revision %d came after revision %d of another group", e.Revision, s.last)
	}
	s.last = max(s.last, e.Revision)
	was, is := before.Group, e.Group
	if is.GetEpoch() < was.GetEpoch() {
		s.bad(e, "epoch %d came after epoch %d", is.GetEpoch(), was.GetEpoch())
	}
	if is.GetRevision() < was.GetRevision() {
		s.bad(e, "its state of revision %d came after that of revision %d", is.GetRevision(), was.GetRevision())
	}
}
