// SPDX-License-Identifier: Apache-2.0

package mutant

import (
	"errors"
	"strings"
	"testing"
)

func TestWriteTable(t *testing.T) {
	var b strings.Builder
	err := WriteTable(&b, []Result{
		{Mutant: "no-lease-wait", Check: OnePrimary, Caught: true, Seconds: 3.6, Seed: 7},
		{Mutant: "append-anywhere", Seconds: 60, Seed: 8},
	})
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(lines) != 4 {
		t.Fatalf("%d lines:\n%s", len(lines), b.String())
	}
	for _, l := range lines {
		if strings.Count(l, "|") != 7 {
			t.Errorf("not six cells: %s", l)
		}
	}
	if !strings.HasPrefix(lines[2], "| no-lease-wait | G1 |") || !strings.Contains(lines[2], "| one-primary | 4 | kill-model, 7 |") {
		t.Errorf("%s", lines[2])
	}
	if !strings.Contains(lines[3], "**not caught**") {
		t.Errorf("%s", lines[3])
	}
	if err := WriteTable(&b, []Result{{Mutant: "unheard-of"}}); err == nil {
		t.Error("a mutant that is not in the table was written")
	}
	if err := WriteTable(broken{}, nil); err == nil {
		t.Error("a failed write was not told")
	}
	if got := cell("a|b\nc"); got != `a\|b c` {
		t.Errorf("%q", got)
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("broken") }
