// SPDX-License-Identifier: Apache-2.0

package textserver

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func TestChat_StreamAndWhole(t *testing.T) {
	s := start(t, Config{})
	s.promote(5, 0)
	const n = 40
	tokens := want(t, n)
	st := s.stream(n, HeaderSession, "a")
	st.tokens(tokens, 0, n, 5)
	st.finish(n)

	resp := s.post("/v1/chat/completions", body(n, false), HeaderSession, "b", HeaderEpoch, "5")
	var c completion
	if err := json.NewDecoder(resp.Body).Decode(&c); err != nil {
		t.Fatal(err)
	}
	if c.Object != "chat.completion" || c.Choices[0].Message.Content != strings.Join(tokens, "") || c.Usage.CompletionTokens != n ||
		c.HA != (position{n, 5}) || resp.Header.Get(HeaderEpoch) != "5" || resp.Header.Get(HeaderSession) != "b" {
		t.Fatalf("%+v %v", c, resp.Header)
	}
	// Without a session the server names one.
	resp = s.post("/v1/chat/completions", body(3, false))
	if resp.StatusCode != http.StatusOK || resp.Header.Get(HeaderSession) == "" {
		t.Fatal(resp.StatusCode, resp.Header)
	}
	// The user field names a session too, and content may come in parts.
	b := body(n, false)
	b["user"], b["messages"] = "a", []map[string]any{{"role": "user", "content": []map[string]any{{"type": "text", "text": story}, {"type": "image_url"}}}}
	resp = s.post("/v1/chat/completions", b, HeaderReceived, "38")
	if err := json.NewDecoder(resp.Body).Decode(&c); err != nil || c.Choices[0].Message.Content != tokens[38]+tokens[39] {
		t.Fatalf("%+v %v", c, err)
	}
}

func TestChat_Resume(t *testing.T) {
	store := NewMemoryStore()
	held := newHeldStore(30)
	held.MemoryStore = store
	old, fresh := start(t, Config{Store: held}), start(t, Config{Store: store})
	old.promote(5, 0)
	const n = 2000 // more than the held store lets through, however it is batched
	tokens := want(t, n)
	st := old.stream(n, HeaderSession, "s")
	st.tokens(tokens, 0, 30, 5)

	// The old primary is lost; the new one goes on where the client is.
	store.Grant("default", 9)
	close(held.released)
	fresh.promote(9, 0)
	cont := fresh.stream(n, HeaderSession, "s", HeaderReceived, "30")
	cont.tokens(tokens, 30, n-30, 9)
	cont.finish(n)
	// The old one finds out by its next append, and stops.
	if got := st.cut(tokens, 30, "not_primary"); got >= n {
		t.Fatalf("the old primary sent all %d tokens", got)
	}
	wantRefused(t, old.post("/v1/chat/completions", body(n, true), HeaderSession, "s"), 503, "not_primary")
	if st, _ := old.role.status(); st.GetRole() != pb.Role_ROLE_STANDBY || st.GetEpoch() != 9 {
		t.Fatal(st)
	}

	// A client that has it all gets the end only; the whole answer is there too.
	fresh.stream(n, HeaderSession, "s", HeaderReceived, strconv.Itoa(n)).finish(n)
	again := fresh.stream(n, HeaderSession, "s")
	again.tokens(tokens, 0, n, 9)
	again.finish(n)

	wantRefused(t, fresh.post("/v1/chat/completions", body(n, true), HeaderSession, "new", HeaderReceived, "3"), 409, "session_conflict")
	wantRefused(t, fresh.post("/v1/chat/completions", body(n+1, true), HeaderSession, "s", HeaderReceived, "3"), 409, "session_conflict")
	// A new turn begins from 0, and the one before is forgotten.
	next := fresh.stream(n+1, HeaderSession, "s")
	next.tokens(want(t, n+1), 0, n+1, 9)
	next.finish(n + 1)
	kept, err := store.Load(context.Background(), "default", "s")
	if err != nil || kept.Base == 0 {
		t.Fatal(kept.Base, err)
	}
	script, err := decodeStream(kept)
	if err != nil || script.start != kept.Base || len(script.tokens) != n+1 {
		t.Fatal(script, err)
	}
}

func TestChat_Reconnect(t *testing.T) {
	s := start(t, slow())
	s.promote(5, 0)
	tokens := want(t, long)
	first := s.stream(long, HeaderSession, "s")
	first.tokens(tokens, 0, 10, 5)
	second := s.stream(long, HeaderSession, "s", HeaderReceived, "10")
	second.tokens(tokens, 10, 20, 5)
	first.cut(tokens, 10, "session_taken_over")
}

func TestChat_Refused(t *testing.T) {
	s := start(t, Config{})
	wantRefused(t, s.post("/v1/chat/completions", body(3, true)), 503, "not_primary")
	s.promote(5, 0)
	change := func(key string, v any) map[string]any {
		b := body(3, true)
		b[key] = v
		return b
	}
	for name, tc := range map[string]struct {
		body    any
		headers []string
		status  int
		code    string
	}{
		"no JSON":        {"x", nil, 400, "invalid_request"},
		"no messages":    {change("messages", nil), nil, 400, "invalid_request"},
		"too many":       {change("max_tokens", MaxTokens+1), nil, 400, "invalid_request"},
		"none":           {change("max_completion_tokens", 0), nil, 400, "invalid_request"},
		"other model":    {change("model", "gpt"), nil, 404, "model_not_found"},
		"long prompt":    {change("messages", []map[string]any{{"content": strings.Repeat("x", maxTurnHeader)}}), nil, 400, "context_length_exceeded"},
		"huge body":      {change("messages", []map[string]any{{"content": strings.Repeat("x", maxBody)}}), nil, 400, "invalid_request"},
		"bad session":    {change("user", "a\nb"), nil, 400, "invalid_request"},
		"long session":   {body(3, true), []string{HeaderSession, strings.Repeat("s", 257)}, 400, "invalid_request"},
		"bad received":   {body(3, true), []string{HeaderReceived, "-1"}, 400, "invalid_request"},
		"above received": {body(3, true), []string{HeaderReceived, "4"}, 400, "invalid_request"},
		"no session":     {body(3, true), []string{HeaderReceived, "2"}, 400, "invalid_request"},
		"bad epoch":      {body(3, true), []string{HeaderEpoch, "x"}, 400, "invalid_request"},
		"stale epoch":    {body(3, true), []string{HeaderEpoch, "4"}, 409, "stale_epoch"},
		"newer epoch":    {body(3, true), []string{HeaderEpoch, "6"}, 503, "not_primary"},
	} {
		t.Run(name, func(t *testing.T) {
			wantRefused(t, s.post("/v1/chat/completions", tc.body, tc.headers...), tc.status, tc.code)
		})
	}
	if st, _ := s.role.status(); st.GetInFlight() != 0 {
		t.Fatal(st)
	}
}

func TestHealthAndModels(t *testing.T) {
	s := start(t, Config{})
	get := func(path string) string {
		t.Helper()
		resp, err := s.web.Get("http://" + s.HTTPAddr() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp.StatusCode, err)
		}
		return strings.TrimSpace(string(b))
	}
	if got := get("/health"); got != `{"epoch":0,"role":"standby","status":"ok"}` {
		t.Fatal(got)
	}
	s.promote(5, 0)
	if got := get("/health"); got != `{"epoch":5,"role":"primary","status":"ok"}` {
		t.Fatal(got)
	}
	if got := get("/v1/models"); !strings.Contains(got, fmt.Sprintf("%q", s.ref().GetDigest())) {
		t.Fatal(got)
	}
}
