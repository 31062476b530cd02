// SPDX-License-Identifier: Apache-2.0

package check

import (
	"strings"
	"testing"

	"github.com/hastate/hastate/testcluster/chaos/record"
)

func TestExactlyOnce(t *testing.T) {
	lostOrNot := outcome(record.Unknown, app("b;", 2, 0, 0))
	for name, c := range map[string]struct {
		ops  []record.Op
		want Counts
		text string // empty: no violation
	}{
		"honest":                    {row(app("a;", 0, 2, 1), get("a;", 1), app("b;", 2, 4, 2), get("a;b;", 2)), Counts{Acknowledged: 2}, ""},
		"unknown, applied":          {row(app("a;", 0, 2, 1), lostOrNot, app("c;", 4, 6, 3), get("a;b;c;", 3)), Counts{Acknowledged: 2}, ""},
		"unknown, not applied":      {row(app("a;", 0, 2, 1), lostOrNot, app("c;", 2, 4, 3), get("a;c;", 3)), Counts{Acknowledged: 2}, ""},
		"failed and refused":        {row(outcome(record.Failed, app("a;", 0, 0, 0)), outcome(record.Refused, app("b;", 9, 0, 0)), getNone()), Counts{}, ""},
		"not read back":             {row(app("a;", 0, 2, 1), get("a;", 1), app("b;", 2, 4, 2)), Counts{Acknowledged: 1, Unread: 1}, ""},
		"never read back":           {row(app("a;", 0, 2, 1)), Counts{Unread: 1}, ""},
		"deleted meanwhile":         {row(app("a;", 0, 2, 1), del(true), app("a;", 0, 2, 3), getNone()), Counts{}, ""},
		"not a stream":              {row(put("a", 1), getNone()), Counts{}, ""},
		"lost":                      {row(app("a;", 0, 2, 1), app("b;", 2, 4, 2), get("a;", 1)), Counts{Acknowledged: 2, Lost: 1}, "is not there"},
		"all lost":                  {row(app("a;", 0, 2, 1), getNone()), Counts{Acknowledged: 1, Lost: 1}, "is not there"},
		"twice":                     {row(app("a;", 0, 2, 1), get("a;a;", 2)), Counts{Acknowledged: 1, Duplicated: 1}, "is there 2 times"},
		"unknown, twice":            {row(outcome(record.Unknown, app("b;", 0, 0, 0)), get("b;b;b;", 2)), Counts{Duplicated: 2}, "is there 3 times"},
		"foreign":                   {row(app("a;", 0, 2, 1), get("a;x;", 1)), Counts{Acknowledged: 1}, "never appended"},
		"torn":                      {row(app("a;", 0, 2, 1), lostOrNot, get("a;b", 1)), Counts{Acknowledged: 1}, "never appended"},
		"applied though refused":    {row(app("a;", 0, 2, 1), outcome(record.Refused, app("b;", 2, 0, 0)), get("a;b;", 2)), Counts{Acknowledged: 1}, "or was refused"},
		"elsewhere":                 {row(app("a;", 0, 2, 1), outcome(record.Unknown, app("cc;", 2, 0, 0)), app("b;", 2, 4, 2), get("a;cc;b;", 1)), Counts{Acknowledged: 2}, "is elsewhere"},
		"taken back":                {row(app("a;", 0, 2, 1), lostOrNot, get("a;b;", 2), get("a;", 1)), Counts{Acknowledged: 1}, "is not its beginning"},
		"a piece of another's name": {row(app("a1;", 0, 3, 1), get("ba1;", 1), getNone()), Counts{Acknowledged: 1, Lost: 1}, "is not there"},
	} {
		t.Run(name, func(t *testing.T) {
			counts, v := ExactlyOnce(c.ops)
			if counts != c.want {
				t.Errorf("%+v, not %+v", counts, c.want)
			}
			if (len(v) == 0) != (c.text == "") {
				t.Fatal(v)
			}
			for _, one := range v {
				if strings.Contains(one.Text, c.text) {
					return
				}
			}
			if c.text != "" {
				t.Errorf("%v, not %q", v, c.text)
			}
		})
	}
}

// TestExactlyOnce_Order: two that were acknowledged one after the other and are
// there the other way round.
func TestExactlyOnce_Order(t *testing.T) {
	_, v := ExactlyOnce(row(app("b;", 2, 4, 1), app("a;", 0, 2, 2), get("a;b;", 2)))
	if len(v) != 1 || !strings.Contains(v[0].Text, "was acknowledged before") {
		t.Error(v)
	}
}
