// SPDX-License-Identifier: Apache-2.0

package check

import (
	"fmt"
	"strings"

	"github.com/hastate/hastate/testcluster/chaos/record"
)

// writes are what operations say of one session.
type writes struct {
	// acked are the revisions of acknowledged whole values.
	acked map[string]uint64
	// at are acknowledged whole values, and values read, by revision.
	at map[uint64]string
	// appends are the acknowledged appends that are the newest of their revision.
	appends map[uint64]record.Op
	// asked are all whole values, or pieces, that may have been written.
	asked map[string]bool
	// pieces: it was appended to.
	pieces bool
	// deletes is how many deletions may have been done.
	deletes int
	// doubtfulDeletes: one of them has an unknown outcome.
	doubtfulDeletes bool
}

func writesOf(ops []record.Op) map[place]*writes {
	all := map[place]*writes{}
	for _, op := range ops {
		w := all[placeOf(op)]
		if w == nil {
			w = &writes{acked: map[string]uint64{}, at: map[uint64]string{}, appends: map[uint64]record.Op{}, asked: map[string]bool{}}
			all[placeOf(op)] = w
		}
		w.pieces = w.pieces || op.Kind == record.Append
		if op.Outcome == record.OK || op.Outcome == record.Unknown {
			w.note(op)
		}
	}
	return all
}

// note takes in an operation that was done, or may have been.
func (w *writes) note(op record.Op) {
	done := op.Outcome == record.OK
	switch op.Kind {
	case record.Delete:
		if !done || op.Found {
			w.deletes++
		}
		w.doubtfulDeletes = w.doubtfulDeletes || !done
	case record.Get:
		if done && op.Found && op.Base == 0 {
			w.at[op.Revision] = op.Value
		}
	case record.Append:
		w.asked[op.Value] = true
		if done {
			w.appends[op.Revision] = op
		}
	default:
		w.asked[op.Value] = true
		if done {
			w.acked[op.Value], w.at[op.Revision] = op.Revision, op.Value
		}
	}
}

// explain says what is wrong with a value at a revision; empty if nothing is.
func (w *writes) explain(revision uint64, value string) string {
	if want, ok := w.at[revision]; ok && want != value {
		return fmt.Sprintf("that revision is %q", tail(want))
	}
	if w.pieces {
		return w.explainPieces(revision, value)
	}
	if r, ok := w.acked[value]; ok && r != revision {
		return fmt.Sprintf("it was acknowledged at revision %d", r)
	}
	if !w.asked[value] {
		return "nobody wrote it, or it was refused"
	}
	return ""
}

func (w *writes) explainPieces(revision uint64, value string) string {
	if op, ok := w.appends[revision]; ok {
		if uint64(len(value)) != op.EndOffset || op.Offset > op.EndOffset || !strings.HasPrefix(value[op.Offset:], op.Value) {
			return describe(op)
		}
	}
	for piece, n := range piecesOf(value) {
		switch {
		case n > 1:
			return fmt.Sprintf("%q is there %d times", piece, n)
		case !w.asked[piece]:
			return fmt.Sprintf("nobody appended %q, or it was refused", piece)
		}
	}
	return ""
}
