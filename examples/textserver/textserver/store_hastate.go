// SPDX-License-Identifier: Apache-2.0

package textserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const (
	// attemptTimeout bounds one call to one node; another node is asked after it.
	attemptTimeout = 2 * time.Second
	// appendTimeout and loadTimeout bound an operation with all its retries.
	appendTimeout = 30 * time.Second
	loadTimeout   = 5 * time.Second
	// minRetry and maxRetry bound the wait between two attempts.
	minRetry = 20 * time.Millisecond
	maxRetry = 500 * time.Millisecond
	// maxAppends bounds the appends under way.
	maxAppends = 64
)

// HastateStore keeps sessions in a hastate cluster. It asks one node at a time
// and moves on to the next when that one does not answer; each append carries a
// request id, so that a retry is not applied twice.
type HastateStore struct {
	name  string
	log   *slog.Logger
	conns []*grpc.ClientConn
	// at is the node to ask, modulo their number.
	at atomic.Uint64
	// slots bounds the appends under way.
	slots chan struct{}

	mu sync.Mutex // guards all below
	// client is our number with the cluster, 0 if there is none yet.
	client uint64
	// seq is the last sequence number given out, open those without a result.
	seq  uint64
	open map[uint64]struct{}
}

var _ SessionStore = (*HastateStore)(nil)

// OpenHastate makes a store over one or more nodes. It does not talk to them
// yet. Without dial options the connections are plaintext, which is allowed to
// loopback only.
func OpenHastate(endpoints []string, name string, dial []grpc.DialOption, log *slog.Logger) (*HastateStore, error) {
	if len(endpoints) == 0 {
		return nil, fmt.Errorf("%w: give at least one hastate node as host:port", hastate.ErrInvalid)
	}
	s := &HastateStore{name: name, log: log, slots: make(chan struct{}, maxAppends), open: map[uint64]struct{}{}}
	for _, addr := range endpoints {
		conn, err := dialNode(addr, dial)
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		s.conns = append(s.conns, conn)
	}
	return s, nil
}

func dialNode(addr string, dial []grpc.DialOption) (*grpc.ClientConn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("%w: hastate node %q must be host:port: %w", hastate.ErrInvalid, addr, err)
	}
	opts := []grpc.DialOption{
		grpc.WithNoProxy(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: attemptTimeout,
		}),
	}
	if len(dial) == 0 {
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return nil, fmt.Errorf("%w: hastate node %q is not on this machine: give certificates", hastate.ErrInvalid, addr)
		}
		opts = append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))
	}
	conn, err := grpc.NewClient(addr, append(opts, dial...)...)
	if err != nil {
		return nil, fmt.Errorf("%w: dial hastate node %s: %w", hastate.ErrInvalid, addr, err)
	}
	return conn, nil
}

// Close ends the connections.
func (s *HastateStore) Close() error {
	var errs []error
	for _, c := range s.conns {
		if err := c.Close(); err != nil && status.Code(err) != codes.Canceled {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Load reads a session, linearizably.
func (s *HastateStore) Load(ctx context.Context, group, id string) (Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	var resp *pb.GetResponse
	err := s.retry(ctx, func(ctx context.Context, client pb.SessionServiceClient) (err error) {
		resp, err = client.Get(ctx, &pb.GetRequest{Group: group, Id: id, Level: pb.ReadLevel_READ_LEVEL_LINEARIZABLE})
		return err
	})
	if errors.Is(err, hastate.ErrNotFound) {
		return Stream{}, nil
	}
	if err != nil {
		return Stream{}, fmt.Errorf("load session %s/%s: %w", group, id, err)
	}
	return Stream{Base: resp.GetSession().GetBaseOffset(), Data: resp.GetSession().GetValue(), Found: true}, nil
}

// Append adds to a session, exactly once.
func (s *HastateStore) Append(ctx context.Context, a Append) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, appendTimeout)
	defer cancel()
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return 0, fmt.Errorf("append to session %s/%s: %w", a.Group, a.ID, ctx.Err())
	}
	for {
		end, err := s.append(ctx, a)
		if !errors.Is(err, hastate.ErrClientExpired) {
			if err != nil {
				err = fmt.Errorf("append to session %s/%s: %w", a.Group, a.ID, err)
			}
			return end, err
		}
		// An earlier attempt may have been applied: the offset makes the same
		// append under a new number a success then.
		if !sleep(ctx, minRetry) {
			return 0, &hastate.OutcomeUnknownError{Reason: err.Error()}
		}
	}
}

// append makes all attempts of one append under one request id.
func (s *HastateStore) append(ctx context.Context, a Append) (uint64, error) {
	id, done, err := s.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer done()
	var resp *pb.AppendResponse
	err = s.retry(ctx, func(ctx context.Context, client pb.SessionServiceClient) (err error) {
		resp, err = client.Append(ctx, &pb.AppendRequest{
			Request: id, Group: a.Group, Id: a.ID, Offset: a.Offset, Data: a.Data, Epoch: a.Epoch,
			TrimBefore: a.TrimBefore, Owner: a.Owner, TtlMs: uint64(a.TTL.Milliseconds()),
		})
		return err
	})
	if errors.Is(err, hastate.ErrClientExpired) {
		s.leave(id.GetClient())
	}
	return resp.GetEndOffset(), err
}

// begin gives out the next request id; done says that its result is known, or
// will never be asked for.
func (s *HastateStore) begin(ctx context.Context) (id *pb.RequestId, done func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.client == 0 {
		s.mu.Unlock()
		client, err := s.openClient(ctx)
		s.mu.Lock()
		if err != nil {
			return nil, nil, err
		}
		if s.client == 0 {
			s.client, s.seq, s.open = client, 0, map[uint64]struct{}{}
		}
	}
	s.seq++
	client, seq := s.client, s.seq
	s.open[seq] = struct{}{}
	oldest := seq
	for o := range s.open { // at most maxAppends
		oldest = min(oldest, o)
	}
	return &pb.RequestId{Client: client, Seq: seq, AckedBelow: oldest}, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.client == client {
			delete(s.open, seq)
		}
	}, nil
}

// openClient gets a number from the cluster. Two callers at once may get two;
// the cluster forgets the one that is not used.
func (s *HastateStore) openClient(ctx context.Context) (uint64, error) {
	var resp *pb.OpenClientResponse
	err := s.retry(ctx, func(ctx context.Context, client pb.SessionServiceClient) (err error) {
		resp, err = client.OpenClient(ctx, &pb.OpenClientRequest{Name: s.name})
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("open client: %w", err)
	}
	if resp.GetClient() == 0 {
		return 0, errors.New("open client: the cluster gave no number")
	}
	return resp.GetClient(), nil
}

// leave drops a client number that the cluster does not know any more.
func (s *HastateStore) leave(client uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client == client {
		s.client = 0
	}
}

// retry calls until a node gives an answer that another node would give too, or
// ctx ends: then the outcome is unknown.
func (s *HastateStore) retry(ctx context.Context, call func(context.Context, pb.SessionServiceClient) error) error {
	wait := minRetry
	for {
		at := s.at.Load()
		attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
		err := call(attempt, pb.NewSessionServiceClient(s.conns[at%uint64(len(s.conns))]))
		cancel()
		if err == nil {
			return nil
		}
		err = hastate.FromStatus(err)
		if !transient(err) {
			return err
		}
		s.log.Debug("textserver: ask another node", "error", err)
		s.at.CompareAndSwap(at, at+1)
		if !sleep(ctx, wait/2+rand.N(wait/2)) { //nolint:gosec // jitter
			return &hastate.OutcomeUnknownError{Reason: err.Error()}
		}
		wait = min(2*wait, maxRetry)
	}
}

// transient reports whether asking again, elsewhere or later, can help.
func transient(err error) bool {
	if errors.Is(err, hastate.ErrNotLeader) || errors.Is(err, hastate.ErrNoLeader) || errors.Is(err, hastate.ErrOutcomeUnknown) {
		return true
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Aborted, codes.Canceled:
		return true
	}
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// sleep waits and reports whether ctx still runs.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
