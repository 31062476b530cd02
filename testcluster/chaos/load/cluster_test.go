// SPDX-License-Identifier: Apache-2.0

package load

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster"
	"github.com/hastate/hastate/testcluster/chaos/check"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

// TestLoad_RealCluster: a real cluster, in this process, that loses its leader, its
// primary and then all of its nodes is judged correct.
func TestLoad_RealCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("a cluster takes some seconds")
	}
	c := testcluster.New(t, testcluster.Options{})
	c.WaitReady()
	ctx, cancel := context.WithTimeout(t.Context(), 10*testcluster.Patience)
	defer cancel()
	l, err := Start(ctx, Options{Endpoints: c.Endpoints(), Groups: []string{hastate.DefaultGroup}, Dir: t.TempDir(), Seed: 1, NoCallers: true})
	if err != nil {
		t.Fatal(err)
	}
	begun, used := clock.Boot{}.Now(), cpu(t)
	var faults []record.Fault
	for round, kind := range []string{"nothing", "leader", "primary", "all"} {
		progress(ctx, t, l)
		primary, epoch := c.WaitPrimary(0)
		fault := record.Fault{Round: round, Kind: kind, Began: clock.Boot{}.Now(), Epochs: map[string]uint64{hastate.DefaultGroup: epoch}}
		var down []*testcluster.Member
		switch kind {
		case "leader":
			down = append(down, c.WaitLeader())
		case "primary":
			down, fault.Lost = append(down, primary), []string{hastate.DefaultGroup}
		case "all":
			down = c.Running()
		}
		for _, m := range down {
			m.Crash()
		}
		if kind == "primary" {
			c.WaitPrimary(epoch)
		}
		for _, m := range down {
			m.Start()
		}
		c.WaitReady()
		c.WaitPrimary(0)
		fault.Whole = clock.Boot{}.Now()
		faults = append(faults, fault)
		progress(ctx, t, l)
		l.NextChapter()
	}
	if err := l.Stop(ctx); err != nil {
		t.Error(err)
	}
	seconds := clock.Boot{}.Now().Sub(begun).Seconds()
	report(t, l, seconds, cpu(t)-used)
	for _, v := range judge(l) {
		t.Errorf("%+v", v)
	}
	if counts, _ := check.ExactlyOnce(l.Ops(0)); counts.Lost+counts.Duplicated+counts.Unread > 0 || counts.Acknowledged == 0 {
		t.Errorf("%+v", counts)
	}
	var transitions []*pb.Transition
	for _, e := range l.GroupEvents(0) {
		if e.Transition != nil {
			transitions = append(transitions, e.Transition)
		}
	}
	primary, _ := c.WaitPrimary(0)
	transitions = append(transitions, primary.Node().Machine().History(hastate.DefaultGroup, 0)...)
	for _, v := range check.History(transitions, faults, check.HistoryOptions{Events: l.GroupEvents(0)}) {
		t.Errorf("%+v", v)
	}
}

func progress(ctx context.Context, t *testing.T, l *Load) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 3*testcluster.Patience)
	defer cancel()
	if err := l.Progress(ctx, 50); err != nil { // few: the machine may be busy with others
		ops := l.Ops(0)
		for _, op := range ops[max(0, len(ops)-40):] {
			t.Logf("%v %s %s after %v: %s", time.Duration(op.Call), op.Kind, op.Outcome, op.Return.Sub(op.Call), op.Error)
		}
		t.Fatal(err)
	}
}

// report says what the load did; the processor time is that of the nodes too.
func report(t *testing.T, l *Load, seconds float64, used time.Duration) {
	t.Helper()
	outcomes := map[string]int{}
	for _, op := range l.Ops(0) {
		outcomes[op.Outcome]++
	}
	judged := clock.Boot{}.Now()
	r := check.Linearizable(l.Ops(0), patience)
	took := clock.Boot{}.Now().Sub(judged)
	t.Logf("%.1f s, %.0f operations a second, %v of processor time, %v, strange %d, %d session events",
		seconds, float64(len(l.Ops(0)))/seconds, used, outcomes, l.Strange(), len(l.SessionEvents(0)))
	t.Logf("%d keys with %d operations judged in %v, undecided %v", r.Keys, r.Ops, took, r.Undecided)
}

// cpu is the processor time of this process.
func cpu(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
