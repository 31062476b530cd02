// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"google.golang.org/protobuf/proto"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Event is one change of the replicated state. Every revision has exactly one
// event; an event without a record is a change that nobody watches (a writer
// was opened or forgotten).
type Event struct {
	// Revision of the change.
	Revision uint64
	// Index of the log entry that made it.
	Index uint64

	// Group after the change. Also set when only Transition changed.
	Group *pb.Group
	// Transition that was written with the group.
	Transition *pb.Transition
	// Instance, Member, Model or Alias after the change, or as it was when
	// Removed is set.
	Instance *pb.Instance
	Member   *pb.Member
	Model    *pb.ModelVersion
	Alias    *pb.ModelAlias
	Removed  bool
	// Session is set for changes of sessions.
	Session *pb.SessionEvent
}

// eventOverhead is what an event counts beside its records.
const eventOverhead = 128

// size is about what the event keeps in memory.
func (e *Event) size() int {
	n := eventOverhead
	if s := e.Session.GetSession(); s != nil {
		n += len(s.GetValue()) + len(s.GetId()) + len(s.GetGroup()) + eventOverhead
		for k, v := range s.GetPointers() {
			n += len(k) + len(v)
		}
		for k, v := range s.GetLabels() {
			n += len(k) + len(v)
		}
		return n
	}
	if e.Group != nil {
		n += proto.Size(e.Group)
	}
	if e.Transition != nil {
		n += proto.Size(e.Transition)
	}
	if e.Instance != nil {
		n += proto.Size(e.Instance)
	}
	if e.Model != nil {
		n += proto.Size(e.Model)
	}
	return n
}

// wakes reports whether the event changes what Changed is about.
func (e *Event) wakes() bool {
	return e.Group != nil || e.Instance != nil || e.Member != nil
}
