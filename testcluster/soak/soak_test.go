// SPDX-License-Identifier: Apache-2.0

//go:build process

package main

import (
	"io"
	"testing"
	"time"
)

// TestSoak is a short run with real processes. The seed has a round in which all
// nodes are killed.
func TestSoak(t *testing.T) {
	r, err := soak(t.Context(), options{rounds: 5, writers: 4, seed: 6, profile: "lan", timeout: 5 * time.Minute, progress: io.Discard})
	if err != nil {
		t.Fatalf("%v: %+v", err, r)
	}
	t.Logf("%+v", r)
	if r.Kills != 5 || r.AllKills == 0 || r.Lost != 0 || r.AppliedTwice != 0 || !r.HashesEqual || r.Acknowledged == 0 || r.Watched == 0 {
		t.Errorf("%+v", r)
	}
}
