// SPDX-License-Identifier: Apache-2.0

package check

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/hastate/hastate/testcluster/chaos/record"
)

// maxPictures bounds the histories that are kept for pictures.
const maxPictures = 5

// Linearizability is the result of Linearizable.
type Linearizability struct {
	Violations []record.Violation
	// Keys is how many sessions were judged, Ops how many operations of theirs.
	Keys, Ops int
	// Undecided are the sessions for which the timeout was too short. They are no
	// violations.
	Undecided []string

	pictures []picture
}

type picture struct {
	place place
	info  porcupine.LinearizationInfo
}

// Linearizable checks that the operations of each session can be put into an
// order that agrees with their times and in which each did what it was told to
// have done. An operation of unknown outcome may have taken effect at any time
// since its Call, or never. The timeout is per session.
//
// The history of a session must begin with its first operation: before it there
// is no such session.
func Linearizable(ops []record.Op, timeout time.Duration) *Linearizability {
	r := &Linearizability{}
	f := found{check: checkLinearizability}
	all := byPlace(ops)
	for _, p := range sorted(all, comparePlaces) {
		history := operations(all[p])
		if len(history) == 0 {
			continue
		}
		r.Keys++
		r.Ops += len(history)
		switch porcupine.CheckOperationsTimeout(sessionModel(), history, timeout) {
		case porcupine.Unknown:
			r.Undecided = append(r.Undecided, p.String())
		case porcupine.Illegal:
			f.add(p.String(), "no order of its %d operations explains what they were told%s", len(history), r.keep(p, history, timeout))
		}
	}
	r.Violations = f.violations()
	return r
}

// keep keeps what the picture of an illegal history needs, and says how far an
// order was found.
func (r *Linearizability) keep(p place, history []porcupine.Operation, timeout time.Duration) string {
	if len(r.pictures) == maxPictures {
		return ""
	}
	result, info := porcupine.CheckOperationsVerbose(sessionModel(), history, timeout)
	if result != porcupine.Illegal {
		return ""
	}
	r.pictures = append(r.pictures, picture{p, info})
	var longest []porcupine.Operation
	for _, partition := range info.PartialLinearizationsOperations() {
		for _, order := range partition {
			if len(order) > len(longest) {
				longest = order
			}
		}
	}
	if len(longest) == 0 {
		return ""
	}
	return fmt.Sprintf("; the longest that does has %d and ends with %s", len(longest), describe(longest[len(longest)-1].Input.(record.Op)))
}

// WritePictures writes a page of HTML for each of the first violations into a
// folder, which must exist, and returns their paths.
func (r *Linearizability) WritePictures(dir string) ([]string, error) {
	var paths []string
	var errs []error
	for _, p := range r.pictures {
		name := strings.Map(func(c rune) rune {
			if c == '/' || c == os.PathSeparator || c < ' ' {
				return '_'
			}
			return c
		}, p.place.String())
		path := filepath.Join(dir, "linearizability-"+name+".html")
		if err := porcupine.VisualizePath(sessionModel(), p.info, path); err != nil {
			errs = append(errs, fmt.Errorf("picture of %s: %w", p.place, err))
			continue
		}
		paths = append(paths, path)
	}
	return paths, errors.Join(errs...)
}

// operations are those that say something of the session. Those of unknown
// outcome return after all others.
func operations(ops []record.Op) []porcupine.Operation {
	last := ops[0].Call
	for _, op := range ops {
		last = max(last, op.Call, op.Return)
	}
	// Operations of one row of the picture must not overlap.
	rows, unknowns := 0, 0
	for _, op := range ops {
		rows = max(rows, op.Client+1)
	}
	var history []porcupine.Operation
	for _, op := range ops {
		h := porcupine.Operation{ClientId: op.Client, Input: op, Call: int64(op.Call), Return: int64(op.Return)}
		switch {
		case op.Outcome == record.Failed, op.Outcome == record.Unknown && op.Kind == record.Get:
			continue
		case op.Outcome == record.Unknown:
			h.ClientId, h.Return = rows+unknowns, int64(last)+1
			unknowns++
		}
		history = append(history, h)
	}
	return history
}
