// SPDX-License-Identifier: Apache-2.0

package client

import (
	"errors"
	"log/slog"
	"slices"
	"sync"

	"google.golang.org/grpc"

	"github.com/hastate/hastate"
)

// maxLearned bounds the addresses that are kept beside the configured ones.
const maxLearned = 16

// endpoint is one node to talk to.
type endpoint struct {
	addr string
	// learned: a node told us; it may be forgotten again.
	learned bool
	conn    *grpc.ClientConn
}

// pool holds the endpoints, the one to try next first. One that failed goes to
// the end; one that was named as the leader comes to the front.
type pool struct {
	dial func(addr string) (*grpc.ClientConn, error)
	log  *slog.Logger

	mu        sync.Mutex  // guards all below
	endpoints []*endpoint // never empty until closed
	closed    bool
}

func newPool(addrs []string, dial func(string) (*grpc.ClientConn, error), log *slog.Logger) (*pool, error) {
	p := &pool{dial: dial, log: log}
	for _, addr := range addrs {
		if p.find(addr) >= 0 {
			continue
		}
		conn, err := dial(addr)
		if err != nil {
			return nil, errors.Join(err, p.close())
		}
		p.endpoints = append(p.endpoints, &endpoint{addr: addr, conn: conn})
	}
	return p, nil
}

// find returns the position of an address, or -1. mu is held, or p is not
// shared yet.
func (p *pool) find(addr string) int {
	return slices.IndexFunc(p.endpoints, func(e *endpoint) bool { return e.addr == addr })
}

// best returns the endpoint to try next.
func (p *pool) best() (*endpoint, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, hastate.ErrClosed
	}
	return p.endpoints[0], nil
}

func (p *pool) size() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.endpoints)
}

// blame tells the pool how an endpoint failed, so that best returns another one,
// if there is another one. It reports whether the error named a leader to ask.
func (p *pool) blame(failed *endpoint, err error) bool {
	var notLeader *hastate.NotLeaderError
	if errors.As(err, &notLeader) && notLeader.LeaderAddress != "" && notLeader.LeaderAddress != failed.addr {
		if p.prefer(notLeader.LeaderAddress) {
			return true
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// Only if it is still the first: others may have blamed it in the meantime.
	if !p.closed && p.endpoints[0] == failed && len(p.endpoints) > 1 {
		p.endpoints = append(p.endpoints[1:], failed)
		p.log.Debug("endpoint failed, trying the next", "endpoint", failed.addr, "next", p.endpoints[0].addr, "error", err)
	}
	return false
}

// prefer moves an address to the front, learning it if it is new.
func (p *pool) prefer(addr string) bool {
	if checkEndpoint(addr) != nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	i := p.find(addr)
	if i < 0 {
		conn, err := p.dial(addr)
		if err != nil {
			p.log.Warn("leader address is not usable", "address", addr, "error", err)
			return false
		}
		p.forget()
		p.endpoints = slices.Insert(p.endpoints, 0, &endpoint{addr: addr, learned: true, conn: conn})
		return true
	}
	e := p.endpoints[i]
	p.endpoints = slices.Insert(slices.Delete(p.endpoints, i, i+1), 0, e)
	return true
}

// forget makes room for one more learned address. mu is held.
func (p *pool) forget() {
	learned, last := 0, -1
	for i, e := range p.endpoints {
		if e.learned {
			learned, last = learned+1, i
		}
	}
	if learned < maxLearned {
		return
	}
	if err := p.endpoints[last].conn.Close(); err != nil {
		p.log.Debug("closing a connection", "endpoint", p.endpoints[last].addr, "error", err)
	}
	p.endpoints = slices.Delete(p.endpoints, last, last+1)
}

func (p *pool) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	var errs []error
	for _, e := range p.endpoints {
		errs = append(errs, e.conn.Close())
	}
	p.endpoints = nil
	return errors.Join(errs...)
}
