// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// maxHealthBody bounds what is read of a health answer.
const maxHealthBody = 4 << 10

// httpProbe asks a health URL. Its connection stays open between two looks, so
// that its end wakes the next look: a killed process is found out at once.
type httpProbe struct {
	url, addr string
	timeout   time.Duration
	client    *http.Client
}

func newHTTPProbe(cfg Config, addr string, wake chan struct{}) *httpProbe {
	var dialer net.Dialer
	return &httpProbe{url: cfg.Target, addr: addr, timeout: cfg.Timeout, client: &http.Client{
		// A redirect is an answer that is not 200; following it would probe another
		// server.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			MaxConnsPerHost: 2, MaxIdleConnsPerHost: 1, MaxResponseHeaderBytes: 64 << 10, DisableCompression: true,
			DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := dialer.DialContext(ctx, network, addr)
				if err != nil {
					return nil, err
				}
				return &wakingConn{Conn: conn, wake: wake}, nil
			},
		},
	}}
}

// wakingConn puts a token into wake when the other side ends the connection.
type wakingConn struct {
	net.Conn
	wake   chan struct{}
	closed atomic.Bool // by this side
}

func (c *wakingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil && !c.closed.Load() {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
	return n, err
}

func (c *wakingConn) Close() error {
	c.closed.Store(true)
	return c.Conn.Close()
}

func (h *httpProbe) probe(ctx context.Context) event {
	call, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(call, http.MethodGet, h.url, nil)
	if err != nil {
		return event{kind: failed, reason: text(err.Error())}
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return h.unanswered(ctx, err)
	}
	_, err = io.CopyN(io.Discard, resp.Body, maxHealthBody)
	_ = resp.Body.Close() // it was read as far as it matters
	if err != nil && !errors.Is(err, io.EOF) {
		return h.unanswered(ctx, err)
	}
	reason := fmt.Sprintf("GET %s: %s", h.url, resp.Status)
	switch resp.StatusCode {
	case http.StatusOK:
		return event{kind: heard, status: Status{State: pb.InstanceState_INSTANCE_STATE_READY}}
	case http.StatusServiceUnavailable:
		return event{kind: unready, reason: text(reason)}
	}
	return event{kind: failed, reason: text(reason)}
}

// unanswered asks the port whether the process is gone: the error of a request
// may be that of an old connection, or of one address of several.
func (h *httpProbe) unanswered(ctx context.Context, err error) event {
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, unix.ECONNREFUSED) {
		if where, lerr := look(ctx, h.addr, h.timeout); where == refused {
			return event{kind: gone, reason: text(lerr.Error())}
		}
	}
	return event{kind: failed, reason: text(err.Error())}
}
