// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"syscall"
	"time"

	"github.com/hastate/hastate/testcluster/chaos/rig"
)

// latePromote stops a primary's model server for longer than the lease. Orders of its
// node wait in its socket, and the node is killed before it could take them back: when
// the server goes on, it does what it was told for a lease that is over. It is asked
// then, as by a client that has not heard of the new primary.
func latePromote(ctx context.Context, s *stage, d *draw) (broken, error) {
	group := d.group(s)
	early, late := 0.25+0.15*d.Float64(), 2+d.Float64() // leases
	h := s.primary(ctx, group)
	if h == nil || h.Model(group) == nil {
		return broken{}, errNobody
	}
	b := broken{what: fmt.Sprintf("the model server of %s at %s is stopped with orders in its socket, and its node killed", group, h.NodeID()), lost: s.held(ctx, h), spared: s.elsewhere(ctx, h)}
	server := h.Model(group)
	b.then = func(ctx context.Context) error {
		if err := sleep(ctx, time.Duration(early*float64(d.lease))); err != nil {
			return err
		}
		if err := s.kill(true, false, h); err != nil {
			return err
		}
		if err := sleep(ctx, time.Duration(late*float64(d.lease))); err != nil {
			return err
		}
		if err := server.Signal(syscall.SIGCONT); err != nil {
			return err
		}
		return s.askFormer(ctx, h, group, d.lease)
	}
	return b, server.Signal(syscall.SIGSTOP)
}

// askFormer sends requests to a former primary for a while. What it answers it writes
// down itself; that it refuses is what it should do. At least one it must answer: or
// nothing shows that it could have served.
func (s *stage) askFormer(ctx context.Context, h *rig.Host, group string, patience time.Duration) error {
	bound, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	url := "http://" + h.ModelAddress(group) + "/generate"
	err := askWhile(func() bool { return sleep(bound, lookEvery) == nil }, func() error { return askOnce(bound, s.web, url) })
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("ask the former primary of %s: %w", group, err)
	}
	return nil
}

// askWhile asks, whatever comes of it, as long as there is time. That nothing was
// answered is an error, the last one that ask has returned.
func askWhile(more func() bool, ask func() error) error {
	last, answers := errors.New("there was no time to ask"), 0
	for more() {
		if err := ask(); err != nil {
			last = err
		} else {
			answers++
		}
	}
	if answers == 0 {
		return last
	}
	return nil
}

// askOnce sends one request. Any answer will do.
func askOnce(ctx context.Context, web *http.Client, url string) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := web.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
