// SPDX-License-Identifier: Apache-2.0

package check

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/hastate/hastate/testcluster/chaos/record"
)

// The names of the checks, as in record.Violation.
const (
	checkLinearizability = "linearizability"
	checkOnePrimary      = "one-primary"
	checkExactlyOnce     = "exactly-once"
	checkWatch           = "watch"
	checkHistory         = "history"
	checkFalseFailover   = "false-failover"
	checkPromotion       = "promotion"
	checkProof           = "proof"
)

// maxFound bounds the violations of one call: a cluster that is broken through
// and through need not be described operation by operation.
const maxFound = 50

// found gathers the violations of one check.
type found struct {
	check string
	list  []record.Violation
	more  int
}

func (f *found) add(key, format string, args ...any) {
	if len(f.list) == maxFound {
		f.more++
		return
	}
	f.list = append(f.list, record.Violation{Check: f.check, Key: key, Text: fmt.Sprintf(format, args...)})
}

// violations are those that were added, and how many more there were.
func (f *found) violations() []record.Violation {
	if f.more > 0 {
		return append(f.list, record.Violation{Check: f.check, Text: fmt.Sprintf("and %d more", f.more)})
	}
	return f.list
}

// place is one session.
type place struct{ group, key string }

func (p place) String() string { return p.group + "/" + p.key }

func placeOf(op record.Op) place { return place{op.Group, op.Key} }

// byPlace splits operations by session, each in order of Call.
func byPlace(ops []record.Op) map[place][]record.Op {
	all := map[place][]record.Op{}
	for _, op := range ops {
		all[placeOf(op)] = append(all[placeOf(op)], op)
	}
	for _, list := range all {
		slices.SortStableFunc(list, func(a, b record.Op) int { return cmp.Compare(a.Call, b.Call) })
	}
	return all
}

// sorted are the keys of a map in order, so that reports are the same each time.
func sorted[K comparable, V any](m map[K]V, less func(a, b K) int) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, less)
	return keys
}

func comparePlaces(a, b place) int {
	return cmp.Or(cmp.Compare(a.group, b.group), cmp.Compare(a.key, b.key))
}
