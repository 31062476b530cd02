// SPDX-License-Identifier: Apache-2.0

package client

import (
	"fmt"
	"slices"
	"testing"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// A change says up to where everything has been told, so that another watch may
// begin there: nothing while the current sessions are being told, whatever their
// revisions.
func TestSessionWatch_SaysWhatIsComplete(t *testing.T) {
	var got []string
	w := &sessionWatch{on: func(c SessionChange) error {
		got = append(got, fmt.Sprintf("%s@%d: %d", c.Event.GetSession().GetId(), c.Event.GetRevision(), c.Revision))
		return nil
	}}
	events := func(revision uint64, of ...uint64) *pb.WatchSessionsResponse {
		resp := &pb.WatchSessionsResponse{Revision: revision}
		for _, r := range of {
			resp.Events = append(resp.Events, &pb.SessionEvent{Revision: r, Session: &pb.Session{Id: fmt.Sprint("s", r)}})
		}
		return resp
	}
	for _, resp := range []*pb.WatchSessionsResponse{events(0, 5, 3), events(0, 4), events(4), events(4), events(9, 6, 8), events(12)} {
		if err := w.tell(resp); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"s5@5: 0", "s3@3: 0", "s4@4: 0", "@0: 4", "s6@6: 4", "s8@8: 9", "@0: 12"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
