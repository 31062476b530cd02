// SPDX-License-Identifier: Apache-2.0

package textserver

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// testServer is a running server with a client for each of its ports.
type testServer struct {
	*Server
	t    *testing.T
	node pb.InstanceServiceClient
	web  *http.Client
	// stop ends it gracefully and waits.
	stop func()
}

// start runs a server; it is trained when start returns.
func start(t *testing.T, cfg Config) *testServer {
	t.Helper()
	cfg.HTTP, cfg.GRPC, cfg.AllowFaults, cfg.Seed = "127.0.0.1:0", "127.0.0.1:0", true, 1
	if cfg.Drain == 0 {
		cfg.Drain = 50 * time.Millisecond
	}
	srv, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	conn, err := grpc.NewClient(srv.GRPCAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	s := &testServer{Server: srv, t: t, node: pb.NewInstanceServiceClient(conn), web: &http.Client{Transport: &http.Transport{}}}
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run returned %v", err)
		}
		_ = conn.Close()
		s.web.CloseIdleConnections()
	})
	t.Cleanup(s.stop)
	wait.Until(t, patience, func() error {
		if srv.model() == nil {
			return errLoading
		}
		return nil
	})
	return s
}

func (s *testServer) promote(epoch uint64, lease time.Duration) {
	s.t.Helper()
	resp, err := s.node.Promote(context.Background(), &pb.PromoteRequest{
		Group: "default", Epoch: epoch, LeaseMs: uint32(lease.Milliseconds()), Model: s.ref(),
	})
	if err != nil || resp.GetModel().GetDigest() != s.ref().GetDigest() {
		s.t.Fatal(resp, err)
	}
}

const story = "Tell me a story."

// body is a chat request for n tokens.
func body(n int, stream bool) map[string]any {
	return map[string]any{
		"model": ModelName, "stream": stream, "max_tokens": n,
		"messages": []map[string]any{{"role": "user", "content": story}},
	}
}

// want are the n tokens of the answer to body.
func want(t *testing.T, n int) []string {
	t.Helper()
	return say(model(t), 1, "user: "+story+"\n", n)
}

// post sends a request; headers are name, value, name, value ...
func (s *testServer) post(path string, body any, headers ...string) *http.Response {
	s.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		s.t.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodPost, "http://"+s.HTTPAddr()+path, bytes.NewReader(b))
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := s.web.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// wantRefused checks status and code of an error answer.
func wantRefused(t *testing.T, resp *http.Response, status int, code string) {
	t.Helper()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var e struct {
		Error struct{ Message, Type, Code string }
	}
	if err := json.Unmarshal(b, &e); err != nil {
		t.Fatalf("%q: %v", b, err)
	}
	if resp.StatusCode != status || e.Error.Code != code || e.Error.Message == "" || e.Error.Type == "" {
		t.Fatalf("answer %d %s, want %d %s", resp.StatusCode, b, status, code)
	}
	if retry := resp.Header.Get("Retry-After"); (retry != "") != (status == http.StatusServiceUnavailable) {
		t.Fatalf("Retry-After is %q with %d", retry, status)
	}
}

// piece is one event of a stream.
type piece struct {
	ID      string
	Object  string
	Created int64
	Choices []struct {
		Delta        struct{ Role, Content string }
		FinishReason *string `json:"finish_reason"`
	}
	HA    *position
	Error *struct{ Message, Code string }
	done  bool
}

// stream reads events as they come.
type stream struct {
	t *testing.T
	r *bufio.Reader
}

func (s *testServer) stream(n int, headers ...string) *stream {
	s.t.Helper()
	resp := s.post("/v1/chat/completions", body(n, true), headers...)
	if ct := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || ct != "text/event-stream" {
		b, _ := io.ReadAll(resp.Body)
		s.t.Fatalf("answer %d %s: %s", resp.StatusCode, ct, b)
	}
	return &stream{t: s.t, r: bufio.NewReader(resp.Body)}
}

// next reads one event; io.EOF at the end of the stream.
func (s *stream) next() (piece, error) {
	s.t.Helper()
	line, err := s.r.ReadString('\n')
	if err != nil {
		return piece{}, err
	}
	if blank, err := s.r.ReadString('\n'); err != nil || blank != "\n" {
		s.t.Fatalf("after %q: %q, %v, want a blank line", line, blank, err)
	}
	data, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "data: ")
	if !ok {
		s.t.Fatalf("line %q is no data", line)
	}
	if data == "[DONE]" {
		return piece{done: true}, nil
	}
	var p piece
	if err := json.Unmarshal([]byte(data), &p); err != nil {
		s.t.Fatalf("%q: %v", data, err)
	}
	return p, nil
}

// tokens reads n tokens and checks that they are want[from:from+n] under epoch.
func (s *stream) tokens(want []string, from, n int, epoch uint64) {
	s.t.Helper()
	for i := from; i < from+n; i++ {
		p, err := s.next()
		if err != nil || p.Error != nil || p.done || len(p.Choices) != 1 {
			s.t.Fatalf("token %d: %+v %v", i, p, err)
		}
		role := ""
		if i == from {
			role = "assistant"
		}
		if got := p.Choices[0].Delta; got.Content != want[i] || got.Role != role && got.Role != "" || *p.HA != (position{i, epoch}) {
			s.t.Fatalf("token %d is %+v %+v, want %q under epoch %d", i, got, p.HA, want[i], epoch)
		}
	}
}

// finish reads the end of a complete answer of n tokens.
func (s *stream) finish(n int) {
	s.t.Helper()
	p, err := s.next()
	if err != nil || len(p.Choices) != 1 || p.Choices[0].FinishReason == nil || *p.Choices[0].FinishReason != "length" || p.HA.Index != n {
		s.t.Fatalf("last piece is %+v %v", p, err)
	}
	if p, err = s.next(); err != nil || !p.done {
		s.t.Fatalf("end is %+v %v", p, err)
	}
	if _, err = s.next(); err != io.EOF {
		s.t.Fatalf("after the end: %v", err)
	}
}

// cut reads tokens until the stream is cut with an error event, and returns how
// many there were.
func (s *stream) cut(want []string, from int, code string) int {
	s.t.Helper()
	for i := from; ; i++ {
		p, err := s.next()
		if err != nil {
			s.t.Fatalf("token %d: %v", i, err)
		}
		if p.Error != nil {
			if p.Error.Code != code || p.HA.Index != i {
				s.t.Fatalf("cut with %+v at %+v, want %s at %d", p.Error, p.HA, code, i)
			}
			if _, err := s.next(); err != io.EOF {
				s.t.Fatalf("after the cut: %v", err)
			}
			return i
		}
		if p.done || p.Choices[0].Delta.Content != want[i] {
			s.t.Fatalf("token %d is %+v, want %q", i, p, want[i])
		}
	}
}

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
	old := start(t, Config{Store: store, TokenDelay: time.Millisecond})
	old.promote(5, 0)
	const n = 120
	tokens := want(t, n)
	st := old.stream(n, HeaderSession, "s")
	st.tokens(tokens, 0, 30, 5)

	// The old primary is lost; the new one goes on where the client is.
	fresh := start(t, Config{Store: store})
	store.Grant("default", 9)
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
	s := start(t, Config{TokenDelay: time.Millisecond})
	s.promote(5, 0)
	const n = 100
	tokens := want(t, n)
	first := s.stream(n, HeaderSession, "s")
	first.tokens(tokens, 0, 10, 5)
	second := s.stream(n, HeaderSession, "s", HeaderReceived, "10")
	second.tokens(tokens, 10, n-10, 5)
	second.finish(n)
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
