// SPDX-License-Identifier: Apache-2.0

package failover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/hastate/hastate/client"
	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/testcluster/chaos/model"
)

const (
	// requestTimeout is the deadline of a client's request.
	requestTimeout = 250 * time.Millisecond
	// think is a client's pause between two requests, probeEvery that of one which asks
	// every model server whether it serves.
	think, probeEvery = time.Millisecond, 5 * time.Millisecond
	// maxAnswer bounds an answer in bytes.
	maxAnswer = 4096
)

// seen is something that was noticed of an epoch.
type seen struct {
	epoch uint64
	at    clock.Instant
}

// measured is an observer and a client of one round. Its owner calls stop, which may be
// called twice.
type measured struct {
	// before is the epoch under which the primary serves.
	before uint64
	stop   func()
	// first answer at all, told and served of a later epoch: each is sent at most once.
	answered, told, served chan seen
	mu                     sync.Mutex
	// last is when the last answer under before was there. Guarded by mu.
	last clock.Instant
}

// measure starts both. They have connections of their own.
func (c *cluster) measure(ctx context.Context, before uint64) *measured {
	ctx, cancel := context.WithCancel(ctx)
	m := &measured{before: before, answered: make(chan seen, 1), told: make(chan seen, 1), served: make(chan seen, 1)}
	var all sync.WaitGroup
	m.stop = func() { cancel(); all.Wait() }
	all.Go(func() { m.observe(ctx, c.client) })
	all.Go(func() { m.request(ctx, c.client) })
	return m
}

// observe waits to be told of the next primary that serves.
func (m *measured) observe(ctx context.Context, cl *client.Client) {
	primaries, err := cl.WatchPrimary(ctx, "")
	if err != nil {
		return // the wait for it ends with its own deadline
	}
	for p := range primaries {
		if p.Serving() && p.Epoch > m.before {
			m.told <- seen{p.Epoch, clock.Boot{}.Now()}
			return
		}
	}
}

// request asks the primary, whoever that is by a watch, one request at a time. It gives
// up one that is under way when it is told of another primary: the one that it asked may
// hang.
func (m *measured) request(ctx context.Context, cl *client.Client) {
	primaries, err := cl.WatchPrimary(ctx, "")
	if err != nil {
		return
	}
	web := newWeb()
	defer web.CloseIdleConnections()
	address := newAddress()
	var following sync.WaitGroup
	defer following.Wait()
	following.Go(func() {
		for p := range primaries {
			address.set(p.Address)
		}
	})
	for first := true; ctx.Err() == nil; {
		to, moved := address.get()
		asking, done := context.WithCancel(ctx)
		giveUp := context.AfterFunc(moved, done)
		a, err := ask(asking, web, to)
		giveUp()
		done()
		if err == nil {
			at := seen{a.Epoch, clock.Boot{}.Now()}
			if first {
				first = false
				m.answered <- at
			}
			if a.Epoch > m.before {
				m.served <- at
				return
			}
			m.mu.Lock()
			m.last = at.at
			m.mu.Unlock()
		}
		if pause(ctx, think) != nil {
			return
		}
	}
}

// address is where the primary is, as far as is known.
type address struct {
	mu sync.Mutex
	// of the primary, and a context that ends when there is another one. Guarded by mu.
	of    string
	until context.Context
	end   context.CancelFunc
}

func newAddress() *address {
	a := &address{}
	a.until, a.end = context.WithCancel(context.Background())
	return a
}

func (a *address) set(of string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if of == a.of {
		return
	}
	a.end()
	a.of = of
	a.until, a.end = context.WithCancel(context.Background())
}

func (a *address) get() (of string, until context.Context) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.of, a.until
}

func (m *measured) lastBefore() clock.Instant {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last
}

func (m *measured) awaitAnswer(ctx context.Context) error {
	_, err := await(ctx, m.answered, "the primary's first answer")
	return err
}

func (m *measured) awaitServed(ctx context.Context) (seen, error) {
	return await(ctx, m.served, "an answer of another primary")
}

func (m *measured) awaitTold(ctx context.Context) (seen, error) {
	return await(ctx, m.told, "a watch to tell of another primary")
}

func await(ctx context.Context, from <-chan seen, what string) (seen, error) {
	select {
	case s := <-from:
		return s, nil
	case <-ctx.Done():
		return seen{}, fmt.Errorf("wait for %s: %w", what, context.Cause(ctx))
	}
}

// newWeb is a client of model servers.
func newWeb() *http.Client {
	return &http.Client{Transport: &http.Transport{}, Timeout: requestTimeout}
}

var errRefused = errors.New("the model server is not the primary")

// ask sends one request to a model server.
func ask(ctx context.Context, web *http.Client, address string) (a model.Answer, err error) {
	if address == "" {
		return a, errRefused
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+"/generate", nil)
	if err != nil {
		return a, err
	}
	resp, err := web.Do(req)
	if err != nil {
		return a, err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return a, err
	}
	if resp.StatusCode != http.StatusOK {
		return a, errRefused
	}
	return a, json.Unmarshal(body, &a)
}

// probe asks every model server all the time, also those that should refuse: one that
// believes to be the primary shows it in its record. The returned function ends it.
func (c *cluster) probe(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	for _, h := range c.hosts {
		all.Go(func() {
			web := newWeb()
			defer web.CloseIdleConnections()
			for pause(ctx, probeEvery) == nil {
				_, _ = ask(ctx, web, h.web) // its own record says what it did
			}
		})
	}
	return func() { cancel(); all.Wait() }
}
