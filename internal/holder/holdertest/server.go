// SPDX-License-Identifier: Apache-2.0

package holdertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/holder"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Server is a model server. It refuses lower epochs, as it should.
type Server struct {
	// mu guards the rest.
	mu sync.Mutex
	// promoted is the epoch that it serves as primary, 0 if it does not.
	promoted uint64
	newest   uint64
	status   holder.Status
	changed  chan struct{}
	info     holder.Info
	calls    []string
	clock    func() (uint64, time.Duration, error)
	orders   []holder.Promotion
	// What to do, nil for what is right.
	onPromote func(context.Context) error
	onDemote  func(context.Context) error
	onLoad    func() error
}

// NewServer is READY and has one model.
func NewServer() *Server {
	return &Server{
		status:  holder.Status{State: pb.InstanceState_INSTANCE_STATE_READY, Model: &pb.ModelRef{Name: "m", Digest: "sha256:a"}},
		changed: make(chan struct{}), info: holder.Info{Engine: "test", EngineVersion: "1"},
	}
}

// Set changes it and tells those who watch.
func (s *Server) Set(f func(*holder.Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.status)
	if s.status.Gone {
		s.promoted = 0
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// Capable declares capabilities.
func (s *Server) Capable(c ...pb.Capability) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.info.Capabilities = c
}

// On sets what Promote, Demote and Load do before they succeed; an error makes
// them fail.
func (s *Server) On(promote, demote func(context.Context) error, load func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onPromote, s.onDemote, s.onLoad = promote, demote, load
}

// Promoted is the epoch that it serves as primary, 0 if it does not.
func (s *Server) Promoted() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.promoted
}

// Promotions lists the orders to become the primary, renewals included.
func (s *Server) Promotions() []holder.Promotion {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.orders)
}

// Calls lists what was called.
func (s *Server) Calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.calls...)
}

// Die is the end of its process.
func (s *Server) Die() {
	s.Set(func(st *holder.Status) {
		*st = holder.Status{State: pb.InstanceState_INSTANCE_STATE_DOWN, Gone: true, Reason: "connection refused"}
	})
}

// Info says what it is.
func (s *Server) Info(context.Context) (holder.Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.info, nil
}

// Watch reports at once and on every change.
func (s *Server) Watch(ctx context.Context, report func(holder.Status)) error {
	for {
		s.mu.Lock()
		st, changed := s.status, s.changed
		s.mu.Unlock()
		report(st)
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Clock is shown as set by ShowClock.
func (s *Server) Clock(context.Context, time.Duration) (reading uint64, age time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.clock == nil {
		return 0, 0, nil
	}
	return s.clock()
}

// ShowClock sets what Clock returns; it is called with the server's lock held.
func (s *Server) ShowClock(clock func() (reading uint64, age time.Duration, err error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock = clock
}

// Load makes it READY, if it can.
func (s *Server) Load(_ context.Context, m *pb.ModelRef) error {
	s.mu.Lock()
	s.calls = append(s.calls, "load")
	f := s.onLoad
	s.mu.Unlock()
	if f == nil {
		return hastate.ErrPrecondition
	}
	if err := f(); err != nil {
		return err
	}
	s.Set(func(st *holder.Status) {
		st.State = pb.InstanceState_INSTANCE_STATE_READY
		if m != nil {
			st.Model = m
		}
	})
	return nil
}

// Promote makes it the primary.
func (s *Server) Promote(ctx context.Context, p holder.Promotion) (*pb.ModelRef, error) {
	s.mu.Lock()
	s.calls = append(s.calls, fmt.Sprintf("promote %d", p.Epoch))
	s.orders = append(s.orders, p)
	f := s.onPromote
	s.mu.Unlock()
	if f != nil {
		if err := f(ctx); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case p.Epoch < s.newest:
		return nil, &hastate.FencedError{Group: p.Group, Epoch: p.Epoch, NewestEpoch: s.newest}
	case s.status.Gone:
		return nil, errors.New("connection refused")
	case p.Lease < time.Millisecond:
		return nil, errors.New("no lease")
	}
	s.promoted, s.newest = p.Epoch, p.Epoch
	return s.status.Model, nil
}

// Demote ends primaryship.
func (s *Server) Demote(ctx context.Context, d holder.Demotion) error {
	s.mu.Lock()
	s.calls = append(s.calls, fmt.Sprintf("demote %d %s", d.Epoch, d.Mode.String()[len("DEMOTE_MODE_"):]))
	f := s.onDemote
	s.mu.Unlock()
	if f != nil {
		if err := f(ctx); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.Epoch < s.newest {
		return &hastate.FencedError{Group: d.Group, Epoch: d.Epoch, NewestEpoch: s.newest}
	}
	s.promoted = 0
	return nil
}

// Kill ends its process.
func (s *Server) Kill(context.Context, string) error {
	s.Die()
	return nil
}

// Hang blocks until ctx ends: for On.
func Hang(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}
