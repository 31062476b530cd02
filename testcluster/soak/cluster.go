// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/hastate/hastate/client"
	"github.com/hastate/hastate/internal/proc"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const nodes = 3

// cluster is three real nodes on loopback.
type cluster struct {
	o         options
	dir       string
	endpoints []string
	procs     []*proc.Process
	client    *client.Client
}

func startCluster(ctx context.Context, o options, dir string) (*cluster, error) {
	ports, err := proc.Ports(nodes)
	if err != nil {
		return nil, err
	}
	c := &cluster{o: o, dir: dir, procs: make([]*proc.Process, nodes)}
	for _, p := range ports {
		c.endpoints = append(c.endpoints, "127.0.0.1:"+strconv.Itoa(p))
	}
	if c.client, err = client.Dial(client.Options{Endpoints: c.endpoints, AttemptTimeout: 500 * time.Millisecond, Name: "soak"}); err != nil {
		return nil, err
	}
	for i := range nodes {
		if err := c.startNode(i); err != nil {
			return nil, errors.Join(err, c.stop())
		}
	}
	if _, err := c.waitLeader(ctx, -1); err != nil {
		return nil, errors.Join(err, c.stop())
	}
	return c, nil
}

func (c *cluster) startNode(i int) (err error) {
	id := fmt.Sprintf("n%d", i+1)
	c.procs[i], err = proc.Start(proc.Spec{Name: "node " + id, Path: c.o.hanode, Args: []string{
		"run", "--node-id", id, "--data-dir", filepath.Join(c.dir, id), "--listen", c.endpoints[i], "--http-listen", "",
		"--bootstrap-expect", strconv.Itoa(nodes), "--join", strings.Join(c.endpoints, ","), "--profile", c.o.profile,
		"--snapshot-interval", "1s", "--snapshot-threshold", "512", "--snapshot-trailing", "256",
	}})
	return err
}

// status asks one node.
func (c *cluster) status(ctx context.Context, i int, withHash bool) (*pb.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///"+c.endpoints[i], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	return pb.NewClusterServiceClient(conn).Status(ctx, &pb.StatusRequest{WithHash: withHash})
}

// waitLeader waits until the nodes but one agree on a leader other than it, and
// returns its index.
func (c *cluster) waitLeader(ctx context.Context, but int) (int, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		votes := map[string]int{}
		for i := range nodes {
			if i == but {
				continue
			}
			if s, err := c.status(ctx, i, false); err == nil && s.GetLeaderId() != "" {
				votes[s.GetLeaderId()]++
			}
		}
		for id, n := range votes {
			if i := int(id[1] - '1'); n >= 2 && i != but {
				return i, nil
			}
		}
		select {
		case <-ctx.Done():
			return -1, fmt.Errorf("no leader: %w\n%s", ctx.Err(), c.tails())
		case <-tick.C:
		}
	}
}

// round kills one node, or now and then all, and starts it again.
func (c *cluster) round(ctx context.Context, rng *rand.Rand, l *load, r *report) error {
	i, atOnce, all := rng.IntN(nodes), rng.IntN(3) == 0, rng.IntN(8) == 0
	if all {
		r.AllKills++
		return c.killAll(ctx, l)
	}
	if s, err := c.status(ctx, i, false); err == nil && s.GetRaftState() == "Leader" {
		r.LeaderKills++
	}
	return c.killOne(ctx, i, atOnce, l)
}

// killOne kills a node with SIGKILL, waits until the load goes on without it (or
// starts it again at once), and starts it again.
func (c *cluster) killOne(ctx context.Context, i int, atOnce bool, l *load) error {
	if err := c.procs[i].Kill(); err != nil {
		return err
	}
	if !atOnce {
		if err := l.progress(ctx, 20); err != nil {
			return fmt.Errorf("no progress without n%d: %w\n%s", i+1, err, c.tails())
		}
	}
	if err := c.startNode(i); err != nil {
		return err
	}
	if err := c.waitCaughtUp(ctx, i); err != nil {
		return err
	}
	return l.progress(ctx, 20)
}

// killAll kills all nodes with SIGKILL and starts them again.
func (c *cluster) killAll(ctx context.Context, l *load) error {
	for _, p := range c.procs {
		if err := p.Signal(syscall.SIGKILL); err != nil {
			return err
		}
	}
	for i, p := range c.procs {
		<-p.Exited()
		if err := c.startNode(i); err != nil {
			return err
		}
	}
	for i := range c.procs {
		if err := c.waitCaughtUp(ctx, i); err != nil {
			return err
		}
	}
	if err := l.progress(ctx, 20); err != nil {
		return fmt.Errorf("no progress after all were killed: %w\n%s", err, c.tails())
	}
	return nil
}

// waitCaughtUp waits until a node follows again: the next kill must not take the
// majority away for ever.
func (c *cluster) waitCaughtUp(ctx context.Context, i int) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := c.status(ctx, i, false)
		if err == nil && s.GetLeaderId() != "" && s.GetAppliedIndex() > 0 && s.GetAppliedIndex()+64 >= s.GetCommitIndex() {
			return nil
		}
		if !c.procs[i].Running() {
			return fmt.Errorf("n%d ended by itself with exit code %d\n%s", i+1, c.procs[i].ExitCode(), c.procs[i].Tail())
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("n%d does not catch up: %w\n%s", i+1, ctx.Err(), c.tails())
		case <-tick.C:
		}
	}
}

// hashesEqual compares the digests of the three states at one applied index.
func (c *cluster) hashesEqual(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		hashes, indexes := map[string]bool{}, map[uint64]bool{}
		for i := range nodes {
			s, err := c.status(ctx, i, true)
			if err != nil {
				break
			}
			hashes[s.GetStateHash()], indexes[s.GetHashIndex()] = true, true
			if i == nodes-1 && len(indexes) == 1 {
				return len(hashes) == 1 && !hashes[""], nil
			}
		}
		select {
		case <-ctx.Done():
			return false, fmt.Errorf("the nodes do not come to rest: %w\n%s", ctx.Err(), c.tails())
		case <-tick.C:
		}
	}
}

func (c *cluster) tails() string {
	var b strings.Builder
	for _, p := range c.procs {
		if p != nil {
			fmt.Fprintf(&b, "--- %s ---\n%s\n", p.Spec.Name, p.Tail())
		}
	}
	return b.String()
}

func (c *cluster) stop() error {
	errs := []error{c.client.Close()}
	for _, p := range c.procs {
		if p != nil {
			errs = append(errs, p.Kill())
		}
	}
	return errors.Join(errs...)
}
