// SPDX-License-Identifier: Apache-2.0

package textserver

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// fakeSessions is a SessionService over a MemoryStore whose errors a test
// chooses.
type fakeSessions struct {
	pb.UnimplementedSessionServiceServer
	store *MemoryStore

	mu sync.Mutex // guards all below
	// fail is asked before each Append; after, behind it.
	fail, after func(*pb.AppendRequest) error
	seen        []*pb.AppendRequest
	clients     uint64
}

func (f *fakeSessions) OpenClient(context.Context, *pb.OpenClientRequest) (*pb.OpenClientResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clients++
	return &pb.OpenClientResponse{Client: f.clients, Window: 4096}, nil
}

func (f *fakeSessions) Append(ctx context.Context, req *pb.AppendRequest) (*pb.AppendResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = append(f.seen, req)
	if f.fail != nil {
		if err := f.fail(req); err != nil {
			return nil, hastate.ToStatus(err)
		}
	}
	end, err := f.store.Append(ctx, Append{
		Group: req.GetGroup(), ID: req.GetId(), Offset: req.GetOffset(), Data: req.GetData(), Epoch: req.GetEpoch(), TrimBefore: req.GetTrimBefore(),
	})
	if err == nil && f.after != nil {
		err = f.after(req)
	}
	if err != nil {
		return nil, hastate.ToStatus(err)
	}
	return &pb.AppendResponse{EndOffset: end}, nil
}

func (f *fakeSessions) Get(ctx context.Context, req *pb.GetRequest) (*pb.GetResponse, error) {
	if req.GetLevel() != pb.ReadLevel_READ_LEVEL_LINEARIZABLE {
		return nil, hastate.ToStatus(fmt.Errorf("%w: level %v", hastate.ErrInvalid, req.GetLevel()))
	}
	st, err := f.store.Load(ctx, req.GetGroup(), req.GetId())
	if err == nil && !st.Found {
		err = hastate.ErrNotFound
	}
	if err != nil {
		return nil, hastate.ToStatus(err)
	}
	return &pb.GetResponse{Session: &pb.Session{Value: st.Data, BaseOffset: st.Base}}, nil
}

func serveSessions(t *testing.T) (*fakeSessions, string) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, srv, done := &fakeSessions{store: NewMemoryStore()}, grpc.NewServer(), make(chan struct{})
	pb.RegisterSessionServiceServer(srv, f)
	go func() {
		defer close(done)
		_ = srv.Serve(lis)
	}()
	t.Cleanup(func() {
		srv.Stop()
		<-done
	})
	return f, lis.Addr().String()
}

func openStore(t *testing.T, endpoints ...string) *HastateStore {
	t.Helper()
	s, err := OpenHastate(endpoints, "test", nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (f *fakeSessions) set(change func(*fakeSessions)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

// requests are the ids of the appends since the last call.
func (f *fakeSessions) requests() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ids []string
	for _, r := range f.seen {
		ids = append(ids, fmt.Sprintf("%d/%d<%d", r.GetRequest().GetClient(), r.GetRequest().GetSeq(), r.GetRequest().GetAckedBelow()))
	}
	f.seen = nil
	return ids
}

func TestHastateStore(t *testing.T) {
	f, addr := serveSessions(t)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := lis.Addr().String() // refuses
	if err := lis.Close(); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, dead, addr)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	if st, err := s.Load(ctx, "g", "s"); err != nil || st.Found {
		t.Fatal(st, err)
	}
	one := Append{Group: "g", ID: "s", Data: []byte("one"), Epoch: 5, TTL: time.Hour}
	if end, err := s.Append(ctx, one); err != nil || end != 3 {
		t.Fatal(end, err)
	}
	wantIDs := func(want ...string) {
		t.Helper()
		if got := f.requests(); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("requests %v, want %v", got, want)
		}
	}
	wantIDs("1/1<1")

	// Lost answers and changes of leader: the same id again, until it is done.
	errs := []error{&hastate.OutcomeUnknownError{Reason: "x"}, &hastate.NotLeaderError{}, hastate.ErrClosed}
	f.set(func(f *fakeSessions) {
		f.after = func(*pb.AppendRequest) error {
			if len(errs) == 0 {
				return nil
			}
			err := errs[0]
			errs = errs[1:]
			return err
		}
	})
	two := Append{Group: "g", ID: "s", Offset: 3, Data: []byte("two"), Epoch: 5}
	if end, err := s.Append(ctx, two); err != nil || end != 6 {
		t.Fatal(end, err)
	}
	wantIDs("1/2<2", "1/2<2", "1/2<2", "1/2<2")

	// A client that was forgotten: a new number, and the offset decides.
	expired := true
	f.set(func(f *fakeSessions) {
		f.fail = func(*pb.AppendRequest) error {
			if expired {
				expired = false
				return &hastate.ClientExpiredError{Client: 1}
			}
			return nil
		}
	})
	if end, err := s.Append(ctx, two); err != nil || end != 6 {
		t.Fatal(end, err)
	}
	wantIDs("1/3<3", "2/1<1")

	two.Offset = 1
	_, err = s.Append(ctx, two)
	wantErr(t, err, hastate.ErrConflict)
	f.store.Grant("g", 9)
	_, err = s.Append(ctx, two)
	wantErr(t, err, hastate.ErrFenced)
	if st, err := s.Load(ctx, "g", "s"); err != nil || string(st.Data) != "onetwo" {
		t.Fatal(st, err)
	}
	f.set(func(f *fakeSessions) { f.fail = func(*pb.AppendRequest) error { return &hastate.NotLeaderError{} } })
	short, stop := context.WithTimeout(ctx, 100*time.Millisecond)
	defer stop()
	_, err = s.Append(short, two)
	wantErr(t, err, hastate.ErrOutcomeUnknown)
}

func TestHastateStore_AckedBelow(t *testing.T) {
	f, addr := serveSessions(t)
	s := openStore(t, addr)
	ctx := context.Background()
	first, done1, err := s.begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_, done2, err := s.begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	done2()
	third, done3, err := s.begin(ctx)
	if err != nil || third.GetSeq() != 3 || third.GetAckedBelow() != first.GetSeq() {
		t.Fatal(third, err)
	}
	done1()
	done3()
	if fourth, _, err := s.begin(ctx); err != nil || fourth.GetAckedBelow() != 4 || f.clients != 1 {
		t.Fatal(fourth, err, f.clients)
	}
}

// TestFailover_Hastate goes through the gRPC store: what the client has is in
// the cluster, and another server goes on.
func TestFailover_Hastate(t *testing.T) {
	f, addr := serveSessions(t)
	const n = long
	tokens := want(t, n)
	old := start(t, Config{Hastate: []string{addr}, TokenDelay: slow().TokenDelay})
	old.promote(5, 0)
	st := old.stream(n, HeaderSession, "s")
	st.tokens(tokens, 0, 20, 5)
	f.store.Grant("default", 9)
	fresh := start(t, Config{Hastate: []string{addr}})
	fresh.promote(9, 0)
	cont := fresh.stream(n, HeaderSession, "s", HeaderReceived, "20")
	cont.tokens(tokens, 20, n-20, 9)
	cont.finish(n)
	st.cut(tokens, 20, "not_primary")
}
