// SPDX-License-Identifier: Apache-2.0

package model

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/control"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

// ErrCrashed is what Run returns when the server was told to crash: nothing that
// was under way has been answered. The program must then exit at once, with
// CrashCode.
var ErrCrashed = errors.New("crashed on promotion, as it was told to")

// ErrStopped is what Run returns when the server was told to shut down, and has. The
// program must then exit with StopCode.
var ErrStopped = errors.New("shut down, as it was told to")

// Exit codes of a process that crashes, or shuts down, as it was told.
const (
	CrashCode = 3
	StopCode  = 4
)

// server is the model server.
type server struct {
	pb.UnimplementedInstanceServiceServer

	cfg    config
	faults *faultState
	lease  *lease
	served *record.File[record.Served]
	// promotions has each epoch once for each process that obeyed a Promote of it.
	promotions *record.File[record.Promotion]
	// machine is the machine's clock, shown the one that the lease is counted on.
	machine clock.Clock
	shown   clock.Scaled
	// steps counts units of work.
	steps atomic.Uint64
	// life ends with the server: for work that outlives its caller.
	life context.Context //nolint:containedctx // it is the server's life
	// crash has room for one. Nobody closes it.
	crash chan struct{}
}

// Run serves until ctx ends, or until the server crashes or shuts down as it was told
// to: then it returns ErrCrashed or ErrStopped. args are the arguments of the command line; what is wrong
// with them is said in the error.
func Run(ctx context.Context, args []string, stderr io.Writer) error {
	cfg, err := parse(args, stderr)
	if err != nil {
		return err
	}
	return run(ctx, cfg, clock.Boot{}, nil)
}

// run is Run with another machine's clock. ready, if not nil, is given the
// addresses of gRPC and HTTP when both are served.
func run(ctx context.Context, cfg config, machine clock.Clock, ready func(grpcAddr, httpAddr string)) (err error) {
	life, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &server{
		cfg: cfg, faults: newFaultState(), lease: newLease(cfg.group), machine: machine,
		shown: clock.Scaled{Rate: cfg.rate, From: machine.Now()}, life: life, crash: make(chan struct{}, 1),
	}
	if s.served, err = reopen[record.Served](cfg.served); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.served.Close()) }()
	if s.promotions, err = reopen[record.Promotion](cfg.promotions); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.promotions.Close()) }()
	orders, err := control.Listen(cfg.control, s.faults.set)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, orders.Close()) }()
	grpcListener, err := net.Listen("tcp", cfg.grpc)
	if err != nil {
		return fmt.Errorf("serve InstanceService: %w", err)
	}
	httpListener, err := net.Listen("tcp", cfg.http)
	if err != nil {
		return errors.Join(fmt.Errorf("serve HTTP: %w", err), grpcListener.Close())
	}
	if ready != nil {
		ready(grpcListener.Addr().String(), httpListener.Addr().String())
	}
	return s.serve(cancel, grpcListener, httpListener)
}

// reopen makes a file of records, or goes on with that of a process before.
func reopen[T any](path string) (*record.File[T], error) {
	if err := record.Mend(path); err != nil {
		return nil, err
	}
	return record.NewFile[T](path)
}

// serve owns both servers and waits for their calls.
func (s *server) serve(cancel context.CancelFunc, grpcListener, httpListener net.Listener) error {
	rpc := grpc.NewServer(grpc.WaitForHandlers(true))
	pb.RegisterInstanceServiceServer(rpc, s)
	web := &http.Server{
		Handler: s.handler(), ReadHeaderTimeout: requestTimeout, IdleTimeout: time.Minute,
		BaseContext: func(net.Listener) context.Context { return s.life },
	}
	failed := make(chan error, 2)
	var wg, conns sync.WaitGroup
	web.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			conns.Add(1)
		case http.StateClosed:
			conns.Done()
		}
	}
	wg.Go(func() { failed <- rpc.Serve(grpcListener) })
	wg.Go(func() { failed <- web.Serve(httpListener) })
	err := s.untilEnd(failed, grpcListener, httpListener)
	// As a kill does: connections first, then whatever runs.
	_ = web.Close() // its listener may be closed already
	cancel()
	rpc.Stop()
	wg.Wait()
	conns.Wait() // Close does not wait for the handlers
	return err
}

// untilEnd waits for the end of the server, and says why it has come.
func (s *server) untilEnd(failed <-chan error, listeners ...net.Listener) error {
	var late <-chan time.Time // nil until it shuts down
	for {
		select {
		case <-s.life.Done():
			return nil
		case <-s.crash:
			return ErrCrashed
		case d := <-s.faults.stop:
			timer := time.NewTimer(d)
			defer timer.Stop()
			late = timer.C
			for _, l := range listeners {
				_ = l.Close() // what is accepted is served on
			}
		case <-late:
			return ErrStopped
		case err := <-failed:
			if late == nil {
				return fmt.Errorf("serve: %w", err)
			}
		}
	}
}

// now reads both clocks: the machine's, for what is written down, and the one that
// the lease is counted on.
func (s *server) now() (machine, shown clock.Instant) {
	machine = s.machine.Now()
	return machine, s.shown.Of(machine)
}
