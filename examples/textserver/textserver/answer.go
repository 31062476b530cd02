// SPDX-License-Identifier: Apache-2.0

package textserver

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hastate/hastate"
)

const (
	// maxAhead is how many tokens may be generated and not yet be durable, and
	// again durable and not yet sent.
	maxAhead = 64
	// sessionTTL is how long the cluster keeps a session after its last token.
	sessionTTL = 24 * time.Hour
)

// errTakenOver ends a request whose session was asked for again: the client has
// reconnected.
var errTakenOver = errors.New("the session was asked for again by another request")

// question is a request for an answer.
type question struct {
	session string
	turn    turn
	// received is how many tokens of the answer the client already has.
	received int
}

// answer is one question that is being answered.
type answer struct {
	s      *Server
	term   *term
	q      question
	script transcript
	// header is the turn record if the answer begins a new turn: it goes in front
	// of the first token.
	header []byte
	// trim is what of the stream may be forgotten with the first append.
	trim uint64
	// client ends when the client goes away: the one thing that ends a hang.
	client context.Context //nolint:containedctx // it is the request's
}

// prepare loads the session and checks that the question fits it.
func (s *Server) prepare(ctx context.Context, t *term, q question) (*answer, error) {
	stream, err := s.store.Load(ctx, s.cfg.Group, q.session)
	if err != nil {
		return nil, err
	}
	script, err := decodeStream(stream)
	if err != nil {
		return nil, fmt.Errorf("read session %s: %w", q.session, err)
	}
	a := &answer{s: s, term: t, q: q, script: script}
	if script.begun && script.turn.sameAs(q.turn) {
		if q.received > len(script.tokens) {
			return nil, &hastate.ConflictError{
				Key: q.session, CurrentOffset: script.end,
				Reason: fmt.Sprintf("the client has %d tokens, the session %d", q.received, len(script.tokens)),
			}
		}
		a.q.turn = script.turn // as it was begun
		return a, nil
	}
	if q.received > 0 {
		return nil, &hastate.ConflictError{
			Key: q.session, CurrentOffset: script.end,
			Reason: fmt.Sprintf("the client has %d tokens of an answer that the session does not have", q.received),
		}
	}
	a.header, err = q.turn.record()
	a.script = transcript{start: script.end, end: script.end}
	a.trim = script.end
	return a, err
}

// sink is what an answer is sent to.
type sink interface {
	// token sends token i.
	token(i int, text string) error
}

// run sends the tokens that the client does not have: those in the session, and
// then new ones, each after it is durable. ctx ends with the term, too. Three steps run side by side, so that
// tokens are generated while others are being stored.
func (a *answer) run(ctx context.Context, out sink) error {
	for i := a.q.received; i < len(a.script.tokens); i++ {
		if err := a.send(out, i, a.script.tokens[i]); err != nil {
			return err
		}
	}
	var (
		group, gctx = errgroup.WithContext(ctx)
		generated   = make(chan string, maxAhead) // closed by generate
		durable     = make(chan string, maxAhead) // closed by store
		first       = len(a.script.tokens)
	)
	group.Go(func() error { return a.generate(gctx, generated) })
	group.Go(func() error { return a.append(gctx, generated, durable) })
	group.Go(func() error {
		for i := first; ; i++ {
			tok, ok := <-durable
			if !ok {
				return nil
			}
			if err := a.send(out, i, tok); err != nil {
				return err
			}
		}
	})
	err := group.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause // the reason behind the reason
	}
	return err
}

// send checks the lease and sends one token.
func (a *answer) send(out sink, i int, tok string) error {
	if err := a.s.fault.wait(a.client); err != nil {
		return err
	}
	if err := a.s.role.valid(a.term); err != nil {
		return err
	}
	return out.token(i, tok)
}

// generate makes tokens at the server's pace until the answer is complete.
func (a *answer) generate(ctx context.Context, out chan<- string) error {
	defer close(out)
	speech := a.s.model().Speak(a.q.turn.Seed, a.q.turn.Prompt)
	toks := append([]string(nil), a.script.tokens...)
	size := int(a.script.end-a.script.start) + len(a.header)
	for len(toks) < a.q.turn.MaxTokens && size < maxTurnBytes {
		if err := a.s.fault.wait(a.client); err != nil {
			return err
		}
		if d := a.s.cfg.TokenDelay; d > 0 && !sleep(ctx, d) {
			return context.Cause(ctx)
		}
		if err := a.s.role.valid(a.term); err != nil {
			return err
		}
		tok := speech.Next(toks)
		toks = append(toks, tok)
		size += len(appendRecord(nil, recordToken, []byte(tok)))
		a.s.steps.Add(1)
		select {
		case out <- tok:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// append stores tokens and passes them on when they are durable. What is
// generated while an append is under way goes into the next one.
func (a *answer) append(ctx context.Context, in <-chan string, out chan<- string) error {
	defer close(out)
	end, header, trim := a.script.end, a.header, a.trim
	for tok := range in {
		batch := gather(tok, in)
		data := header
		for _, tok := range batch {
			data = appendRecord(data, recordToken, []byte(tok))
		}
		after, err := a.s.store.Append(ctx, Append{
			Group: a.s.cfg.Group, ID: a.q.session, Offset: end, Data: data, Epoch: a.term.epoch,
			TrimBefore: trim, Owner: a.s.cfg.Name, TTL: sessionTTL,
		})
		if err != nil {
			return a.refused(err)
		}
		if want := end + uint64(len(data)); after != want {
			return fmt.Errorf("append to session %s: the stream ends at %d, not at %d", a.q.session, after, want)
		}
		end, header, trim = after, nil, 0
		for _, tok := range batch {
			select {
			case out <- tok:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	return nil
}

// gather takes what is there without waiting, at most maxAhead.
func gather(first string, in <-chan string) []string {
	batch := []string{first}
	for len(batch) < maxAhead {
		select {
		case tok, ok := <-in:
			if !ok {
				return batch
			}
			batch = append(batch, tok)
		default:
			return batch
		}
	}
	return batch
}

// refused ends the term if the cluster says that it is over.
func (a *answer) refused(err error) error {
	var fenced *hastate.FencedError
	if errors.As(err, &fenced) {
		a.s.log.Warn("textserver: fenced by the cluster", "epoch", a.term.epoch, "newest", fenced.NewestEpoch)
		a.s.role.fence(a.term.epoch, fenced.NewestEpoch)
		return errFenced
	}
	return err
}

// within makes a context that ends with the term, too.
func within(ctx context.Context, t *term) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(t.ctx, func() { cancel(context.Cause(t.ctx)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// turns lets one request at a time work on a session: a newer one ends the one
// before it.
type turns struct {
	mu      sync.Mutex // guards running
	running map[string]*running
}

type running struct {
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when it has ended
}

// take waits until the session is free, and must be followed by give.
func (t *turns) take(ctx context.Context, session string) (_ context.Context, give func(), err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	me := &running{cancel: cancel, done: make(chan struct{})}
	for {
		t.mu.Lock()
		before := t.running[session]
		if before == nil {
			t.running[session] = me
			t.mu.Unlock()
			return ctx, func() {
				t.mu.Lock()
				defer t.mu.Unlock()
				delete(t.running, session)
				close(me.done)
				cancel(nil)
			}, nil
		}
		t.mu.Unlock()
		before.cancel(errTakenOver)
		select {
		case <-before.done:
		case <-ctx.Done():
			cancel(nil)
			return nil, nil, context.Cause(ctx)
		}
	}
}
