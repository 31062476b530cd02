// SPDX-License-Identifier: Apache-2.0

package model

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/control"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

// rig is a running server on a clock that is moved by hand.
type rig struct {
	t     *testing.T
	clock *clock.Fake
	cfg   config
	// address is that of HTTP, rpc that of gRPC.
	address, rpc string
	pb.InstanceServiceClient
	web  *http.Client
	done chan error
	stop context.CancelFunc
}

func start(t *testing.T, rate float64) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{t: t, clock: &clock.Fake{}, done: make(chan error, 1), cfg: config{
		node: "n1", group: "g", grpc: "127.0.0.1:0", http: "127.0.0.1:0", control: filepath.Join(dir, "c"), served: filepath.Join(dir, "served"),
		promotions: filepath.Join(dir, "promotions"), rate: rate,
	}}
	r.clock.Advance(time.Hour)
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	up := make(chan [2]string, 1)
	go func() { r.done <- run(ctx, r.cfg, r.clock, func(g, h string) { up <- [2]string{g, h} }) }()
	select {
	case a := <-up:
		r.rpc, r.address = a[0], a[1]
		conn, err := grpc.NewClient("passthrough:///"+a[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		r.InstanceServiceClient = pb.NewInstanceServiceClient(conn)
	case err := <-r.done:
		t.Fatal(err)
	}
	r.web = &http.Client{Transport: &http.Transport{}}
	t.Cleanup(func() {
		r.web.CloseIdleConnections()
		cancel()
		if err := r.wait(); err != nil && !errors.Is(err, ErrCrashed) && !errors.Is(err, ErrStopped) {
			t.Errorf("Run: %v", err)
		}
	})
	return r
}

func (r *rig) wait() error {
	err := <-r.done
	r.done <- err
	return err
}

func (r *rig) within() context.Context {
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	r.t.Cleanup(cancel)
	return ctx
}

// set replaces the faults.
func (r *rig) set(f Faults) {
	r.t.Helper()
	if err := control.Send(r.within(), r.cfg.control, f); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) promote(epoch uint64, lease time.Duration) error {
	_, err := r.Promote(r.within(), &pb.PromoteRequest{Group: "g", Epoch: epoch, LeaseMs: uint32(lease.Milliseconds())})
	return hastate.FromStatus(err)
}

func (r *rig) demote(epoch uint64) error {
	_, err := r.Demote(r.within(), &pb.DemoteRequest{Group: "g", Epoch: epoch, Mode: pb.DemoteMode_DEMOTE_MODE_ABORT})
	return hastate.FromStatus(err)
}

// generate makes one request; a 503 is an error.
func (r *rig) generate(ctx context.Context) (Answer, error) {
	var a Answer
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+r.address+"/generate", http.NoBody)
	if err != nil {
		return a, err
	}
	resp, err := r.web.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(resp.Body)
		return a, fmt.Errorf("%d %s", resp.StatusCode, text)
	}
	return a, json.NewDecoder(resp.Body).Decode(&a)
}

// serves checks whether a request is served, and under which epoch; 0: it is not.
func (r *rig) serves(epoch uint64) {
	r.t.Helper()
	a, err := r.generate(r.within())
	if epoch == 0 && err == nil || epoch != 0 && (err != nil || a.Epoch != epoch || a.Node != "n1" || a.Group != "g" || a.At != r.clock.Now()) {
		r.t.Fatalf("served %+v, %v; want epoch %d", a, err, epoch)
	}
}

// look takes one status.
func (r *rig) look() *pb.WatchStatusResponse {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	stream, err := r.WatchStatus(ctx, &pb.WatchStatusRequest{IntervalMs: 10})
	if err != nil {
		r.t.Fatal(err)
	}
	st, err := stream.Recv()
	if err != nil {
		r.t.Fatal(err)
	}
	return st
}

// stands waits for a role and an epoch.
func (r *rig) stands(role pb.Role, epoch uint64) {
	r.t.Helper()
	wait.Until(r.t, patience, func() error {
		if st := r.look(); st.GetRole() != role || st.GetEpoch() != epoch {
			return fmt.Errorf("it is %v under epoch %d, want %v under %d", st.GetRole(), st.GetEpoch(), role, epoch)
		}
		return nil
	})
}

func (r *rig) records() []record.Served {
	r.t.Helper()
	all, err := record.Read[record.Served](r.cfg.served)
	if err != nil {
		r.t.Fatal(err)
	}
	return all
}

// promoted checks which epochs were written down as begun.
func (r *rig) promoted(epochs ...uint64) []record.Promotion {
	r.t.Helper()
	all, err := record.Read[record.Promotion](r.cfg.promotions)
	if err != nil {
		r.t.Fatal(err)
	}
	var got []uint64
	for _, p := range all {
		got = append(got, p.Epoch)
	}
	if !slices.Equal(got, epochs) {
		r.t.Fatalf("promoted under %v, want %v", got, epochs)
	}
	return all
}
