// SPDX-License-Identifier: Apache-2.0

package check

import (
	"cmp"
	"slices"
	"strings"

	"github.com/hastate/hastate/testcluster/chaos/record"
)

// pieceEnd ends every piece that is appended, and is nowhere else in one.
const pieceEnd = ";"

// Counts are what became of appended pieces.
type Counts struct {
	// Acknowledged pieces that were read back, or should have been.
	Acknowledged int `json:"acknowledged"`
	// Lost were acknowledged and are not there, Duplicated are there again.
	Lost       int `json:"lost"`
	Duplicated int `json:"duplicated"`
	// Unread were acknowledged and never read back since: nothing is proved of
	// them.
	Unread int `json:"unread"`
}

// ExactlyOnce checks the sessions that were only appended to and read: each
// acknowledged piece is in the last read once, where it was put and in the order
// of the acknowledgements; one of unknown outcome is there at most once; nothing
// else is there; and what was read once stays.
func ExactlyOnce(ops []record.Op) (Counts, []record.Violation) {
	var c Counts
	f := &found{check: checkExactlyOnce}
	all := byPlace(ops)
	for _, p := range sorted(all, comparePlaces) {
		if onlyAppended(all[p]) {
			streamOnce(f, &c, p, all[p])
		}
	}
	return c, f.violations()
}

func onlyAppended(ops []record.Op) bool {
	appended := false
	for _, op := range ops {
		switch op.Kind {
		case record.Append:
			appended = true
		case record.Get:
		default:
			return false
		}
	}
	return appended
}

// streamOnce judges one session.
func streamOnce(f *found, c *Counts, p place, ops []record.Op) {
	var last *record.Op
	for i := range ops {
		if op := &ops[i]; op.Kind == record.Get && op.Outcome == record.OK && (last == nil || op.Call >= last.Call) {
			last = op
		}
	}
	var acked []record.Op
	asked := map[string]bool{}
	for _, op := range ops {
		if op.Kind != record.Append {
			continue
		}
		asked[op.Value] = asked[op.Value] || op.Outcome == record.OK || op.Outcome == record.Unknown
		switch {
		case op.Outcome != record.OK:
		case last == nil || op.Return >= last.Call:
			c.Unread++
		default:
			acked = append(acked, op)
		}
	}
	c.Acknowledged += len(acked)
	if last == nil {
		return
	}
	pieces := piecesOf(last.Value)
	for _, piece := range sorted(pieces, cmp.Compare[string]) {
		if n := pieces[piece]; n > 1 {
			c.Duplicated += n - 1
			f.add(p.String(), "%q is there %d times", piece, n)
		}
		if !asked[piece] {
			f.add(p.String(), "%q is there and was never appended, or was refused", piece)
		}
	}
	for _, op := range acked {
		switch {
		case pieces[op.Value] == 0:
			c.Lost++
			f.add(p.String(), "%q was acknowledged at offset %d and is not there", op.Value, op.Offset)
		case op.Offset > uint64(len(last.Value)) || !strings.HasPrefix(last.Value[op.Offset:], op.Value):
			f.add(p.String(), "%q was acknowledged at offset %d and is elsewhere", op.Value, op.Offset)
		}
	}
	inOrder(f, p, acked)
	stays(f, p, ops, *last)
}

// piecesOf counts the pieces of a stream. What has no end counts as one.
func piecesOf(value string) map[string]int {
	pieces := map[string]int{}
	for piece := range strings.SplitAfterSeq(value, pieceEnd) {
		if piece != "" {
			pieces[piece]++
		}
	}
	return pieces
}

// inOrder: what was acknowledged before another append began is before it.
func inOrder(f *found, p place, acked []record.Op) {
	ended := slices.Clone(acked) // acked is in order of Call
	slices.SortStableFunc(ended, func(a, b record.Op) int { return cmp.Compare(a.Return, b.Return) })
	var furthest record.Op
	for _, op := range acked {
		for len(ended) > 0 && ended[0].Return < op.Call {
			if ended[0].Offset >= furthest.Offset {
				furthest = ended[0]
			}
			ended = ended[1:]
		}
		if furthest.Value != "" && op.Offset < furthest.Offset {
			f.add(p.String(), "%q at offset %d was acknowledged before %q at offset %d was begun", furthest.Value, furthest.Offset, op.Value, op.Offset)
		}
	}
}

// stays: what was read is the beginning of what is read later.
func stays(f *found, p place, ops []record.Op, last record.Op) {
	for _, op := range ops {
		if op.Kind != record.Get || op.Outcome != record.OK || op.Return >= last.Call {
			continue
		}
		if !strings.HasPrefix(last.Value, op.Value) {
			f.add(p.String(), "what was read %v before the last read is not its beginning: %q", last.Call.Sub(op.Return), tail(op.Value))
			return
		}
	}
}

// tail is the end of a long value, for reports.
func tail(value string) string {
	const most = 80
	if len(value) > most {
		return "..." + value[len(value)-most:]
	}
	return value
}
