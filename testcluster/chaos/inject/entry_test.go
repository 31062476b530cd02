// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"context"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func entry(t *testing.T, commands ...*pb.Command) []byte {
	t.Helper()
	b, err := proto.Marshal(&pb.Entry{Commands: commands})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// An entry with a Grant waits until it is let go; others pass.
func TestState_HoldGrant(t *testing.T) {
	cfg, set := socket(t)
	renew := &pb.Command{Op: &pb.Command_Renew{Renew: &pb.RenewBatch{Holder: "n1"}}}
	grant := &pb.Command{Op: &pb.Command_Grant{Grant: &pb.Grant{Group: "g"}}}
	cfg.Faults.Entry(entry(t, renew, grant))
	ok(t, set(State{HoldGrant: true}))
	ok(t, set(State{HoldGrant: true, WallOffsetMS: 1})) // the same hold goes on
	cfg.Faults.Entry(entry(t, renew))
	cfg.Faults.Entry([]byte("no entry"))
	done := make(chan struct{})
	go func() {
		cfg.Faults.Entry(entry(t, renew, grant))
		close(done)
	}()
	held, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	select {
	case <-done:
		t.Fatal("it was not held")
	case <-held.Done():
	}
	ok(t, set(State{}))
	<-done
	cfg.Faults.Entry(entry(t, grant))
}
