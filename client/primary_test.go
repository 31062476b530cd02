// SPDX-License-Identifier: Apache-2.0

package client_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const (
	vacant  = pb.GroupPhase_GROUP_PHASE_VACANT
	granted = pb.GroupPhase_GROUP_PHASE_GRANTED
	serving = pb.GroupPhase_GROUP_PHASE_SERVING
)

func TestDial(t *testing.T) {
	for _, tc := range []struct {
		name string
		opts client.Options
		want error
	}{
		{"NoEndpoints", client.Options{}, hastate.ErrInvalid},
		{"NoPort", client.Options{Endpoints: []string{"localhost"}}, hastate.ErrInvalid},
		{"Plaintext", client.Options{Endpoints: []string{"192.0.2.1:7001"}}, hastate.ErrInvalid},
		{"PlaintextAllowed", client.Options{Endpoints: []string{"192.0.2.1:7001"}, AllowPlaintext: true}, nil},
		{"Loopback", client.Options{Endpoints: []string{"127.0.0.1:1", "[::1]:1", "localhost:1"}}, nil},
		{"Negative", client.Options{Endpoints: []string{"127.0.0.1:1"}, AttemptTimeout: -1}, hastate.ErrInvalid},
		{"LongName", client.Options{Endpoints: []string{"127.0.0.1:1"}, Name: string(make([]byte, 300))}, hastate.ErrLimit},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := client.Dial(tc.opts)
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			if c != nil {
				if err := errors.Join(c.Close(), c.Close()); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestClient_Primary(t *testing.T) {
	cluster := newFakeCluster("c1")
	n := startNode(t, "n1", cluster)
	c := dial(t, client.Options{}, n)

	if _, err := c.Primary(t.Context(), "g"); !errors.Is(err, client.ErrNoPrimary) {
		t.Errorf("vacant: got %v", err)
	}
	if _, err := c.Primary(t.Context(), "other"); !errors.Is(err, hastate.ErrNotFound) {
		t.Errorf("unknown group: got %v", err)
	}
	cluster.setPrimary("n1", "10.0.0.1:8000", 5, granted)
	if _, err := c.Primary(t.Context(), "g"); !errors.Is(err, client.ErrNoPrimary) {
		t.Errorf("being promoted: got %v", err)
	}
	cluster.setPrimary("n1", "10.0.0.1:8000", 5, serving)
	before := n.called("GetPrimary")
	for range 10 {
		p, err := c.Primary(t.Context(), "g")
		if err != nil || p.Address != "10.0.0.1:8000" || p.Epoch != 5 {
			t.Fatalf("got %+v, %v", p, err)
		}
	}
	if asked := n.called("GetPrimary") - before; asked != 1 {
		t.Errorf("asked %d times for a valid answer, want 1", asked)
	}
}

func TestClient_Primary_AsksAgainWhenNoLongerValid(t *testing.T) {
	cluster := newFakeCluster("c1")
	n := startNode(t, "n1", cluster)
	n.set(bend{getPrimary: func() (*pb.GetPrimaryResponse, error) {
		return &pb.GetPrimaryResponse{Primary: &pb.Primary{Group: "g", NodeId: "n1", Epoch: 1, Phase: serving, ValidForMs: 0}}, nil
	}})
	c := dial(t, client.Options{}, n)
	for range 3 {
		if _, err := c.Primary(t.Context(), "g"); err != nil {
			t.Fatal(err)
		}
	}
	if asked := n.called("GetPrimary"); asked != 3 {
		t.Errorf("asked %d times, want 3", asked)
	}
}

func TestClient_Primary_DropsStaleEpochs(t *testing.T) {
	cluster := newFakeCluster("c1")
	fresh, behind := startNode(t, "n1", cluster), startNode(t, "n2", cluster)
	answer := func(epoch uint64) func() (*pb.GetPrimaryResponse, error) {
		return func() (*pb.GetPrimaryResponse, error) {
			return &pb.GetPrimaryResponse{Primary: &pb.Primary{Group: "g", NodeId: fmt.Sprint("holder", epoch), Epoch: epoch, Phase: serving}}, nil
		}
	}
	fresh.set(bend{getPrimary: answer(9)})
	behind.set(bend{getPrimary: answer(4)})
	c := dial(t, client.Options{}, fresh, behind)
	if p, err := c.Primary(t.Context(), "g"); err != nil || p.Epoch != 9 {
		t.Fatalf("got %+v, %v", p, err)
	}
	// Now the fresh node cannot answer; the other one still believes in epoch 4.
	fresh.set(bend{getPrimary: func() (*pb.GetPrimaryResponse, error) {
		return nil, hastate.ToStatus(hastate.ErrNoLeader)
	}})
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if p, err := c.Primary(ctx, "g"); err == nil {
		t.Fatalf("got the stale %+v", p)
	}
	behind.set(bend{getPrimary: answer(10)})
	if p, err := c.Primary(t.Context(), "g"); err != nil || p.Epoch != 10 {
		t.Fatalf("got %+v, %v", p, err)
	}
}

func TestClient_Primary_GivesUpHungNode(t *testing.T) {
	cluster := newFakeCluster("c1")
	cluster.setPrimary("n1", "10.0.0.1:8000", 5, serving)
	hung, healthy := startNode(t, "n1", cluster), startNode(t, "n2", cluster)
	hung.hang(true)
	c := dial(t, client.Options{AttemptTimeout: 50 * time.Millisecond}, hung, healthy)
	if p, err := c.Primary(t.Context(), "g"); err != nil || p.Epoch != 5 {
		t.Fatalf("got %+v, %v", p, err)
	}
	if healthy.called("GetPrimary") == 0 {
		t.Error("the healthy node was not asked")
	}
}

func TestClient_Primary_FollowsRedirect(t *testing.T) {
	cluster := newFakeCluster("c1")
	cluster.setPrimary("n1", "10.0.0.1:8000", 5, serving)
	leader, follower := startNode(t, "n1", cluster), startNode(t, "n2", cluster)
	follower.set(bend{getPrimary: func() (*pb.GetPrimaryResponse, error) {
		return nil, hastate.ToStatus(&hastate.NotLeaderError{LeaderID: "n1", LeaderAddress: leader.addr})
	}})
	// Only the follower is configured.
	c := dial(t, client.Options{}, follower)
	if p, err := c.Primary(t.Context(), "g"); err != nil || p.Epoch != 5 {
		t.Fatalf("got %+v, %v", p, err)
	}
}

func TestClient_Primary_NoLeader(t *testing.T) {
	n := startNode(t, "n1", newFakeCluster("c1"))
	n.set(bend{getPrimary: func() (*pb.GetPrimaryResponse, error) {
		return nil, hastate.ToStatus(hastate.ErrNoLeader)
	}})
	c := dial(t, client.Options{}, n)
	var err error
	callErr := c.Call(t.Context(), client.Repeatable, func(ctx context.Context, cc grpc.ClientConnInterface) error {
		if n.called("GetPrimary") >= 3 {
			return hastate.ErrNotFound // the third attempt was made: enough
		}
		_, err = pb.NewGroupServiceClient(cc).GetPrimary(ctx, &pb.GetPrimaryRequest{Group: "g"})
		return err
	})
	if !errors.Is(callErr, hastate.ErrNotFound) || !errors.Is(hastate.FromStatus(err), hastate.ErrNoLeader) {
		t.Errorf("got %v after %v", callErr, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	attempts := 0
	callErr = c.Call(ctx, client.Repeatable, func(context.Context, grpc.ClientConnInterface) error {
		if attempts++; attempts == 3 {
			cancel()
		}
		return hastate.ToStatus(hastate.ErrNoLeader)
	})
	if !errors.Is(callErr, hastate.ErrNoLeader) || !errors.Is(callErr, context.Canceled) {
		t.Errorf("got %v, want no leader and the end of the context", callErr)
	}
}

func TestClient_Call_Once(t *testing.T) {
	cluster := newFakeCluster("c1")
	hung, healthy := startNode(t, "n1", cluster), startNode(t, "n2", cluster)
	hung.hang(true)
	healthy.set(bend{getPrimary: func() (*pb.GetPrimaryResponse, error) {
		return nil, hastate.ToStatus(hastate.ErrClosed)
	}})
	c := dial(t, client.Options{AttemptTimeout: 50 * time.Millisecond}, hung, healthy)
	calls := 0
	err := c.Call(t.Context(), client.Once, func(ctx context.Context, cc grpc.ClientConnInterface) error {
		calls++
		_, err := pb.NewGroupServiceClient(cc).GetPrimary(ctx, &pb.GetPrimaryRequest{Group: "g"})
		return err
	})
	// A node that breaks off may have done it: it is not asked of another one.
	if !errors.Is(err, hastate.ErrOutcomeUnknown) || calls != 1 {
		t.Errorf("got %v after %d calls", err, calls)
	}
}

func TestClient_RefusesOtherCluster(t *testing.T) {
	ours, other := newFakeCluster("c1"), newFakeCluster("c2")
	other.setPrimary("x", "10.9.9.9:8000", 99, serving)
	n1, n2 := startNode(t, "n1", ours), startNode(t, "x", other)
	c := dial(t, client.Options{AttemptTimeout: 50 * time.Millisecond}, n1, n2)
	if _, err := c.Primary(t.Context(), "g"); !errors.Is(err, client.ErrNoPrimary) {
		t.Fatal(err)
	}
	n1.hang(true)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if p, err := c.Primary(ctx, "g"); err == nil || errors.Is(err, client.ErrNoPrimary) {
		t.Errorf("got %+v, %v from another cluster", p, err)
	}
}

// next reads from a watch until want accepts.
func next(t *testing.T, ch <-chan client.Primary, want func(client.Primary) bool) client.Primary {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		select {
		case p, ok := <-ch:
			if !ok {
				t.Fatal("the watch has ended")
			}
			if want(p) {
				return p
			}
		case <-timeout:
			t.Fatal("nothing came")
		}
	}
}

func TestClient_WatchPrimary(t *testing.T) {
	cluster := newFakeCluster("c1")
	n1, n2 := startNode(t, "n1", cluster), startNode(t, "n2", cluster)
	c := dial(t, client.Options{AttemptTimeout: 60 * time.Millisecond}, n1, n2)
	ctx, cancel := context.WithCancel(t.Context())
	ch, err := c.WatchPrimary(ctx, "g")
	if err != nil {
		t.Fatal(err)
	}
	next(t, ch, func(p client.Primary) bool { return p.NodeID == "" })
	cluster.setPrimary("n1", "a:1", 5, serving)
	next(t, ch, func(p client.Primary) bool { return p.Serving() && p.Epoch == 5 })

	// The node of the watch stops; the other one goes on.
	n1.server.Stop()
	cluster.setPrimary("n2", "b:1", 8, serving)
	next(t, ch, func(p client.Primary) bool { return p.Serving() && p.Epoch == 8 })

	cancel()
	for range ch {
	}
}

func TestClient_WatchPrimary_GivesUpSilentNode(t *testing.T) {
	cluster := newFakeCluster("c1")
	cluster.setPrimary("n1", "a:1", 5, serving)
	silent, healthy := startNode(t, "n1", cluster), startNode(t, "n2", cluster)
	// It sends one message and then nothing, though the stream stays open.
	silent.set(bend{watch: func(_ *pb.WatchRequest, s grpc.ServerStreamingServer[pb.WatchResponse]) error {
		p, revision, _ := cluster.snapshot()
		if err := s.Send(&pb.WatchResponse{Revision: revision, Primary: p}); err != nil {
			return err
		}
		<-s.Context().Done()
		return nil
	}})
	c := dial(t, client.Options{AttemptTimeout: 50 * time.Millisecond}, silent, healthy)
	ch, err := c.WatchPrimary(t.Context(), "g")
	if err != nil {
		t.Fatal(err)
	}
	next(t, ch, func(p client.Primary) bool { return p.Epoch == 5 })
	cluster.setPrimary("n2", "b:1", 8, serving)
	next(t, ch, func(p client.Primary) bool { return p.Epoch == 8 })
	if healthy.called("Watch") == 0 {
		t.Error("the healthy node was not asked")
	}
}

func TestClient_WatchPrimary_NeverGoesBack(t *testing.T) {
	cluster := newFakeCluster("c1")
	n := startNode(t, "n1", cluster)
	n.set(bend{watch: func(_ *pb.WatchRequest, s grpc.ServerStreamingServer[pb.WatchResponse]) error {
		for i, p := range []*pb.Primary{
			{Group: "g", NodeId: "n1", Epoch: 5, Phase: serving},
			{Group: "g", Epoch: 5, Phase: vacant},
			{Group: "g", NodeId: "n1", Epoch: 5, Phase: serving}, // stale
			{Group: "g", NodeId: "n0", Epoch: 3, Phase: serving}, // stale
			{Group: "g", NodeId: "n2", Epoch: 7, Phase: granted},
			{Group: "g", NodeId: "n2", Epoch: 7, Phase: serving},
		} {
			if err := s.Send(&pb.WatchResponse{Revision: uint64(i + 1), Primary: p}); err != nil {
				return err
			}
		}
		<-s.Context().Done()
		return nil
	}})
	c := dial(t, client.Options{}, n)
	ch, err := c.WatchPrimary(t.Context(), "g")
	if err != nil {
		t.Fatal(err)
	}
	var last client.Primary
	next(t, ch, func(p client.Primary) bool {
		if p.Epoch < last.Epoch || p.Epoch == 3 || (last.Phase == vacant && p.Epoch == 5) {
			t.Errorf("%+v came after %+v", p, last)
		}
		last = p
		return p.Epoch == 7 && p.Serving()
	})
}

func TestClient_WatchGroups_ResumesAndStartsAnewWhenCompacted(t *testing.T) {
	cluster := newFakeCluster("c1")
	n := startNode(t, "n1", cluster)
	var asked []uint64 // by one stream at a time
	compacted := false
	n.set(bend{watch: func(req *pb.WatchRequest, s grpc.ServerStreamingServer[pb.WatchResponse]) error {
		asked = append(asked, req.GetAfterRevision())
		switch len(asked) {
		case 1:
			return s.Send(&pb.WatchResponse{Revision: 40})
		case 2:
			compacted = true
			return hastate.ToStatus(&hastate.CompactedError{Oldest: 50, Newest: 60})
		}
		return s.Send(&pb.WatchResponse{Revision: 60})
	}})
	c := dial(t, client.Options{}, n)
	enough := errors.New("enough")
	err := c.WatchGroups(t.Context(), nil, 30, func(r *pb.WatchResponse) error {
		if r.GetRevision() == 60 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || !compacted {
		t.Fatalf("got %v", err)
	}
	if fmt.Sprint(asked) != "[30 40 0]" {
		t.Errorf("asked for changes after %v, want [30 40 0]", asked)
	}
}

func TestClient_Close_EndsWatches(t *testing.T) {
	n := startNode(t, "n1", newFakeCluster("c1"))
	c, err := client.Dial(client.Options{Endpoints: []string{n.addr}})
	if err != nil {
		t.Fatal(err)
	}
	ch, err := c.WatchPrimary(t.Context(), "g")
	if err != nil {
		t.Fatal(err)
	}
	wait.Until(t, 10*time.Second, func() error {
		if n.called("Watch") == 0 {
			return errors.New("no watch yet")
		}
		return nil
	})
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for range ch {
	}
	if _, err := c.Primary(t.Context(), "g"); !errors.Is(err, hastate.ErrClosed) {
		t.Errorf("got %v", err)
	}
	if _, err := c.WatchPrimary(t.Context(), "g"); !errors.Is(err, hastate.ErrClosed) {
		t.Errorf("got %v", err)
	}
}
