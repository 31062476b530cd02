// SPDX-License-Identifier: Apache-2.0

package api

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// TestStaleness_OfALeader: that a node takes itself for the leader does not make
// its state new.
func TestStaleness_OfALeader(t *testing.T) {
	r := newRig(t, "n1")
	serving(r)
	c := pb.NewGroupServiceClient(r.conn)
	local := func() *pb.Staleness {
		t.Helper()
		res, err := c.GetPrimary(t.Context(), &pb.GetPrimaryRequest{Level: pb.ReadLevel_READ_LEVEL_LOCAL})
		if err != nil {
			t.Fatal(err)
		}
		return res.GetStaleness()
	}
	r.lock(func() { r.confirmed = 7*time.Second + time.Microsecond })
	if s := local(); !s.GetLeaderKnown() || s.GetLeaderContactMs() != 7001 {
		t.Fatalf("a majority confirmed it 7.000001 s ago: %v", s)
	}
	r.lock(func() { r.confirmed = -1 })
	if s := local(); s.GetLeaderKnown() {
		t.Fatalf("no majority has confirmed it, and there was no leader before: %v", s)
	}
	r.lock(func() { r.contact = time.Now().Add(-time.Hour) })
	if s := local(); !s.GetLeaderKnown() || s.GetLeaderContactMs() < uint64(time.Hour.Milliseconds()) {
		t.Fatalf("a new leader that heard of the one before an hour ago: %v", s)
	}
	r.lock(func() { r.rstate, r.confirmed = raft.Follower, 0 })
	if s := local(); s.GetLeaderContactMs() < uint64(time.Hour.Milliseconds()) {
		t.Fatalf("a follower that heard of its leader an hour ago: %v", s)
	}
}
