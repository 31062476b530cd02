// SPDX-License-Identifier: Apache-2.0

package holder_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/internal/holder"
	"github.com/hastate/hastate/internal/holder/holdertest"
	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// changes collects what OnLease is told.
type changes struct {
	mu  sync.Mutex // guards all
	all []holder.LeaseChange
}

func (c *changes) add(l holder.LeaseChange) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, l)
}

func (c *changes) get() []holder.LeaseChange {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.all)
}

// wait returns the first change of an epoch that fits.
func (c *changes) wait(t *testing.T, what string, fits func(holder.LeaseChange) bool) (found holder.LeaseChange) {
	t.Helper()
	wait.Until(t, patience, func() error {
		all := c.get()
		i := slices.IndexFunc(all, fits)
		if i < 0 {
			return fmt.Errorf("%s was not told: %+v", what, all)
		}
		found = all[i]
		return nil
	})
	return found
}

// The lease is told before Promote is called under it, each renewal keeps its
// beginning, and the end is told after the role was taken back and before the log
// hears of the release.
func TestHolderTellsItsLease(t *testing.T) {
	told, server := &changes{}, holdertest.NewServer()
	atPromote, atRelease := -1, []holder.LeaseChange(nil)
	server.On(func(context.Context) error { atPromote = len(told.get()); return nil }, nil, nil)
	var s *stand
	roleAtEnd := holder.RolePrimary
	s = newStand(t, slow(), nil, server, func(c *holder.Config) {
		c.OnLease = func(l holder.LeaseChange) {
			if l.Ended {
				roleAtEnd = s.h.Status().Role.Kind
			}
			told.add(l)
		}
	})
	s.log.Fault(func(_ string, cmd *pb.Command) error {
		if cmd.GetRelease() != nil {
			atRelease = told.get()
		}
		return nil
	})
	before := clock.Boot{}.Now()
	epoch := s.grant(7)
	s.phase(serving)
	first := told.get()[0]
	if first.Epoch != epoch || first.Group != "g" || first.From < before || first.Until <= first.From || first.Ended || atPromote == 0 {
		t.Fatalf("began with %+v, %d told when Promote was called", first, atPromote)
	}
	renewed := told.wait(t, "a renewal", func(l holder.LeaseChange) bool { return l.Until > first.Until })
	if renewed.From != first.From || renewed.Epoch != epoch {
		t.Fatalf("renewed %+v, begun as %+v", renewed, first)
	}
	s.stop()
	all := told.get()
	last := all[len(all)-1]
	if !last.Ended || last.Epoch != epoch || last.From != first.From || last.Until > (clock.Boot{}).Now() {
		t.Fatalf("ended with %+v", last)
	}
	if roleAtEnd != holder.RoleStandby {
		t.Errorf("the end was told while the role was %v", roleAtEnd)
	}
	if len(atRelease) == 0 || !atRelease[len(atRelease)-1].Ended {
		t.Errorf("released after %+v", atRelease)
	}
}

// A lease that was aborted has not ended as long as the instance does not obey.
func TestHolderTellsTheEndWhenTheInstanceIsSilent(t *testing.T) {
	told, server := &changes{}, holdertest.NewServer()
	obey := make(chan struct{})
	server.On(nil, func(ctx context.Context) error {
		select {
		case <-obey:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}, nil)
	s := newStand(t, slow(), nil, server, func(c *holder.Config) { c.Kill, c.OnLease = nil, told.add })
	epoch := s.grant(7)
	s.phase(serving)
	s.log.Change("g", func(g *pb.Group) { g.Revoked = true })
	wait.Until(t, patience, func() error {
		if p := s.h.Status().Phase; p != "fencing" {
			return errors.New(p)
		}
		return nil
	})
	ended := func(l holder.LeaseChange) bool { return l.Ended }
	if slices.ContainsFunc(told.get(), ended) {
		t.Fatal("the end was told while the instance may serve")
	}
	at := clock.Boot{}.Now()
	close(obey)
	if l := told.wait(t, "the end", ended); l.Epoch != epoch || l.Until < at {
		t.Fatalf("ended with %+v, the instance obeyed at %d", l, at)
	}
}

// What a former process of the node held has ended when this one has silenced the
// instance.
func TestHolderTellsTheEndOfAFormerLease(t *testing.T) {
	s := newStand(t, slow(), nil, nil, nil)
	epoch := s.grant(7)
	s.phase(serving)
	s.log.Cut("n1", true)
	s.server.On(nil, holdertest.Hang, nil)
	s.stop()
	s.log.Cut("n1", false)
	told, revived := &changes{}, holdertest.NewServer()
	if _, err := revived.Promote(context.Background(), holder.Promotion{Epoch: epoch, Lease: time.Second}); err != nil {
		t.Fatal(err)
	}
	again := newStand(t, slow(), s.log, revived, func(c *holder.Config) { c.OnLease = told.add })
	again.phase(vacant)
	all := told.get()
	if len(all) != 1 || all[0].Epoch != epoch || all[0].From != 0 || !all[0].Ended || revived.Promoted() != 0 {
		t.Fatalf("told %+v", all)
	}
}
