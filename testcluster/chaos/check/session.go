// SPDX-License-Identifier: Apache-2.0

package check

import (
	"fmt"
	"hash/maphash"
	"strings"

	"github.com/anishathalye/porcupine"

	"github.com/hastate/hastate/testcluster/chaos/record"
)

// session is the state of one session in the sequential model.
type session struct {
	exists bool
	value  string
	// revision of the record; 0 with exists: it was written by an operation whose
	// revision was never told, and is above floor.
	revision uint64
	// floor is the largest revision that is known to be used. Later writes are
	// above it.
	floor uint64
}

// is learns that the record's revision is r; false if it cannot be.
func (s session) is(r uint64) (session, bool) {
	switch {
	case !s.exists:
		return s, false
	case s.revision != 0:
		return s, s.revision == r
	}
	ok := r > s.floor
	s.revision, s.floor = r, max(s.floor, r)
	return s, ok
}

// write is the state after a write that got revision r.
func (s session) write(value string, r uint64) (session, bool) {
	return session{exists: true, value: value, revision: r, floor: max(s.floor, r)}, r > s.floor
}

// writeUnknown is the state after a write whose revision was not told.
func (s session) writeUnknown(value string) session {
	return session{exists: true, value: value, floor: s.floor}
}

func (s session) gone() session { return session{floor: s.floor} }

func (s session) end() uint64 { return uint64(len(s.value)) }

// holds reports whether piece is in the stream at offset.
func (s session) holds(offset uint64, piece string) bool {
	return s.exists && offset <= s.end() && strings.HasPrefix(s.value[offset:], piece)
}

// step applies one operation as it ended. The rules are those of SessionService.
//
// An operation of unknown outcome is always possible and takes effect where its
// condition allows it: since it may be put at the very end, where nothing looks at
// its effect, that includes that it never took effect.
func step(s session, op record.Op) (session, bool) {
	switch op.Outcome {
	case record.OK:
		return stepOK(s, op)
	case record.Refused:
		return stepRefused(s, op)
	}
	return stepUnknown(s, op), true
}

func stepOK(s session, op record.Op) (session, bool) {
	switch op.Kind {
	case record.Put:
		return s.write(op.Value, op.Revision)
	case record.Create:
		if s.exists {
			return s, false
		}
		return s.write(op.Value, op.Revision)
	case record.CAS:
		s, ok := s.is(op.IfRevision)
		if !ok {
			return s, false
		}
		return s.write(op.Value, op.Revision)
	case record.Append:
		return stepAppend(s, op)
	case record.Delete:
		return stepDelete(s, op)
	case record.Get:
		if !op.Found {
			return s, !s.exists
		}
		s, ok := s.is(op.Revision)
		return s, ok && s.value == op.Value && op.Base == 0
	}
	return s, false
}

func stepAppend(s session, op record.Op) (session, bool) {
	if op.Offset == s.end() {
		next, ok := s.write(s.value+op.Value, op.Revision)
		return next, ok && op.EndOffset == next.end()
	}
	// The same bytes at the same place again change nothing.
	if !s.holds(op.Offset, op.Value) || op.EndOffset != s.end() {
		return s, false
	}
	return s.is(op.Revision)
}

func stepDelete(s session, op record.Op) (session, bool) {
	if !op.Found {
		return s, !s.exists // whatever its condition
	}
	if !s.exists {
		return s, false
	}
	if op.IfRevision != 0 {
		var ok bool
		if s, ok = s.is(op.IfRevision); !ok {
			return s, false
		}
	}
	return s.gone(), true
}

// stepRefused: the condition did not hold. A refusal for the epoch's sake says
// nothing of the session, and cannot be told from another one that does not tell
// a revision.
func stepRefused(s session, op record.Op) (session, bool) {
	if op.Kind == record.Get {
		return s, !s.exists
	}
	if op.Revision == 0 {
		return s, op.Epoch != 0 || refusable(s, op)
	}
	s, ok := s.is(op.Revision)
	if !ok || op.Kind == record.Append && op.EndOffset != s.end() {
		return s, false
	}
	return s, refusable(s, op)
}

// refusable reports whether the condition of an operation may fail.
func refusable(s session, op record.Op) bool {
	unequal := s.revision != op.IfRevision // also if it is not known
	switch op.Kind {
	case record.Create:
		return s.exists
	case record.CAS:
		return !s.exists || unequal
	case record.Append:
		return op.Offset != s.end() && !s.holds(op.Offset, op.Value)
	case record.Delete:
		return s.exists && op.IfRevision != 0 && unequal
	}
	return false
}

func stepUnknown(s session, op record.Op) session {
	switch op.Kind {
	case record.Put:
		return s.writeUnknown(op.Value)
	case record.Create:
		if !s.exists {
			return s.writeUnknown(op.Value)
		}
	case record.CAS:
		if s, ok := s.is(op.IfRevision); ok {
			return s.writeUnknown(op.Value)
		}
	case record.Append:
		if op.Offset == s.end() {
			return s.writeUnknown(s.value + op.Value)
		}
	case record.Delete:
		if op.IfRevision == 0 {
			return s.gone()
		}
		if s, ok := s.is(op.IfRevision); ok {
			return s.gone()
		}
	}
	return s
}

// sessionModel is the model of one session for porcupine. The input of an
// operation is its record, which has the output too.
func sessionModel() porcupine.Model {
	seed := maphash.MakeSeed()
	return porcupine.Model{
		Init: func() any { return session{} },
		Step: func(state, input, _ any) (bool, any) {
			next, ok := step(state.(session), input.(record.Op))
			return ok, next
		},
		Hash:              func(state any) uint64 { return maphash.Comparable(seed, state.(session)) },
		DescribeOperation: func(input, _ any) string { return describe(input.(record.Op)) },
		DescribeState: func(state any) string {
			s := state.(session)
			if !s.exists {
				return "none"
			}
			return fmt.Sprintf("%q @%d", s.value, s.revision)
		},
	}
}

// describe is an operation in one line.
func describe(op record.Op) string {
	var b strings.Builder
	b.WriteString(op.Kind)
	if op.Kind != record.Get && op.Kind != record.Delete {
		fmt.Fprintf(&b, " %q", op.Value)
	}
	if op.Kind == record.Append {
		fmt.Fprintf(&b, " at %d", op.Offset)
	}
	if op.IfRevision != 0 {
		fmt.Fprintf(&b, " if @%d", op.IfRevision)
	}
	if op.Epoch != 0 {
		fmt.Fprintf(&b, " epoch %d", op.Epoch)
	}
	fmt.Fprintf(&b, " -> %s", op.Outcome)
	switch {
	case op.Outcome == record.Unknown:
	case op.Kind == record.Get && op.Outcome == record.OK && op.Found:
		fmt.Fprintf(&b, " %q @%d", op.Value, op.Revision)
	case (op.Kind == record.Get || op.Kind == record.Delete) && op.Outcome == record.OK:
		fmt.Fprintf(&b, " found %v", op.Found)
	case op.Revision != 0:
		fmt.Fprintf(&b, " @%d", op.Revision)
	}
	return b.String()
}
