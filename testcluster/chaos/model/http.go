// SPDX-License-Identifier: Apache-2.0

package model

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

const (
	requestTimeout = 10 * time.Second
	// work is what a request takes, saturatedWork what it takes with many others.
	work, saturatedWork = time.Millisecond, 300 * time.Millisecond
	// step is the work that a step does.
	step = time.Millisecond
)

// Answer is what POST /generate answers with 200.
type Answer struct {
	Node  string `json:"node"`
	Group string `json:"group"`
	Epoch uint64 `json:"epoch"`
	// At is when the server decided that it was allowed to answer.
	At clock.Instant `json:"at"`
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /generate", s.generate)
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	return mux
}

// generate answers one request, if the server may: 200 with an Answer, or 503.
func (s *server) generate(w http.ResponseWriter, r *http.Request) {
	a, leave, err := s.answer(r.Context())
	// Demote waits until the answer is written.
	defer leave()
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		_ = json.NewEncoder(w).Encode(map[string]string{"error": err.Error()}) // the client may be gone
		return
	}
	_ = json.NewEncoder(w).Encode(a) // the client may be gone
}

// answer does the work. leave is never nil.
func (s *server) answer(ctx context.Context) (a Answer, leave func(), err error) {
	leave = func() {}
	if err := s.faults.wait(ctx); err != nil {
		return a, leave, err
	}
	f, _ := s.faults.get()
	_, now := s.now()
	stop, left, err := s.lease.enter(now, f)
	if err != nil {
		return a, leave, err
	}
	leave = left
	if err := s.work(ctx, stop, f); err != nil {
		return a, leave, err
	}
	// The decision: the clock is read first, then the lease is looked at.
	at, now := s.now()
	epoch, err := s.lease.valid(now, f)
	if err != nil {
		return a, leave, err
	}
	a = Answer{Node: s.cfg.node, Group: s.cfg.group, Epoch: epoch, At: at}
	return a, leave, s.served.Write(record.Served{Node: a.Node, Group: a.Group, Epoch: a.Epoch, At: a.At})
}

// work takes its time. It hangs with the server.
func (s *server) work(ctx context.Context, stop <-chan struct{}, f Faults) error {
	if err := s.spend(ctx, stop, time.Duration(f.PrefillMS)*time.Millisecond, 0); err != nil {
		return err
	}
	takes := work
	if f.Saturated {
		takes = saturatedWork
	}
	if err := s.spend(ctx, stop, takes, 1); err != nil {
		return err
	}
	return s.faults.wait(ctx)
}

// spend lets time pass and counts steps meanwhile.
func (s *server) spend(ctx context.Context, stop <-chan struct{}, d time.Duration, steps uint64) error {
	for ; d > 0; d -= step {
		part := min(d, step)
		if steps == 0 {
			part, d = d, 0
		}
		timer := time.NewTimer(part)
		select {
		case <-timer.C:
			s.steps.Add(steps)
		case <-stop:
			timer.Stop()
			return errNotPrimary
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
	return nil
}
