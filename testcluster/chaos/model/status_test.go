// SPDX-License-Identifier: Apache-2.0

package model

import (
	"testing"
	"time"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// TestStatusMS: statuses are no closer to each other than the fault says, whatever
// happens meanwhile, and come again as before when it is over.
func TestStatusMS(t *testing.T) {
	r := start(t, 1)
	const apart = 200 * time.Millisecond
	r.set(Faults{StatusMS: apart.Milliseconds()})
	began := time.Now()
	stream, err := r.WatchStatus(r.within(), &pb.WatchStatusRequest{IntervalMs: 10})
	if err != nil {
		t.Fatal(err)
	}
	recv := func() {
		t.Helper()
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	recv()
	want(t, "promote", r.promote(5, time.Minute), nil) // a change, which is told at once else
	for range 3 {
		recv()
	}
	if took := time.Since(began); took < 3*apart {
		t.Errorf("four statuses within %v", took)
	}
	r.set(Faults{StatusMS: time.Minute.Milliseconds()})
	r.set(Faults{}) // ends the wait for the next one, if there was one
	recv()
	recv()
	if err := (Faults{StatusMS: -1}).validate(); err == nil {
		t.Error("a negative time was taken")
	}
}
