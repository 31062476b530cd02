// SPDX-License-Identifier: Apache-2.0

package client_test

import (
	"os/exec"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The package is imported by AI processes: it must not bring a database or a
// consensus library with it.
func TestImports(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	const ours = "github.com/hastate/hastate"
	allowed := map[string]bool{ours: true, ours + "/client": true, ours + "/internal/clock": true, ours + "/proto/hastate/v1": true}
	for _, pkg := range strings.Fields(string(out)) {
		if strings.HasPrefix(pkg, ours) && !allowed[pkg] {
			t.Errorf("client imports %s", pkg)
		}
		for _, heavy := range []string{"hashicorp/raft", "bbolt", "boltdb", "prometheus", "cobra"} {
			if strings.Contains(pkg, heavy) {
				t.Errorf("client imports %s", pkg)
			}
		}
	}
}
