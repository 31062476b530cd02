// SPDX-License-Identifier: Apache-2.0

package record

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMend(t *testing.T) {
	path := filepath.Join(t.TempDir(), "served")
	if err := Mend(path); err != nil {
		t.Fatalf("no file: %v", err)
	}
	for torn, want := range map[string]string{"": "", "{}": "", "{}\n": "{}\n", "{}\n{\"no": "{}\n"} {
		if err := os.WriteFile(path, []byte(torn), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Mend(path); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%q became %q, %v; want %q", torn, got, err, want)
		}
	}
}
