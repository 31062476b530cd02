// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os/exec"
	"strings"
	"testing"
)

// The program that people run has nothing in it that could break it from outside.
func TestOrdinaryBuildHasNoFaultInjection(t *testing.T) {
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Skip("no go tool to ask what is linked")
	}
	for tags, want := range map[string]bool{"": false, "chaos": true} {
		out, err := exec.CommandContext(t.Context(), goTool, "list", "-deps", "-tags", tags, "github.com/hastate/hastate/cmd/hanode").Output()
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(string(out), "hastate/testcluster"); got != want {
			t.Errorf("built with tags %q: testcluster is linked: %t, want %t", tags, got, want)
		}
	}
}
