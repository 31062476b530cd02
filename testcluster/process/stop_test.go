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
	"syscall"
	"testing"
	"time"
)

// TestStop asks nodes to end, as an init system would.
func TestStop(t *testing.T) {
	c := newCluster(t, options{models: true})
	t.Run("with a request under way", func(t *testing.T) { stopWhileServing(t, c.as(t)) })
	t.Run("leader", func(t *testing.T) { stopLeader(t, c.as(t)) })
	t.Run("model server", func(t *testing.T) { stopModel(t, c.as(t)) })
	t.Run("second signal", func(t *testing.T) { secondSignal(t, c.as(t)) })
}

// stopped waits for the orderly end of a node.
func stopped(t *testing.T, h *host) {
	t.Helper()
	if code := ended(t, h.node); code != 0 {
		t.Fatalf("%s: exit code %d:\n%s", h.id, code, h.node.Tail())
	}
}

// stopWhileServing: the answer that is being given is given to its end, and the
// next primary begins after it.
func stopWhileServing(t *testing.T, c *cluster) {
	h, epoch := c.serves()
	const tokens = 3000
	answer := c.ask(h, tokens)
	begun := time.Now()
	send(t, h.node, syscall.SIGTERM)
	stopped(t, h)
	t.Logf("%s ended %v after SIGTERM", h.id, time.Since(begun).Round(time.Millisecond))
	if text := <-answer; text != fmt.Sprintf("200 with %d tokens, <nil>", tokens) {
		t.Fatalf("the request under way: %s", text)
	}
	_, next := c.moved(h, epoch)
	c.over(h, epoch)
	tr := c.transition(next)
	if !strings.Contains(tr.GetReason(), "stopping") || tr.GetFrom() != h.id {
		t.Errorf("the history says %v", tr)
	}
	c.startNode(h)
	c.isWhole()
}

// ask asks for a whole answer of so many tokens and waits until it is under way.
// What becomes of it is said on the channel.
func (c *cluster) ask(h *host, tokens int) <-chan string {
	c.t.Helper()
	session := fmt.Sprintf("%s-%d", c.t.Name(), tokens)
	answer := make(chan string, 1)
	go func() { answer <- complete(c.t.Context(), h, session, tokens) }()
	eventually(c.t, "the request to be under way", func() error {
		s, err := c.client.Sessions("").Get(c.t.Context(), session, 0)
		if err == nil && len(s.GetValue()) == 0 {
			err = errors.New("no token yet")
		}
		return err
	})
	return answer
}

func complete(ctx context.Context, h *host, session string, tokens int) string {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	body := fmt.Sprintf(`{"max_tokens":%d,"messages":[{"role":"user","content":"tell me more"}]}`, tokens)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+h.address+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		return err.Error()
	}
	req.Header.Set("X-HA-Session", session)
	resp, err := fresh.Do(req)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	var reply struct {
		Usage struct {
			CompletionTokens int `json:"completion_tokens"`
		} `json:"usage"`
	}
	err = json.NewDecoder(resp.Body).Decode(&reply)
	return fmt.Sprintf("%d with %d tokens, %v", resp.StatusCode, reply.Usage.CompletionTokens, err)
}

func stopLeader(t *testing.T, c *cluster) {
	h := c.leader()
	send(t, h.node, syscall.SIGTERM)
	stopped(t, h)
	if tail := h.node.Tail(); strings.Contains(tail, "level=ERROR") {
		t.Errorf("an orderly stop logs errors:\n%s", tail)
	}
	c.leader(h)
	c.startNode(h)
	c.isWhole()
}

func stopModel(t *testing.T, c *cluster) {
	h, epoch := c.serves()
	send(t, h.model, syscall.SIGTERM)
	if code := ended(t, h.model); code != 0 {
		t.Fatalf("exit code %d:\n%s", code, h.model.Tail())
	}
	c.moved(h, epoch)
	c.over(h, epoch)
	c.startModel(h)
	c.isWhole()
}

// secondSignal: a node that waits for work that is under way can be ended.
func secondSignal(t *testing.T, c *cluster) {
	h, epoch := c.serves()
	answer := c.ask(h, 4000) // takes at least four seconds
	send(t, h.node, syscall.SIGTERM)
	logs(t, h.node.Tail, "drains")
	send(t, h.node, syscall.SIGTERM)
	if code := ended(t, h.node); code != -1 {
		t.Fatalf("exit code %d, but a second signal ends it at once:\n%s", code, h.node.Tail())
	}
	c.moved(h, epoch)
	c.over(h, epoch)
	<-answer
	c.startNode(h)
	c.isWhole()
}
