// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"context"
	"fmt"
	"time"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// probed is an unmodified server: a probe says how it is, hooks give it its
// role.
type probed struct {
	cfg  Config
	addr string
	// probe takes one look; it ends within cfg.Timeout.
	probe func(ctx context.Context) event
	// wake has a token when something happened that calls for a look now.
	wake chan struct{}
	// free drops idle connections.
	free  func()
	guard *guard
}

func openProbed(cfg Config) (*probed, error) {
	addr, err := cfg.address()
	if err != nil {
		return nil, fmt.Errorf("%w: instance: %w", hastate.ErrInvalid, err)
	}
	p := &probed{cfg: cfg, addr: addr, wake: make(chan struct{}, 1), free: func() {}, guard: newGuard()}
	if cfg.Kind == KindTCP {
		p.probe = p.probeTCP
		return p, nil
	}
	h := newHTTPProbe(cfg, addr, p.wake)
	p.probe, p.free = h.probe, h.client.CloseIdleConnections
	return p, nil
}

func (p *probed) Info(context.Context) (Info, error) { return Info{Engine: p.cfg.Kind}, nil }

func (p *probed) Load(context.Context, *pb.ModelRef) error {
	return fmt.Errorf("%w: instance %s of kind %s cannot be told to load a model: give it the model when it starts", hastate.ErrPrecondition, p.cfg.Target, p.cfg.Kind)
}

func (p *probed) Close() error {
	p.free()
	return nil
}

func (p *probed) Watch(ctx context.Context, report func(Status)) error {
	v := &view{interval: p.cfg.Interval, failAfter: p.cfg.FailAfter}
	return watch(ctx, v, func(st Status) { report(p.guard.mark(st)) }, p.feed)
}

// minWake and wakeRate bound the looks that broken connections call for: some
// servers close every connection after one answer.
const (
	minWake  = 200 * time.Millisecond
	wakeRate = 5
)

// feed probes once an interval, and sooner when an idle connection breaks; then
// after minWake or a fraction of the interval at the earliest.
func (p *probed) feed(ctx context.Context, emit func(event) bool) {
	for {
		e := p.probe(ctx)
		if e.kind == gone {
			p.guard.gone()
		}
		if ctx.Err() != nil || !emit(e) {
			return
		}
		first := min(p.cfg.Interval/wakeRate, minWake)
		if !pause(ctx, first, nil) || !pause(ctx, p.cfg.Interval-first, p.wake) {
			return
		}
	}
}

// probeTCP: a connection that is accepted is READY.
func (p *probed) probeTCP(ctx context.Context) event {
	where, err := look(ctx, p.addr, p.cfg.Timeout)
	switch where {
	case accepted:
		return event{kind: heard, status: Status{State: pb.InstanceState_INSTANCE_STATE_READY}}
	case refused:
		return event{kind: gone, reason: text(err.Error())}
	}
	return event{kind: failed, reason: text(err.Error())}
}

// Clock: such a server counts no lease.
func (p *probed) Clock(context.Context, time.Duration) (uint64, time.Duration, error) {
	return 0, 0, nil
}

// Promote runs the hook, if there is one, and then takes a fresh look.
func (p *probed) Promote(ctx context.Context, pr Promotion) (*pb.ModelRef, error) {
	pr, err := pr.checked()
	if err != nil {
		return nil, err
	}
	ctx, cancel := withDeadline(ctx, DefaultPromoteTimeout)
	defer cancel()
	hook, finish, err := p.guard.promote(ctx, pr.Group, pr.Epoch)
	if err != nil {
		return nil, fmt.Errorf("promote instance %s: %w", p.cfg.Target, err)
	}
	err = p.promote(hook, pr)
	if over := finish(err == nil); over != nil {
		err = over
	}
	if err != nil {
		return nil, fmt.Errorf("promote instance %s: %w", p.cfg.Target, err)
	}
	return nil, nil //nolint:nilnil // such a server does not say which model it serves
}

func (p *probed) promote(ctx context.Context, pr Promotion) error {
	if len(p.cfg.Hooks.Promote) > 0 {
		call, cancel := reserve(ctx, p.cfg.Timeout)
		defer cancel()
		if err := runHook(call, p.cfg.Hooks.Promote, orderOfPromotion(pr)); err != nil {
			return err
		}
	}
	e := p.probe(ctx)
	if e.kind != heard || e.status.State != pb.InstanceState_INSTANCE_STATE_READY {
		return fmt.Errorf("%w: it is not healthy: %s", hastate.ErrPrecondition, e.reason)
	}
	return nil
}

// Demote runs the hook. Without one there is nothing that could be done to the
// server: it succeeds only if the process is gone.
func (p *probed) Demote(ctx context.Context, d Demotion) error {
	d, err := d.checked()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, d.Deadline)
	defer cancel()
	finish, err := p.guard.demote(ctx, d.Group, d.Epoch)
	if err != nil {
		return fmt.Errorf("demote instance %s: %w", p.cfg.Target, err)
	}
	err = p.demote(ctx, d)
	finish(err == nil)
	if err != nil {
		return fmt.Errorf("demote instance %s: %w", p.cfg.Target, err)
	}
	return nil
}

func (p *probed) demote(ctx context.Context, d Demotion) error {
	if len(p.cfg.Hooks.Demote) > 0 {
		call, cancel := reserve(ctx, min(p.cfg.Timeout, 100*time.Millisecond))
		defer cancel()
		err := runHook(call, p.cfg.Hooks.Demote, orderOfDemotion(d))
		if err == nil {
			return nil
		}
		if where, _ := look(ctx, p.addr, p.cfg.Timeout); where == refused {
			return nil
		}
		return err
	}
	if where, _ := look(ctx, p.addr, p.cfg.Timeout); where == refused {
		return nil
	}
	return fmt.Errorf("%w: it runs and there is no demote hook: configure one, or let the node gate its port or kill it", hastate.ErrPrecondition)
}
