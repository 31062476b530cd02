// SPDX-License-Identifier: Apache-2.0

//go:build process

package rig

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/hastate/hastate/client"
	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// status asks a node for its state.
func status(t *testing.T, h *Host) (*pb.StatusResponse, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///"+h.GRPC(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return pb.NewClusterServiceClient(conn).Status(ctx, &pb.StatusRequest{})
}

// leader waits until all these hosts name the same leader, one of them.
func leader(t *testing.T, hosts ...*Host) (found *Host) {
	t.Helper()
	wait.Until(t, 60*time.Second, func() error {
		found = nil
		name := ""
		for i, h := range hosts {
			s, err := status(t, h)
			if err != nil {
				return err
			}
			if s.GetLeaderId() == "" || i > 0 && s.GetLeaderId() != name {
				return fmt.Errorf("%s follows %q, another %q", h.NodeID(), s.GetLeaderId(), name)
			}
			if name = s.GetLeaderId(); name == h.NodeID() {
				found = h
			}
		}
		if found == nil {
			return errors.New("the leader is none of these")
		}
		return nil
	})
	return found
}

// TestHanode runs the real program on the hosts.
func TestHanode(t *testing.T) {
	hanode := filepath.Join(t.TempDir(), "hanode")
	if out, err := exec.Command("go", "build", "-tags", "chaos", "-o", hanode, "github.com/hastate/hastate/cmd/hanode").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, root := range []bool{false, true} {
		t.Run(fmt.Sprintf("root=%v", root), func(t *testing.T) {
			if root {
				needRoot(t)
			}
			began := time.Now()
			r, err := Open(t.Context(), Options{Hosts: 3, Dir: t.TempDir(), Hanode: hanode, Root: root})
			if err != nil {
				t.Fatal(err)
			}
			opened := time.Now()
			t.Cleanup(func() {
				began := time.Now()
				if err := r.Close(); err != nil {
					t.Error(err)
				}
				t.Logf("close %v", time.Since(began))
				if t.Failed() {
					for _, h := range r.Hosts() {
						t.Logf("%s: %s", h.NodeID(), h.Node().Tail())
					}
				}
			})
			for _, h := range r.Hosts() {
				if err := h.Start(r.Founding(h)); err != nil {
					t.Fatal(err)
				}
			}
			started := time.Now()
			first := leader(t, r.Hosts()...)
			t.Logf("open %v, start %v, leader after %v", opened.Sub(began), started.Sub(opened), time.Since(started))
			killAndPartition(t, r, first, root)
			if root {
				cutPower(t, r)
				freeze(t, r)
			}
		})
	}
}

// killAndPartition kills the leader, and as root cuts the next one off.
func killAndPartition(t *testing.T, r *Rig, first *Host, root bool) {
	t.Helper()
	if err := first.Kill(); err != nil {
		t.Fatal(err)
	}
	second := leader(t, others(r, first)...)
	began := time.Now()
	if err := first.StartNode(r.Founding(first)); err != nil {
		t.Fatal(err)
	}
	wait.Until(t, 20*time.Second, func() error { _, err := status(t, first); return err })
	t.Logf("started again and answers after %v", time.Since(began))
	leader(t, r.Hosts()...)
	t.Logf("follows after %v", time.Since(began))
	if !root {
		return
	}
	for _, h := range others(r, second) {
		if err := errors.Join(r.Link(second.Index(), h.Index()).Set(Policy{Cut: true}), r.Link(h.Index(), second.Index()).Set(Policy{Cut: true})); err != nil {
			t.Fatal(err)
		}
	}
	leader(t, others(r, second)...)
	if err := r.HealLinks(); err != nil {
		t.Fatal(err)
	}
	leader(t, r.Hosts()...)
}

func cutPower(t *testing.T, r *Rig) {
	t.Helper()
	for range 3 {
		began := time.Now()
		if err := r.PowerCut(r.Hosts()...); err != nil {
			t.Fatal(err)
		}
		cut := time.Now()
		for _, h := range r.Hosts() {
			if err := h.Start(r.Founding(h)); err != nil {
				t.Fatal(err)
			}
		}
		leader(t, r.Hosts()...)
		t.Logf("power cut of all %v, leader after %v", cut.Sub(began), time.Since(cut))
	}
}

// freeze freezes the disk of the leader, which stops being leader, as soon as
// somebody writes.
func freeze(t *testing.T, r *Rig) {
	t.Helper()
	c, err := client.Dial(client.Options{Endpoints: r.Endpoints(), AllowPlaintext: true, AttemptTimeout: 300 * time.Millisecond, Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	write := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := c.Sessions("").Put(ctx, &pb.PutRequest{Session: &pb.Session{Id: "x", Value: []byte("x")}})
		return err
	}
	for range 3 {
		h := leader(t, r.Hosts()...)
		wait.Until(t, 20*time.Second, write)
		if err := h.Freeze(t.Context()); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		wait.Until(t, 20*time.Second, write)
		t.Logf("the leader's disk is frozen: writes again after %v", time.Since(began))
		leader(t, others(r, h)...)
		if err := h.Thaw(t.Context()); err != nil {
			t.Fatal(err)
		}
		leader(t, r.Hosts()...) // too short a time for it to give up
	}
}

func others(r *Rig, but *Host) []*Host {
	var all []*Host
	for _, h := range r.Hosts() {
		if h != but {
			all = append(all, h)
		}
	}
	return all
}
