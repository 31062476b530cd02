// SPDX-License-Identifier: Apache-2.0

package textserver

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// patience bounds each wait: a server trains its model first, which takes many
// seconds under the race detector on a busy machine.
const patience = time.Minute

func readyRole(c clock.Clock) *role {
	r := newRole("g", c)
	r.setLoaded()
	return r
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error is %v, want %v", err, want)
	}
}

func mustPromote(t *testing.T, r *role, epoch uint64, lease time.Duration) {
	t.Helper()
	if err := r.promote(epoch, r.clock.Now(), lease); err != nil {
		t.Fatal(err)
	}
}

func TestRole_Epochs(t *testing.T) {
	ctx := context.Background()
	r := newRole("g", &clock.Fake{})
	wantErr(t, r.promote(5, 0, 0), errLoading)
	r.setLoaded()
	_, _, err := r.enter()
	wantErr(t, err, errNotPrimary)
	mustPromote(t, r, 5, 0)
	mustPromote(t, r, 5, 0)
	wantErr(t, r.promote(4, 0, 0), hastate.ErrFenced)
	wantErr(t, r.demote(ctx, 4, 0), hastate.ErrFenced)
	term5 := r.term
	mustPromote(t, r, 6, 0) // a newer grant ends the older term
	wantErr(t, r.valid(term5), errFenced)
	wantErr(t, r.promote(5, 0, 0), hastate.ErrFenced)
	for range 2 {
		if err := r.demote(ctx, 6, 0); err != nil {
			t.Fatal(err)
		}
	}
	wantErr(t, r.promote(6, 0, 0), hastate.ErrFenced) // it never comes back
	mustPromote(t, r, 7, 0)
	r.fence(7, 9) // the cluster says that 9 is the newest, which may be ours
	_, _, err = r.enter()
	wantErr(t, err, errNotPrimary)
	wantErr(t, r.promote(8, 0, 0), hastate.ErrFenced)
	mustPromote(t, r, 9, 0)
	r.fence(9, 9) // released or revoked
	wantErr(t, r.promote(9, 0, 0), hastate.ErrFenced)
	if err := r.demote(ctx, 12, 0); err != nil { // one that was never promoted here
		t.Fatal(err)
	}
	wantErr(t, r.promote(12, 0, 0), hastate.ErrFenced)
}

func TestRole_Lease(t *testing.T) {
	c := &clock.Fake{}
	r := readyRole(c)
	mustPromote(t, r, 5, time.Hour)
	term, leave, err := r.enter()
	if err != nil {
		t.Fatal(err)
	}
	defer leave()
	c.Advance(30 * time.Minute)
	mustPromote(t, r, 5, time.Hour) // renewed
	c.Advance(59 * time.Minute)
	if err := r.valid(term); err != nil {
		t.Fatal(err)
	}
	c.Advance(25 * time.Second) // one percent less than an hour
	wantErr(t, r.valid(term), errLeaseOver)
	if term.ctx.Err() == nil {
		t.Fatal("the term's context runs on")
	}
	_, _, err = r.enter()
	wantErr(t, err, errNotPrimary)
	// The holder knows whether the epoch is still its own; if so it may renew.
	mustPromote(t, r, 5, time.Hour)
	// An order that was long under way does not begin a lease.
	received := c.Now()
	c.Advance(2 * time.Hour)
	wantErr(t, r.promote(6, received, time.Hour), errLeaseOver)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	wantErr(t, r.demote(ctx, 6, 0), context.Canceled) // a request has not left yet
}

func TestRole_Shut(t *testing.T) {
	r := readyRole(&clock.Fake{})
	mustPromote(t, r, 5, 0)
	term, leave, err := r.enter()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.shut(context.Background())
	}()
	wait.Until(t, patience, func() error {
		if st, _ := r.status(); st.GetState() != pb.InstanceState_INSTANCE_STATE_DRAINING {
			return errors.New(st.String())
		}
		return nil
	})
	_, _, err = r.enter()
	wantErr(t, err, errClosing)
	mustPromote(t, r, 5, 0) // a renewal keeps the running work alive
	wantErr(t, r.promote(6, 0, 0), errClosing)
	if err := r.valid(term); err != nil {
		t.Fatal(err)
	}
	leave()
	<-done
	wantErr(t, r.valid(term), errClosing)
}

func TestRole_LeaseTimer(t *testing.T) {
	r := readyRole(clock.Boot{})
	mustPromote(t, r, 5, 200*time.Millisecond)
	term := r.term
	wait.Until(t, patience, func() error {
		if cause := context.Cause(term.ctx); !errors.Is(cause, errLeaseOver) {
			return fmt.Errorf("the term's cause is %w", cause)
		}
		return nil
	})
	if st, _ := r.status(); st.GetRole() != pb.Role_ROLE_STANDBY {
		t.Fatal(st)
	}
}
