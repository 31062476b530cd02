// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/node"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

const second = clock.Instant(time.Second)

func open(t *testing.T, path string, shown clock.Scaled) *leases {
	t.Helper()
	l, err := openLeases(path, "n1", shown, nil)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func read(t *testing.T, l *leases, path string) []record.Lease {
	t.Helper()
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	all, err := record.Read[record.Lease](path)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// What the node's clock says is written down as what the machine's clock said.
func TestLeases_MachineInstants(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases")
	shown := clock.Scaled{Rate: 1.25, From: 1000 * second}
	l := open(t, path, shown)
	l.told(node.LeaseChange{Group: "g", Epoch: 7, From: 1000*second + 125, Until: 1005 * second})
	l.told(node.LeaseChange{Group: "g", Epoch: 7, From: 1000*second + 125, Until: 1010 * second})
	l.told(node.LeaseChange{Group: "h", Epoch: 8, From: 1000 * second, Until: 1005 * second})
	l.told(node.LeaseChange{Group: "g", Epoch: 7, From: 1000*second + 125, Until: 1009 * second, Ended: true})
	l.told(node.LeaseChange{Group: "g", Epoch: 7, Until: 1009 * second, Ended: true})
	want := []record.Lease{
		{Node: "n1", Group: "g", Epoch: 7, From: 1000*second + 100, Until: 1004 * second},
		{Node: "n1", Group: "g", Epoch: 7, From: 1000*second + 100, Until: 1008 * second},
		{Node: "n1", Group: "h", Epoch: 8, From: 1000 * second, Until: 1004 * second},
		{Node: "n1", Group: "g", Epoch: 7, From: 1000*second + 100, Until: 1000*second + 7_200_000_000, Ended: true},
	}
	got := read(t, l, path)
	if len(got) != len(want) {
		t.Fatalf("%+v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("line %d: %+v, want %+v", i, got[i], want[i])
		}
	}
	l.told(node.LeaseChange{Group: "g", Epoch: 9}) // by a holder that hangs on
}

// An instance that was silenced after the lease had run out ends nothing, and nor
// does an epoch that was never valid here.
func TestLeases_LateEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases")
	l := open(t, path, clock.Scaled{Rate: 1})
	l.told(node.LeaseChange{Group: "g", Epoch: 7, From: second, Until: 2 * second})
	l.told(node.LeaseChange{Group: "g", Epoch: 7, From: second, Until: 2 * second, Ended: true})
	l.told(node.LeaseChange{Group: "g", Epoch: 8, Until: 3 * second, Ended: true})
	if got := read(t, l, path); len(got) != 1 || got[0].Ended {
		t.Errorf("%+v", got)
	}
}

// A killed process leaves its lease open and maybe a torn line; the next one of the
// node ends it, with its beginning.
func TestLeases_FormerProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases")
	l := open(t, path, clock.Scaled{Rate: 1})
	l.told(node.LeaseChange{Group: "g", Epoch: 7, From: second, Until: 2 * second})
	l.told(node.LeaseChange{Group: "g", Epoch: 9, From: 10 * second, Until: 20 * second})
	read(t, l, path)
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"node":"n1","gro`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	l = open(t, path, clock.Scaled{Rate: 1})
	l.told(node.LeaseChange{Group: "g", Epoch: 7, Until: 15 * second, Ended: true})
	l.told(node.LeaseChange{Group: "g", Epoch: 9, Until: 15 * second, Ended: true})
	got := read(t, l, path)
	if want := (record.Lease{Node: "n1", Group: "g", Epoch: 9, From: 10 * second, Until: 15 * second, Ended: true}); len(got) != 3 || got[2] != want {
		t.Errorf("%+v, want %+v at the end", got, want)
	}
	if err := os.WriteFile(path, []byte("no\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openLeases(path, "n1", clock.Scaled{Rate: 1}, nil); err == nil {
		t.Error("a damaged file was gone on with")
	}
}
