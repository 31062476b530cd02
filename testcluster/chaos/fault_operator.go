// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func operatorFaults() []fault {
	const family = "operator"
	return []fault{
		{kind: "switchover", family: family, weight: 5, must: true, what: "planned switchovers, one after the other", inject: switchovers},
		{kind: "failover-force", family: family, weight: 3, must: true, what: "an operator's failover with force", inject: forcedFailover},
		{kind: "pause-resume", family: family, weight: 1, harmless: true, what: "automatic failover is paused and resumed", inject: pauseResume},
		{kind: "pause-lost", family: family, weight: 2, alone: true, must: true, dark: true, what: "automatic failover is paused and the primary is lost: nobody may take over until it is resumed", inject: pauseLost},
		{kind: "concurrent-switchover", family: family, weight: 2, what: "two operators switch over at once, to different nodes", inject: concurrentSwitchovers},
		{kind: "damaged-backup", family: family, weight: 1, harmless: true, must: true, what: "a backup with flipped bits is restored: it must be refused", inject: damagedBackup},
	}
}

const (
	// moveTimeout bounds one switchover or failover.
	moveTimeout = 10 * time.Second
	// longestBackoff is a little more than a candidate backs off after promotions that
	// failed, which the round before may have brought about.
	longestBackoff = 35 * time.Second
)

// patiently repeats an order of a group that is refused because candidates back off:
// the cluster is whole, and yet it may say so for a while.
func (s *stage) patiently(ctx context.Context, group string, order func() error) error {
	for until := time.Now().Add(longestBackoff); ; {
		before := s.epoch(ctx, group)
		err := order()
		if err == nil || !repeatable(err, before, s.epoch(ctx, group)) || time.Now().After(until) {
			return err
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}

// epoch is the newest epoch of a group; 0: that cannot be found out now.
func (s *stage) epoch(ctx context.Context, group string) uint64 {
	epochs, err := s.epochs(ctx)
	if err != nil {
		return 0
	}
	return epochs[group]
}

// repeatable says that an order was refused in time, only because candidates back off,
// and that it has changed nothing, which is not taken on trust: the group has the epoch
// that it had. An order that has taken the primary away and found no other must be told.
func repeatable(err error, before, after uint64) bool {
	return before != 0 && before == after &&
		errors.Is(err, hastate.ErrPrecondition) && !errors.Is(err, hastate.ErrOutcomeUnknown) && !errors.Is(err, errLate) && backingOff(err)
}

// backingOff says that an order was refused, before anything was changed, and by all
// candidates because they back off. The refusals of candidates come as text only. That
// of one which is stopping has the same text as a back-off, and no node of a whole
// cluster is stopping.
func backingOff(err error) bool {
	_, refusals, before := strings.Cut(err.Error(), "nothing was changed: ")
	if !before {
		return false
	}
	for refusal := range strings.SplitSeq(refusals, "; ") {
		if !strings.HasSuffix(refusal, "backs off after a failed promotion") {
			return false
		}
	}
	return true
}

func (s *stage) switchover(ctx context.Context, group, to string, timeout time.Duration) error {
	return s.order(ctx, timeout, func(ctx context.Context, cc grpc.ClientConnInterface) error {
		_, err := pb.NewGroupServiceClient(cc).Switchover(ctx, &pb.SwitchoverRequest{Group: group, To: to, Reason: "chaos"})
		return err
	})
}

func switchovers(ctx context.Context, s *stage, d *draw) (broken, error) {
	n := 2 + d.IntN(3)
	b := broken{what: fmt.Sprintf("%d switchovers", n)}
	b.then = func(ctx context.Context) error {
		var errs []error
		for i := range n {
			group := d.group(s)
			if err := s.patiently(ctx, group, func() error { return s.switchover(ctx, group, "", moveTimeout) }); err != nil {
				errs = append(errs, fmt.Errorf("switchover %d, of %s: %w", i+1, group, err))
			}
		}
		return errors.Join(errs...)
	}
	return b, nil
}

func forcedFailover(ctx context.Context, s *stage, d *draw) (broken, error) {
	n := 1 + d.IntN(3)
	b := broken{what: fmt.Sprintf("%d failovers with force", n)}
	b.then = func(ctx context.Context) error {
		var errs []error
		for i := range n {
			group := d.group(s)
			err := s.patiently(ctx, group, func() error {
				return s.order(ctx, moveTimeout, func(ctx context.Context, cc grpc.ClientConnInterface) error {
					_, err := pb.NewGroupServiceClient(cc).Failover(ctx, &pb.FailoverRequest{Group: group, Force: true, Reason: "chaos"})
					return err
				})
			})
			if err != nil {
				errs = append(errs, fmt.Errorf("failover %d, of %s: %w", i+1, group, err))
			}
		}
		return errors.Join(errs...)
	}
	return b, nil
}

func (s *stage) pause(ctx context.Context, group string) error {
	return s.call(ctx, client.Repeatable, moveTimeout, func(ctx context.Context, cc grpc.ClientConnInterface) error {
		_, err := pb.NewGroupServiceClient(cc).Pause(ctx, &pb.PauseRequest{Group: group, Reason: "chaos"})
		return err
	})
}

func pauseResume(ctx context.Context, s *stage, d *draw) (broken, error) {
	group := d.group(s)
	b := broken{what: "automatic failover of " + group + " is paused", hold: d.lease}
	b.then = func(ctx context.Context) error { return s.resume(ctx, group) }
	return b, s.pause(ctx, group)
}

// pauseLost takes the primary of a paused group away, with its node half of the
// time. Whoever lets somebody else have it then does what the operator has forbidden.
func pauseLost(ctx context.Context, s *stage, d *draw) (broken, error) {
	group, node := d.group(s), d.IntN(2) == 0
	if err := s.pause(ctx, group); err != nil {
		return broken{}, err
	}
	h := s.primary(ctx, group)
	if h == nil {
		return broken{}, errNobody
	}
	b := broken{what: "automatic failover of " + group + " is paused, and the model servers of its primary " + h.NodeID() + " are killed", hold: d.above(), lost: s.held(ctx, h)}
	if node {
		b.what += ", with their node"
	}
	b.then = func(ctx context.Context) error {
		groups, _, err := s.records(ctx)
		if err != nil {
			return err
		}
		var taken error
		if by := groups[group].GetHolder(); by != "" && by != h.NodeID() {
			taken = fmt.Errorf("%s has taken over %s, whose automatic failover is paused", by, group)
		}
		return errors.Join(taken, s.resume(ctx, group))
	}
	return b, s.kill(node, true, h)
}

func concurrentSwitchovers(ctx context.Context, s *stage, d *draw) (broken, error) {
	group := d.group(s)
	first := d.host(s)
	second := d.other(s, first)
	b := broken{what: fmt.Sprintf("two switchovers of %s at once, to %s and %s", group, first.NodeID(), second.NodeID())}
	b.then = func(ctx context.Context) error {
		var both sync.WaitGroup
		for _, to := range []string{first.NodeID(), second.NodeID()} {
			both.Go(func() {
				if err := s.switchover(ctx, group, to, moveTimeout); err != nil {
					s.say("  switchover to %s: %v", to, err) // one of them may be refused
				}
			})
		}
		both.Wait()
		return nil
	}
	return b, nil
}
