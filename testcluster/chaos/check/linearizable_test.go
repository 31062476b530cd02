// SPDX-License-Identifier: Apache-2.0

package check

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

const patience = 20 * time.Second

// at gives an operation its times and place.
func at(call, ret clock.Instant, op record.Op) record.Op {
	op.Call, op.Return, op.Group, op.Key = call, ret, "g", "k"
	if op.Outcome == "" {
		op.Outcome = record.OK
	}
	return op
}

func put(value string, revision uint64) record.Op {
	return record.Op{Kind: record.Put, Value: value, Revision: revision}
}

func create(value string, revision uint64) record.Op {
	return record.Op{Kind: record.Create, Value: value, Revision: revision}
}

func cas(value string, if_, revision uint64) record.Op {
	return record.Op{Kind: record.CAS, Value: value, IfRevision: if_, Revision: revision}
}

func get(value string, revision uint64) record.Op {
	return record.Op{Kind: record.Get, Value: value, Revision: revision, Found: true}
}

func getNone() record.Op { return record.Op{Kind: record.Get} }

func del(found bool) record.Op { return record.Op{Kind: record.Delete, Found: found} }

func app(piece string, offset, end, revision uint64) record.Op {
	return record.Op{Kind: record.Append, Value: piece, Offset: offset, EndOffset: end, Revision: revision}
}

// outcome is an operation with another outcome than OK.
func outcome(o string, op record.Op) record.Op {
	op.Outcome = o
	if o == record.Unknown {
		op.Revision, op.EndOffset = 0, 0
	}
	return op
}

func under(epoch uint64, op record.Op) record.Op {
	op.Epoch = epoch
	return op
}

// row puts operations one after the other.
func row(ops ...record.Op) []record.Op {
	var out []record.Op
	for i, op := range ops {
		out = append(out, at(clock.Instant(10*i), clock.Instant(10*i+5), op))
	}
	return out
}

func TestLinearizable_Honest(t *testing.T) {
	for name, ops := range map[string][]record.Op{
		"one after the other": row(getNone(), put("a", 3), get("a", 3), cas("b", 3, 4), get("b", 4), del(true), del(false), getNone(), create("c", 9), get("c", 9)),
		"concurrent": {
			at(0, 100, put("a", 3)), at(0, 100, put("b", 4)), at(0, 100, get("a", 3)), at(50, 200, get("b", 4)),
		},
		"unknown, never applied":        row(put("a", 3), outcome(record.Unknown, put("b", 0)), get("a", 3), get("a", 3)),
		"unknown, applied at once":      row(put("a", 3), outcome(record.Unknown, put("b", 0)), get("b", 4), get("b", 4)),
		"unknown, applied late":         row(put("a", 3), outcome(record.Unknown, put("b", 0)), get("a", 3), put("c", 5), get("b", 8)),
		"unknown, overwritten":          row(outcome(record.Unknown, put("b", 0)), put("c", 8), get("c", 8), get("b", 9), cas("d", 9, 10)),
		"unknown, then its revision":    row(put("a", 3), outcome(record.Unknown, put("b", 0)), cas("c", 5, 6), get("c", 6)),
		"unknown cas, not applied":      row(put("a", 3), outcome(record.Unknown, cas("b", 3, 0)), put("c", 5), get("c", 5)),
		"unknown cas, applied":          row(put("a", 3), outcome(record.Unknown, cas("b", 3, 0)), get("b", 4)),
		"unknown cas on unknown put":    row(put("a", 3), outcome(record.Unknown, put("b", 0)), outcome(record.Unknown, cas("c", 4, 0)), get("c", 5)),
		"unknown create":                row(outcome(record.Unknown, create("b", 0)), outcome(record.Refused, create("c", 2)), get("b", 2)),
		"unknown delete, applied":       row(put("a", 3), outcome(record.Unknown, del(false)), getNone(), create("b", 7)),
		"unknown delete, too late":      row(put("a", 3), outcome(record.Unknown, record.Op{Kind: record.Delete, IfRevision: 3}), put("b", 7), get("b", 7)),
		"unknown get":                   row(put("a", 3), outcome(record.Unknown, get("", 0)), get("a", 3)),
		"failed":                        row(put("a", 3), outcome(record.Failed, put("b", 0)), get("a", 3)),
		"refused cas":                   row(put("a", 3), put("b", 5), outcome(record.Refused, cas("c", 3, 5)), get("b", 5)),
		"refused cas on nothing":        row(outcome(record.Refused, cas("c", 3, 0)), getNone()),
		"fenced":                        row(put("a", 3), outcome(record.Refused, under(4, cas("b", 3, 0))), outcome(record.Refused, under(4, put("b", 0))), get("a", 3)),
		"appends":                       row(app("a;", 0, 2, 3), app("bb;", 2, 5, 4), get("a;bb;", 4)),
		"append again":                  row(app("a;", 0, 2, 3), app("bb;", 2, 5, 4), app("a;", 0, 5, 4), get("a;bb;", 4)),
		"append refused":                row(app("a;", 0, 2, 3), outcome(record.Refused, app("b;", 7, 2, 3)), get("a;", 3)),
		"append unknown, then another":  row(app("a;", 0, 2, 3), outcome(record.Unknown, app("b;", 2, 0, 0)), outcome(record.Refused, app("c;", 2, 4, 5)), get("a;b;", 5)),
		"append unknown, never applied": row(app("a;", 0, 2, 3), outcome(record.Unknown, app("b;", 2, 0, 0)), app("c;", 2, 4, 5), get("a;c;", 5)),
		"delete of another revision":    row(put("a", 3), outcome(record.Refused, record.Op{Kind: record.Delete, IfRevision: 2, Revision: 3}), get("a", 3)),
	} {
		t.Run(name, func(t *testing.T) {
			r := Linearizable(ops, patience)
			if len(r.Violations) != 0 || len(r.Undecided) != 0 || r.Keys != 1 {
				t.Errorf("%+v", r)
			}
		})
	}
}

func TestLinearizable_Detects(t *testing.T) {
	for name, ops := range map[string][]record.Op{
		"lost write":                    row(put("a", 3), put("b", 4), get("a", 3)),
		"lost for good":                 row(put("a", 3), getNone()),
		"stale read":                    row(put("a", 3), put("b", 4), get("b", 4), get("a", 3)),
		"foreign value":                 row(put("a", 3), get("x", 3)),
		"another revision":              row(put("a", 3), get("a", 4)),
		"revisions go back":             row(put("a", 3), put("b", 2)),
		"applied though failed":         row(put("a", 3), outcome(record.Failed, put("b", 0)), get("b", 4)),
		"applied though refused":        row(put("a", 3), put("b", 5), outcome(record.Refused, cas("c", 3, 5)), get("c", 6)),
		"unknown, applied twice":        row(outcome(record.Unknown, put("b", 0)), get("b", 4), put("c", 5), get("b", 6)),
		"unknown, applied before":       row(put("a", 3), get("b", 4), outcome(record.Unknown, put("b", 0))),
		"unknown read, then gone":       row(put("a", 3), outcome(record.Unknown, put("b", 0)), get("b", 4), get("a", 3)),
		"cas on another revision":       row(put("a", 3), put("b", 4), cas("c", 3, 5)),
		"cas on nothing":                row(cas("c", 3, 5)),
		"two cas on one revision":       row(put("a", 3), cas("b", 3, 4), cas("c", 3, 5)),
		"create over something":         row(put("a", 3), create("b", 4)),
		"create refused over nothing":   row(outcome(record.Refused, create("b", 2)), getNone()),
		"cas refused though it held":    row(put("a", 3), outcome(record.Refused, cas("b", 3, 3))),
		"put refused without an epoch":  row(outcome(record.Refused, put("a", 0))),
		"deleted twice":                 row(put("a", 3), del(true), del(true)),
		"delete found nothing":          row(put("a", 3), del(false)),
		"delete not applied":            row(put("a", 3), del(true), get("a", 3)),
		"double append":                 row(app("a;", 0, 2, 3), get("a;a;", 4)),
		"append lost":                   row(app("a;", 0, 2, 3), app("b;", 2, 4, 4), get("b;", 4)),
		"append not at the end":         row(app("a;", 0, 2, 3), app("b;", 0, 2, 4)),
		"append told another end":       row(app("a;", 0, 2, 3), app("b;", 2, 6, 4)),
		"append again with a new value": row(app("a;", 0, 2, 3), app("a;", 0, 2, 4)),
		"append refused at the end":     row(app("a;", 0, 2, 3), outcome(record.Refused, app("b;", 2, 2, 3))),
	} {
		t.Run(name, func(t *testing.T) {
			r := Linearizable(ops, patience)
			if len(r.Violations) != 1 || r.Violations[0].Key != "g/k" {
				t.Errorf("%+v", r)
			}
			paths, err := r.WritePictures(t.TempDir())
			if err != nil || len(paths) != 1 {
				t.Fatalf("%v, %v", paths, err)
			}
			if page, err := os.ReadFile(paths[0]); err != nil || !strings.Contains(string(page), "<html") {
				t.Errorf("%.100s, %v", page, err)
			}
		})
	}
}

// TestLinearizable_Undecided: too short a time is no violation.
func TestLinearizable_Undecided(t *testing.T) {
	var ops []record.Op
	for i := range 28 {
		ops = append(ops, at(0, 1, outcome(record.Unknown, app(strings.Repeat("x", i+1), 0, 0, 0))))
	}
	ops = append(ops, at(2, 3, get("y", 1)))
	r := Linearizable(ops, time.Millisecond)
	if len(r.Violations) != 0 || len(r.Undecided) != 1 {
		t.Errorf("%+v", r)
	}
}
