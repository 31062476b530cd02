// SPDX-License-Identifier: Apache-2.0

package client_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func put(id string) *pb.PutRequest {
	return &pb.PutRequest{Session: &pb.Session{Id: id, Value: []byte("v")}}
}

func putOp(id string) *pb.SessionOp { return &pb.SessionOp{Op: &pb.SessionOp_Put{Put: put(id)}} }

// checkOnce checks that exactly these ids were applied, each once.
func checkOnce(t *testing.T, cluster *fakeCluster, want []string) {
	t.Helper()
	got := cluster.appliedOps()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("applied %d operations, want %d: %v", len(got), len(want), got)
	}
}

func names(n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("s%04d", i)
	}
	return ids
}

// putAll puts all ids with many under way at once.
func putAll(ctx context.Context, s *client.Sessions, ids []string) error {
	var errs []error
	var pending []*client.Pending
	for _, id := range ids {
		p, err := s.Go(ctx, putOp(id))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		pending = append(pending, p)
	}
	for _, p := range pending {
		results, err := p.Wait()
		if err == nil && len(results) != 1 {
			err = fmt.Errorf("%d results", len(results))
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func TestSessions_ReadAndWrite(t *testing.T) {
	cluster := newFakeCluster("c1")
	n := startNode(t, "n1", cluster)
	s := dial(t, client.Options{Name: "test"}, n).Sessions("g")
	ids := names(300) // more than the window of 64
	if err := putAll(t.Context(), s, ids); err != nil {
		t.Fatal(err)
	}
	checkOnce(t, cluster, slices.Clone(ids))
	if opened := n.called("OpenClient"); opened != 1 {
		t.Errorf("opened %d writers", opened)
	}
	cluster.mu.Lock()
	if cluster.maxSpan > uint64(cluster.window) {
		t.Errorf("a window of %d was used with %d requests", cluster.window, cluster.maxSpan)
	}
	cluster.mu.Unlock()
	got, err := s.Get(t.Context(), "s0007", 0)
	if err != nil || string(got.GetValue()) != "v" {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := s.Get(t.Context(), "nothing", 0); !errors.Is(err, hastate.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	var listed []string
	for session, err := range s.List(t.Context(), client.ListOptions{PageSize: 70, Prefix: "s"}) {
		if err != nil {
			t.Fatal(err)
		}
		listed = append(listed, session.GetId())
	}
	if !slices.Equal(listed, ids) || n.called("List") != 5 {
		t.Errorf("listed %d in %d pages", len(listed), n.called("List"))
	}
}

func TestSessions_Invalid(t *testing.T) {
	n := startNode(t, "n1", newFakeCluster("c1"))
	c := dial(t, client.Options{}, n)
	s := c.Sessions("g")
	many := make([]*pb.SessionOp, hastate.MaxBatchOps+1)
	for i := range many {
		many[i] = putOp("x")
	}
	big := putOp("x")
	big.GetPut().Session.Value = make([]byte, hastate.MaxEntryBytes)
	other := putOp("x")
	other.GetPut().Session.Group = "other"
	numbered := putOp("x")
	numbered.GetPut().Request = &pb.RequestId{Client: 1}
	for name, tc := range map[string]struct {
		ops  []*pb.SessionOp
		want error
	}{
		"None":     {nil, hastate.ErrInvalid},
		"Empty":    {[]*pb.SessionOp{{}}, hastate.ErrInvalid},
		"NoID":     {[]*pb.SessionOp{putOp("")}, hastate.ErrInvalid},
		"Many":     {many, hastate.ErrLimit},
		"Big":      {[]*pb.SessionOp{big}, hastate.ErrLimit},
		"Other":    {[]*pb.SessionOp{other}, hastate.ErrInvalid},
		"Numbered": {[]*pb.SessionOp{numbered}, hastate.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := s.Batch(t.Context(), tc.ops...); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
	if _, err := c.Sessions(string(make([]byte, 200))).Put(t.Context(), put("x")); !errors.Is(err, hastate.ErrLimit) {
		t.Errorf("got %v", err)
	}
	if n.called("Pipeline") != 0 {
		t.Error("something was sent")
	}
}

// The node applies and then breaks off without answering: the client sends again
// at the other node, and everything is applied once.
func TestSessions_LostReplies(t *testing.T) {
	cluster := newFakeCluster("c1")
	n1, n2 := startNode(t, "n1", cluster), startNode(t, "n2", cluster)
	var cuts atomic.Int32
	cut := func(_ *pb.PipelineItem, apply func() *pb.PipelineResult) (*pb.PipelineResult, bool) {
		r := apply()
		n := cuts.Add(1)
		return r, n%40 == 0 && n <= 200
	}
	n1.set(bend{answer: cut})
	n2.set(bend{answer: cut})
	s := dial(t, client.Options{}, n1, n2).Sessions("g")
	ids := names(200)
	if err := putAll(t.Context(), s, ids); err != nil {
		t.Fatal(err)
	}
	checkOnce(t, cluster, ids)
	if n1.called("Pipeline")+n2.called("Pipeline") < 3 {
		t.Error("no stream was cut")
	}
}

// A node applies and never answers, without closing the stream.
func TestSessions_HungNode(t *testing.T) {
	cluster := newFakeCluster("c1")
	n1, n2 := startNode(t, "n1", cluster), startNode(t, "n2", cluster)
	n1.set(bend{answer: func(_ *pb.PipelineItem, apply func() *pb.PipelineResult) (*pb.PipelineResult, bool) {
		apply()
		return nil, false
	}})
	s := dial(t, client.Options{AttemptTimeout: 100 * time.Millisecond}, n1, n2).Sessions("g")
	ids := names(100)
	if err := putAll(t.Context(), s, ids); err != nil {
		t.Fatal(err)
	}
	checkOnce(t, cluster, ids)
	if n2.called("PipelineMessage") == 0 {
		t.Error("the other node was not used")
	}
}

func TestSessions_NotLeaderRedirect(t *testing.T) {
	cluster := newFakeCluster("c1")
	leader, follower := startNode(t, "n1", cluster), startNode(t, "n2", cluster)
	follower.set(bend{answer: func(item *pb.PipelineItem, _ func() *pb.PipelineResult) (*pb.PipelineResult, bool) {
		return failure(item.GetId(), &hastate.NotLeaderError{LeaderID: "n1", LeaderAddress: leader.addr}), false
	}})
	s := dial(t, client.Options{}, follower).Sessions("g")
	ids := names(20)
	if err := putAll(t.Context(), s, ids); err != nil {
		t.Fatal(err)
	}
	checkOnce(t, cluster, ids)
}

// Without a leader nothing is applied; with one again, writes go on.
func TestSessions_NoLeaderUntilDeadline(t *testing.T) {
	cluster := newFakeCluster("c1")
	n := startNode(t, "n1", cluster)
	n.set(bend{answer: func(item *pb.PipelineItem, _ func() *pb.PipelineResult) (*pb.PipelineResult, bool) {
		return failure(item.GetId(), hastate.ErrNoLeader), false
	}})
	s := dial(t, client.Options{}, n).Sessions("g")
	ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	if _, err := s.Put(ctx, put("x")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	n.set(bend{})
	if _, err := s.Put(t.Context(), put("y")); err != nil {
		t.Error(err)
	}
	checkOnce(t, cluster, []string{"y"})
}

func TestSessions_DeadlineWhileUnanswered(t *testing.T) {
	cluster := newFakeCluster("c1")
	n := startNode(t, "n1", cluster)
	applied := make(chan struct{}, 100)
	n.set(bend{answer: func(_ *pb.PipelineItem, apply func() *pb.PipelineResult) (*pb.PipelineResult, bool) {
		apply()
		applied <- struct{}{}
		return nil, false
	}})
	s := dial(t, client.Options{AttemptTimeout: 5 * time.Second}, n).Sessions("g")
	ctx, cancel := context.WithCancel(t.Context())
	p, err := s.Go(ctx, putOp("x"))
	if err != nil {
		t.Fatal(err)
	}
	<-applied
	cancel()
	_, err = p.Wait()
	var unknown *hastate.OutcomeUnknownError
	if !errors.As(err, &unknown) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	// Giving one up frees its place.
	n.set(bend{})
	if err := putAll(t.Context(), s, names(100)); err != nil {
		t.Error(err)
	}
}

func TestSessions_ClientExpired(t *testing.T) {
	cluster := newFakeCluster("c1")
	n := startNode(t, "n1", cluster)
	s := dial(t, client.Options{}, n).Sessions("g")
	if _, err := s.Put(t.Context(), put("a")); err != nil {
		t.Fatal(err)
	}
	// Forgotten between two writes: the first attempt was not applied, and is made
	// again under a new number.
	cluster.forgetClients()
	if err := putAll(t.Context(), s, names(50)); err != nil {
		t.Fatal(err)
	}
	checkOnce(t, cluster, append(names(50), "a"))

	// Forgotten between an attempt whose answer was lost and its retry: nobody
	// knows.
	lost := false
	n.set(bend{answer: func(_ *pb.PipelineItem, apply func() *pb.PipelineResult) (*pb.PipelineResult, bool) {
		if !lost {
			lost = true
			apply()
			cluster.forgetClients()
			return nil, true
		}
		return apply(), false
	}})
	_, err := s.Put(t.Context(), put("b"))
	var unknown *hastate.OutcomeUnknownError
	if !errors.As(err, &unknown) {
		t.Errorf("got %v", err)
	}
	if _, err := s.Put(t.Context(), put("c")); err != nil {
		t.Error(err)
	}
}

func TestSessions_ClientNeverKnown(t *testing.T) {
	n := startNode(t, "n1", newFakeCluster("c1"))
	n.set(bend{answer: func(item *pb.PipelineItem, _ func() *pb.PipelineResult) (*pb.PipelineResult, bool) {
		return failure(item.GetId(), &hastate.ClientExpiredError{Client: item.GetRequest().GetClient()}), false
	}})
	s := dial(t, client.Options{}, n).Sessions("g")
	if _, err := s.Put(t.Context(), put("x")); !errors.Is(err, hastate.ErrClientExpired) {
		t.Errorf("got %v", err)
	}
	if opened := n.called("OpenClient"); opened > 10 {
		t.Errorf("opened %d writers", opened)
	}
}

func TestSessions_Refusals(t *testing.T) {
	n := startNode(t, "n1", newFakeCluster("c1"))
	s := dial(t, client.Options{}, n).Sessions("g")
	for _, want := range []error{
		&hastate.ConflictError{Key: "g/x", CurrentRevision: 3},
		&hastate.FencedError{Group: "g", Epoch: 1, NewestEpoch: 2},
		&hastate.LimitError{Limit: "session.value_bytes", Maximum: 1, Actual: 2},
	} {
		n.set(bend{answer: func(item *pb.PipelineItem, _ func() *pb.PipelineResult) (*pb.PipelineResult, bool) {
			return failure(item.GetId(), want), false
		}})
		_, err := s.Put(t.Context(), put("x"))
		if errors.Is(err, hastate.ErrOutcomeUnknown) || hastate.ToStatus(err).Error() == "" || errors.Unwrap(err).Error() != want.Error() {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	// An error that does not say whether it was applied is passed on as such.
	n.set(bend{answer: func(item *pb.PipelineItem, _ func() *pb.PipelineResult) (*pb.PipelineResult, bool) {
		return failure(item.GetId(), errors.New("disk on fire")), false
	}})
	if _, err := s.Put(t.Context(), put("x")); !errors.Is(err, hastate.ErrOutcomeUnknown) {
		t.Errorf("got %v", err)
	}
}

func TestSessions_FullQueueIsWaitedFor(t *testing.T) {
	cluster := newFakeCluster("c1")
	n := startNode(t, "n1", cluster)
	var refused atomic.Int32
	n.set(bend{answer: func(item *pb.PipelineItem, apply func() *pb.PipelineResult) (*pb.PipelineResult, bool) {
		if refused.Add(1) <= 30 {
			return failure(item.GetId(), &hastate.LimitError{Limit: "propose_queue_commands", Maximum: 1, Actual: 2}), false
		}
		return apply(), false
	}})
	s := dial(t, client.Options{}, n).Sessions("g")
	ids := names(20)
	if err := putAll(t.Context(), s, ids); err != nil {
		t.Fatal(err)
	}
	checkOnce(t, cluster, ids)
}

func TestSessions_CloseEndsWrites(t *testing.T) {
	n := startNode(t, "n1", newFakeCluster("c1"))
	reached := make(chan struct{}, 100)
	n.set(bend{answer: func(*pb.PipelineItem, func() *pb.PipelineResult) (*pb.PipelineResult, bool) {
		reached <- struct{}{}
		return nil, false
	}})
	c, err := client.Dial(client.Options{Endpoints: []string{n.addr}, AttemptTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Sessions("g").Go(t.Context(), putOp("x"))
	if err != nil {
		t.Fatal(err)
	}
	<-reached
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(); !errors.Is(err, hastate.ErrOutcomeUnknown) {
		t.Errorf("got %v", err)
	}
	if _, err := c.Sessions("g").Put(t.Context(), put("y")); !errors.Is(err, hastate.ErrClosed) {
		t.Errorf("got %v", err)
	}
}
