// SPDX-License-Identifier: Apache-2.0

package system

import (
	"testing"
	"time"
)

func TestParseCPU(t *testing.T) {
	for stat, want := range map[string]time.Duration{
		"12 (etcd) S 1 12 12 0 -1 4194560 9 0 0 0 150 50 0 0 20 0":         2 * time.Second,
		"12 (a ) 9 9) R 1 12 12 0 -1 4194560 9 0 0 0 1 2 7 7 20 0 1 2 3\n": 30 * time.Millisecond,
	} {
		if got, err := parseCPU(stat); err != nil || got != want {
			t.Errorf("%q: %v, %v", stat, got, err)
		}
	}
	for _, stat := range []string{"", "12 etcd S 1", "12 (etcd) S 1 2 3", "12 (etcd) S 1 12 12 0 -1 4194560 9 0 0 0 x 50 0 0 20 0"} {
		if got, err := parseCPU(stat); err == nil {
			t.Errorf("%q: %v", stat, got)
		}
	}
}
