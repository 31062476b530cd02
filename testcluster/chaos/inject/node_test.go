// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/hastate/hastate/election"
	"github.com/hastate/hastate/instance"
	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/internal/proc"
	"github.com/hastate/hastate/internal/wait"
	"github.com/hastate/hastate/node"
	"github.com/hastate/hastate/testcluster/chaos/control"
	"github.com/hastate/hastate/testcluster/chaos/model"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

const patience = 60 * time.Second

// single is a cluster of one real node with the fake model server beside it, both
// with clocks that run fast.
type single struct {
	t                   *testing.T
	dir, leases, socket string
	model, listen       string
}

func newSingle(t *testing.T) *single {
	t.Helper()
	ports, err := proc.Ports(3)
	if err != nil {
		t.Fatal(err)
	}
	at := func(i int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[i])) }
	dir := t.TempDir()
	s := &single{t: t, dir: dir, leases: filepath.Join(dir, "leases"), socket: filepath.Join(dir, "s"), model: at(0), listen: at(2)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- model.Run(ctx, []string{
			"--node", "n1", "--grpc", at(0), "--http", at(1), "--control", filepath.Join(dir, "m"), "--served", filepath.Join(dir, "served"),
			"--promotions", filepath.Join(dir, "promotions"), "--clock-rate", "1.2",
		}, io.Discard)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// start runs a node; end stops it, in an orderly way if cause is nil.
func (s *single) start() (end func(cause error)) {
	s.t.Helper()
	cfg := node.Config{
		NodeID: "n1", DataDir: filepath.Join(s.dir, "n1"), Listen: s.listen, BootstrapExpect: 1, Join: []string{s.listen},
		Profile: election.Wan, Version: "test",
		Instances: []node.InstanceConfig{{Address: s.model, Attach: instance.Config{Kind: "grpc", Target: s.model, Interval: 100 * time.Millisecond}}},
	}
	in, err := Install(&cfg, env{EnvRate: "1.2", EnvSocket: s.socket, EnvLeases: s.leases}.lookup)
	if err != nil {
		s.t.Fatal(err)
	}
	n, err := node.Open(cfg)
	if err != nil {
		s.t.Fatal(errors.Join(err, in.Close()))
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	ended := false
	end = func(cause error) {
		if ended {
			return
		}
		ended = true
		if cause != nil {
			n.Abort(cause)
		}
		cancel()
		err := <-done
		if cause == nil && err != nil {
			s.t.Errorf("Run: %v", err)
		}
		if err := errors.Join(n.Close(), in.Close()); err != nil {
			s.t.Error(err)
		}
	}
	s.t.Cleanup(func() { end(nil) })
	return end
}

// await waits for a line and returns all up to it.
func (s *single) await(what string, fits func(record.Lease) bool) []record.Lease {
	s.t.Helper()
	var all []record.Lease
	wait.Until(s.t, patience, func() error {
		var err error
		if all, err = record.Read[record.Lease](s.leases); err != nil {
			return err
		}
		i := slices.IndexFunc(all, fits)
		if i < 0 {
			return fmt.Errorf("%s is not in the file: %+v", what, all)
		}
		all = all[:i+1]
		return nil
	})
	return all
}

// A real node writes down how its lease begins, is renewed, and ends, in instants
// of the machine although its own clock runs fast.
func TestNode_WritesDownItsLease(t *testing.T) {
	s := newSingle(t)
	before := clock.Boot{}.Now()
	end := s.start()
	ttl := election.HolderTTL(election.Wan.Lease)
	first := s.await("a lease", func(record.Lease) bool { return true })[0]
	// It has been counted since the nomination, which was before.
	if first.Node != "n1" || first.Group != "default" || first.Epoch == 0 || first.From <= before || first.Ended ||
		first.Until <= first.From || first.Until.Sub(first.From) > time.Duration(float64(ttl)/1.2)+time.Millisecond {
		t.Fatalf("the first line is %+v", first)
	}
	all := s.await("a renewal", func(l record.Lease) bool { return l.Until > first.Until+clock.Instant(2*time.Second) })
	for i, l := range all {
		if l.From != first.From || l.Epoch != first.Epoch || i > 0 && l.Until <= all[i-1].Until {
			t.Errorf("line %d is %+v, the first was %+v", i, l, first)
		}
	}
	if err := control.Send(t.Context(), s.socket, State{StallLog: true}); err != nil {
		t.Fatal(err)
	}
	if err := control.Send(t.Context(), s.socket, State{}); err != nil {
		t.Fatal(err)
	}
	end(nil)
	all = s.await("the end", func(l record.Lease) bool { return l.Ended })
	last, renewed := all[len(all)-1], all[len(all)-2]
	if last.From != renewed.From || last.Epoch != renewed.Epoch || last.Until >= renewed.Until || last.Until > (clock.Boot{}).Now() {
		t.Errorf("ended with %+v after %+v", last, renewed)
	}
}
