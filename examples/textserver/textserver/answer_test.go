// SPDX-License-Identifier: Apache-2.0

package textserver

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/internal/wait"
)

// checkedSink fails for a token that is not in the session when it is sent.
type checkedSink struct {
	store *MemoryStore
	sent  atomic.Int64
}

func (c *checkedSink) token(i int, text string) error {
	st, err := c.store.Load(context.Background(), "default", "s")
	if err != nil {
		return err
	}
	script, err := decodeStream(st)
	if err != nil || len(script.tokens) <= i || script.tokens[i] != text {
		return fmt.Errorf("token %d is sent, the session has %d: %w", i, len(script.tokens), err)
	}
	c.sent.Add(1)
	return nil
}

func TestAnswer_DurableBeforeSent(t *testing.T) {
	const n = 3 * maxAhead
	held := newHeldStore(0)
	s := start(t, Config{Store: held})
	s.promote(5, 0)
	term, leave, err := s.role.enter()
	if err != nil {
		t.Fatal(err)
	}
	defer leave()
	ctx := context.Background()
	a, err := s.prepare(ctx, term, question{session: "s", turn: turn{Prompt: "p", Seed: 1, MaxTokens: n}})
	if err != nil {
		t.Fatal(err)
	}
	a.client = ctx
	out, done := &checkedSink{store: held.MemoryStore}, make(chan error, 1)
	go func() { done <- a.run(ctx, out) }()
	// The first append is held: generation goes on for as far as it may.
	wait.Until(t, patience, func() error {
		if steps := s.steps.Load(); steps < maxAhead {
			return fmt.Errorf("%d steps", steps)
		}
		return nil
	})
	if sent := out.sent.Load(); sent != 0 {
		t.Fatalf("%d tokens were sent that are not durable", sent)
	}
	close(held.released)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if sent := out.sent.Load(); sent != n {
		t.Fatalf("%d tokens were sent, want %d", sent, n)
	}
}

func TestAnswer_LeasePassesBeforeSent(t *testing.T) {
	c, held := &clock.Fake{}, newHeldStore(0)
	s := start(t, Config{Store: held, Clock: c})
	s.promote(5, time.Hour)
	term, leave, err := s.role.enter()
	if err != nil {
		t.Fatal(err)
	}
	defer leave()
	ctx := context.Background()
	a, err := s.prepare(ctx, term, question{session: "s", turn: turn{Prompt: "p", Seed: 1, MaxTokens: long}})
	if err != nil {
		t.Fatal(err)
	}
	a.client = ctx
	out, done := &checkedSink{store: held.MemoryStore}, make(chan error, 1)
	go func() { done <- a.run(ctx, out) }()
	wait.Until(t, patience, func() error {
		if steps := s.steps.Load(); steps < maxAhead {
			return fmt.Errorf("%d steps", steps)
		}
		return nil
	})
	c.Advance(2 * time.Hour) // while the append is under way
	close(held.released)
	if err := <-done; !errors.Is(err, errLeaseOver) {
		t.Fatal(err)
	}
	if sent := out.sent.Load(); sent != 0 {
		t.Fatalf("%d tokens were sent after the lease", sent)
	}
}

func TestPrepare_ClientAhead(t *testing.T) {
	store := NewMemoryStore()
	s := start(t, Config{Store: store})
	s.promote(5, 0)
	term, leave, err := s.role.enter()
	if err != nil {
		t.Fatal(err)
	}
	defer leave()
	q := question{session: "s", turn: turn{Prompt: "p", Seed: 1, MaxTokens: 9, Created: 7}}
	data, err := q.turn.record()
	if err != nil {
		t.Fatal(err)
	}
	for _, tok := range []string{"a", "b"} {
		data = appendRecord(data, recordToken, []byte(tok))
	}
	ctx := context.Background()
	if _, err := store.Append(ctx, Append{Group: "default", ID: "s", Data: data, Epoch: 5}); err != nil {
		t.Fatal(err)
	}
	q.turn.Created = 8 // the answer keeps the time at which it was begun
	for received, want := range []error{nil, nil, nil, hastate.ErrConflict} {
		q.received = received
		a, err := s.prepare(ctx, term, q)
		wantErr(t, err, want)
		if err == nil && (len(a.script.tokens) != 2 || a.q.turn.Created != 7 || a.header != nil) {
			t.Fatalf("%+v", a)
		}
	}
	if _, err := store.Append(ctx, Append{Group: "default", ID: "s", Offset: uint64(len(data)), Data: []byte{recordToken, 9}, Epoch: 5}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.prepare(ctx, term, q); err == nil {
		t.Fatal("a session that cannot be read was taken")
	}
}
