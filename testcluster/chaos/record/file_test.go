// SPDX-License-Identifier: Apache-2.0

package record

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases")
	want := []Lease{{Node: "n1", Group: "a", Epoch: 7, From: 1, Until: 2}, {Node: "n1", Group: "a", Epoch: 7, From: 1, Until: 3, Ended: true}}
	f, err := NewFile[Lease](path)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range want {
		if err := f.Write(l); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := Read[Lease](path); err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%v, %v", got, err)
	}

	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, whole[:len(whole)-3], 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := Read[Lease](path); err != nil || !reflect.DeepEqual(got, want[:1]) {
		t.Errorf("torn by a kill: %v, %v", got, err)
	}
	if err := os.WriteFile(path, append([]byte("{no\n"), whole...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read[Lease](path); err == nil {
		t.Error("a damaged file was read")
	}
}
