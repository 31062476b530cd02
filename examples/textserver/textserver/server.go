// SPDX-License-Identifier: Apache-2.0

package textserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Server is one model server.
type Server struct {
	pb.UnimplementedInstanceServiceServer

	cfg   Config
	log   *slog.Logger
	clock clock.Clock
	store SessionStore
	role  *role
	fault fault
	turns turns
	// trained is nil while LOADING.
	trained atomic.Pointer[Model]
	steps   atomic.Uint64

	httpLis, grpcLis net.Listener
	// closeStore closes the store if it is ours.
	closeStore func() error
	closeOnce  sync.Once
}

// Open binds the addresses. Run must be called, or Close.
func Open(cfg Config) (*Server, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, log: cfg.Logger, clock: cfg.Clock, store: cfg.Store, role: newRole(cfg.Group, cfg.Clock),
		turns: turns{running: map[string]*running{}}, closeStore: func() error { return nil },
	}
	switch {
	case s.store != nil:
	case len(cfg.Hastate) > 0:
		store, err := OpenHastate(cfg.Hastate, cfg.Name, cfg.HastateDial, cfg.Logger)
		if err != nil {
			return nil, err
		}
		s.store, s.closeStore = store, store.Close
	default:
		s.log.Warn("textserver: no --hastate: sessions are kept in memory and end with this process")
		s.store = NewMemoryStore()
	}
	var err error
	if s.httpLis, err = net.Listen("tcp", cfg.HTTP); err != nil {
		return nil, errors.Join(fmt.Errorf("listen for clients: %w", err), s.Close())
	}
	if s.grpcLis, err = net.Listen("tcp", cfg.GRPC); err != nil {
		return nil, errors.Join(fmt.Errorf("listen for the node: %w", err), s.Close())
	}
	return s, nil
}

// HTTPAddr is the bound address for clients.
func (s *Server) HTTPAddr() string { return s.httpLis.Addr().String() }

// GRPCAddr is the bound address of InstanceService.
func (s *Server) GRPCAddr() string { return s.grpcLis.Addr().String() }

// Close frees what Open took. Run does it itself; it is idempotent.
func (s *Server) Close() error {
	var err error
	s.closeOnce.Do(func() {
		for _, lis := range []net.Listener{s.httpLis, s.grpcLis} {
			if lis == nil {
				continue
			}
			if cerr := lis.Close(); cerr != nil && !errors.Is(cerr, net.ErrClosed) {
				err = errors.Join(err, cerr)
			}
		}
		err = errors.Join(err, s.closeStore())
	})
	return err
}

// Run opens a server and runs it until ctx ends.
func Run(ctx context.Context, cfg Config) error {
	s, err := Open(cfg)
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

// Run trains the model and serves until ctx ends; then it drains: it takes no
// more requests, gives the running ones their time, and only then closes its
// ports, so that a refused connection always means that no work is left.
func (s *Server) Run(ctx context.Context) error {
	base, cutAll := context.WithCancel(context.Background())
	defer cutAll()
	web := &http.Server{
		Handler: s.routes(), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return base },
		ErrorLog:    slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	calls := grpc.NewServer(grpc.MaxRecvMsgSize(hastate.MaxMessageBytes), grpc.MaxConcurrentStreams(maxRequests))
	pb.RegisterInstanceServiceServer(calls, s)
	group, running := errgroup.WithContext(ctx)
	group.Go(s.train)
	group.Go(func() error {
		if err := web.Serve(s.httpLis); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve clients: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		if err := calls.Serve(s.grpcLis); err != nil {
			return fmt.Errorf("serve the node: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		<-running.Done()
		s.log.Info("textserver: draining")
		grace, cancel := context.WithTimeout(context.Background(), s.cfg.Drain)
		defer cancel()
		s.role.shut(grace)
		s.finish(web, cutAll)
		calls.Stop()
		return nil
	})
	return errors.Join(group.Wait(), s.Close())
}

// finish ends the HTTP server. Requests that were cut get a moment to say so to
// their clients.
func (s *Server) finish(web *http.Server, cutAll func()) {
	ctx, cancel := context.WithTimeout(context.Background(), farewell)
	defer cancel()
	if err := web.Shutdown(ctx); err == nil {
		return
	}
	cutAll()
	if err := web.Close(); err != nil {
		s.log.Debug("textserver: close clients", "error", err)
	}
	// Close does not wait for the handlers.
	wait, stop := context.WithTimeout(context.Background(), farewell)
	defer stop()
	if err := s.role.idle(wait); err != nil {
		s.log.Warn("textserver: requests did not end", "error", err)
	}
}

func (s *Server) train() error {
	begin := time.Now()
	m, err := Train()
	if err != nil {
		return fmt.Errorf("train model: %w", err)
	}
	s.trained.Store(m)
	s.role.setLoaded()
	s.log.Info("textserver: trained", "vocabulary", m.Vocabulary(), "digest", m.Digest(s.cfg.Seed), "took", time.Since(begin))
	return nil
}

// model is nil while LOADING.
func (s *Server) model() *Model { return s.trained.Load() }

// ref names the model, nil while LOADING.
func (s *Server) ref() *pb.ModelRef {
	m := s.model()
	if m == nil {
		return nil
	}
	return &pb.ModelRef{Name: ModelName, Version: fmt.Sprintf("order%d-seed%d", Order, s.cfg.Seed), Digest: m.Digest(s.cfg.Seed)}
}
