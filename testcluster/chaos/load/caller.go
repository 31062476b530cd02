// SPDX-License-Identifier: Apache-2.0

package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/hastate/hastate/client"
	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

const (
	// maxCalls bounds the requests of one caller that are under way.
	maxCalls = 32
	// maxAnswerBytes bounds one answer.
	maxAnswerBytes = 64 << 10
)

// answer is what a model server says that did a request.
type answer struct {
	Node  string        `json:"node"`
	Group string        `json:"group"`
	Epoch uint64        `json:"epoch"`
	At    clock.Instant `json:"at"`
}

// caller sends requests to the primary of a group, as clients know it. A primary
// that hangs does not keep it from asking the next one.
type caller struct {
	l       *Load
	cluster cluster
	group   string
	http    *http.Client
	slots   chan struct{} // capacity maxCalls

	mu      sync.Mutex // guards primary
	primary client.Primary
}

func newCaller(l *Load, c cluster, group string) *caller {
	return &caller{
		l: l, cluster: c, group: group, slots: make(chan struct{}, maxCalls),
		// Connections are kept, also to servers that do not serve now: a server that
		// accepts none any more may serve on over those.
		http: &http.Client{Transport: &http.Transport{
			DialContext: l.o.DialContext, MaxIdleConnsPerHost: maxCalls, IdleConnTimeout: 10 * time.Second,
		}},
	}
}

func (c *caller) run() {
	defer c.http.CloseIdleConnections()
	ctx, cancel := context.WithCancel(c.l.ctx)
	var mine sync.WaitGroup
	mine.Go(func() { c.follow(ctx) })
	mine.Go(func() { c.stray(ctx) })
	for c.l.pause(c.l.o.CallEvery) {
		select {
		case c.slots <- struct{}{}:
		default:
			continue // all under way: their ends are recorded
		}
		mine.Go(func() {
			defer func() { <-c.slots }()
			c.l.requests.add(c.call(ctx))
		})
	}
	cancel()
	mine.Wait()
}

// follow keeps the primary.
func (c *caller) follow(ctx context.Context) {
	for ctx.Err() == nil {
		changes, err := c.cluster.WatchPrimary(ctx, c.group)
		if err == nil {
			for p := range changes {
				c.mu.Lock()
				c.primary = p
				c.mu.Unlock()
			}
		}
		after(ctx, retryEvery)
	}
}

// stray asks any server, one after the other.
func (c *caller) stray(ctx context.Context) {
	servers, rng := c.l.o.Servers[c.group], c.l.rng(-len(c.group))
	for len(servers) > 0 && after(ctx, c.l.o.CallEvery) {
		_, _ = c.askAt(ctx, servers[rng.IntN(len(servers))]) // most are not the primary
	}
}

// call does one request.
func (c *caller) call(ctx context.Context) record.Request {
	r := record.Request{Group: c.group, Call: c.l.o.Clock.Now()}
	got, err := c.ask(ctx)
	r.Return = c.l.o.Clock.Now()
	if err != nil {
		r.Error = err.Error()
		return r
	}
	r.Node, r.Epoch = got.Node, got.Epoch
	return r
}

func (c *caller) ask(ctx context.Context) (got answer, err error) {
	c.mu.Lock()
	p := c.primary
	c.mu.Unlock()
	if !p.Serving() {
		return got, client.ErrNoPrimary
	}
	return c.askAt(ctx, p.Address)
}

func (c *caller) askAt(ctx context.Context, address string) (got answer, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.l.o.CallTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+"/generate", nil)
	if err != nil {
		return got, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return got, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	switch {
	case err != nil:
		return got, err
	case resp.StatusCode != http.StatusOK:
		return got, fmt.Errorf("%s answered %s", address, resp.Status)
	}
	if err := json.Unmarshal(body, &got); err != nil {
		return got, fmt.Errorf("%s: %w", address, err)
	}
	if got.Node == "" || got.Group != c.group {
		return got, fmt.Errorf("%s answered as %q of group %q", address, got.Node, got.Group)
	}
	return got, nil
}

// errNoGroup: nobody calls the primary of that group.
var errNoGroup = errors.New("no requests of that group")

// Gap is the longest time between from and until in which no request to the
// primary of a group was answered. It is an error if there were no requests.
func (l *Load) Gap(group string, from, until clock.Instant) (time.Duration, error) {
	asked := false
	ends := []clock.Instant{from, until}
	for _, r := range l.Requests(0) {
		if r.Group != group || r.Return < from || r.Return > until {
			continue
		}
		asked = true
		if r.Error == "" {
			ends = append(ends, r.Return)
		}
	}
	if !asked {
		return 0, fmt.Errorf("gap of group %q: %w", group, errNoGroup)
	}
	slices.Sort(ends)
	longest := time.Duration(0)
	for i := 1; i < len(ends); i++ {
		longest = max(longest, ends[i].Sub(ends[i-1]))
	}
	return longest, nil
}

// after waits; false: ctx has ended.
func after(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
