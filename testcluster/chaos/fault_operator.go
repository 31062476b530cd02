// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/hastate/hastate/client"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func operatorFaults() []fault {
	const family = "operator"
	return []fault{
		{kind: "switchover", family: family, weight: 5, must: true, what: "planned switchovers, one after the other", inject: switchovers},
		{kind: "failover-force", family: family, weight: 3, must: true, what: "an operator's failover with force", inject: forcedFailover},
		{kind: "pause-resume", family: family, weight: 1, harmless: true, what: "automatic failover is paused and resumed", inject: pauseResume},
		{kind: "concurrent-switchover", family: family, weight: 2, what: "two operators switch over at once, to different nodes", inject: concurrentSwitchovers},
		{kind: "damaged-backup", family: family, weight: 1, harmless: true, must: true, what: "a backup with flipped bits is restored: it must be refused", inject: damagedBackup},
	}
}

// moveTimeout bounds one switchover or failover.
const moveTimeout = 10 * time.Second

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
			if err := s.switchover(ctx, group, "", moveTimeout); err != nil {
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
			err := s.order(ctx, moveTimeout, func(ctx context.Context, cc grpc.ClientConnInterface) error {
				_, err := pb.NewGroupServiceClient(cc).Failover(ctx, &pb.FailoverRequest{Group: group, Force: true, Reason: "chaos"})
				return err
			})
			if err != nil {
				errs = append(errs, fmt.Errorf("failover %d, of %s: %w", i+1, group, err))
			}
		}
		return errors.Join(errs...)
	}
	return b, nil
}

func pauseResume(ctx context.Context, s *stage, d *draw) (broken, error) {
	group := d.group(s)
	b := broken{what: "automatic failover of " + group + " is paused", hold: d.lease}
	b.then = func(ctx context.Context) error { return s.resume(ctx, group) }
	return b, s.call(ctx, client.Repeatable, moveTimeout, func(ctx context.Context, cc grpc.ClientConnInterface) error {
		_, err := pb.NewGroupServiceClient(cc).Pause(ctx, &pb.PauseRequest{Group: group, Reason: "chaos"})
		return err
	})
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
