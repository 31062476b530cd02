// SPDX-License-Identifier: Apache-2.0

//go:build process

package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// probe is what a node's HTTP port says.
type probe struct {
	OK     bool   `json:"ok"`
	Reason string `json:"reason"`
	Epoch  uint64 `json:"epoch"`
	Leader string `json:"leader"`
}

// probe asks GET /path; a node that does not answer gives an error.
func (h *host) probe(ctx context.Context, path string) (probe, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+h.web+path, nil)
	if err != nil {
		return probe{}, err
	}
	resp, err := fresh.Do(req)
	if err != nil {
		return probe{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	var p probe
	if err := json.NewDecoder(resp.Body).Decode(&p); err != nil {
		return p, fmt.Errorf("%s says %s: %w", path, resp.Status, err)
	}
	if want := map[bool]int{true: http.StatusOK, false: http.StatusServiceUnavailable}[p.OK]; resp.StatusCode != want {
		return p, fmt.Errorf("%s says %s with %+v", path, resp.Status, p)
	}
	return p, nil
}

// fresh makes a new connection for each request: one to a process that was ended
// is not used again.
var fresh = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// chat asks a model server for an answer under an epoch and returns the HTTP
// status and what came.
func (h *host) chat(ctx context.Context, epoch uint64) (int, string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	body := `{"max_tokens":3,"messages":[{"role":"user","content":"hello"}]}`
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+h.address+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("X-HA-Epoch", fmt.Sprint(epoch))
	resp, err := fresh.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	return resp.StatusCode, readAll(resp.Body), nil
}

// serves fails the test unless the primary answers under its epoch; a primary
// that has changed meanwhile is asked again.
func (c *cluster) serves() (*host, uint64) {
	c.t.Helper()
	var h *host
	var epoch uint64
	eventually(c.t, "the primary to answer", func() error {
		h, epoch = c.serving(0)
		status, text, err := h.chat(c.t.Context(), epoch)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%s: %d %s", h.id, status, text)
		}
		return err
	})
	return h, epoch
}

// over fails the test unless an epoch is over for good: the model server that
// had it refuses, its node does not call it primary, and the cluster refuses its
// writes. Those who run are asked once: they must know at once.
func (c *cluster) over(h *host, epoch uint64) {
	c.t.Helper()
	if h.model.Running() {
		if status, text, err := h.chat(c.t.Context(), epoch); err == nil && status/100 != 4 && status/100 != 5 {
			c.t.Fatalf("%s still answers under epoch %d: %d %s", h.id, epoch, status, text)
		}
	}
	if h.node.Running() {
		if p, err := h.probe(c.t.Context(), "/primary"); err == nil && p.OK && p.Epoch <= epoch {
			c.t.Fatalf("%s still calls itself primary: %+v", h.id, p)
		}
	}
	_, err := c.client.Sessions("").Put(within(c.t), &pb.PutRequest{Session: &pb.Session{Id: "of-an-old-epoch", Epoch: epoch}})
	var fenced *hastate.FencedError
	if !errors.As(err, &fenced) || fenced.NewestEpoch <= epoch {
		c.t.Fatalf("a write under epoch %d: %v", epoch, err)
	}
}

// moved waits for a primary other than one that has failed.
func (c *cluster) moved(from *host, epoch uint64) (*host, uint64) {
	c.t.Helper()
	to, next := c.serving(epoch)
	if to == from {
		c.t.Fatalf("%s got it back although it cannot serve", from.id)
	}
	return to, next
}

// isWhole waits until a cluster is as it was at its start.
func (c *cluster) isWhole() {
	c.t.Helper()
	c.leader()
	c.ready(len(c.hosts))
	c.serves()
}

// noPrimary says that an error is only that nobody serves now.
func noPrimary(err error) bool { return errors.Is(err, client.ErrNoPrimary) }

// logs waits until a process has printed a text.
func logs(t *testing.T, tail func() string, text string) {
	t.Helper()
	eventually(t, "the text "+text, func() error {
		if !strings.Contains(tail(), text) {
			return errors.New(tail())
		}
		return nil
	})
}
