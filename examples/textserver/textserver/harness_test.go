// SPDX-License-Identifier: Apache-2.0

package textserver

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
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
		if st, _ := srv.role.status(); st.GetState() != pb.InstanceState_INSTANCE_STATE_READY {
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
	if _, err = s.next(); !errors.Is(err, io.EOF) {
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
			if _, err := s.next(); !errors.Is(err, io.EOF) {
				s.t.Fatalf("after the cut: %v", err)
			}
			return i
		}
		if p.done || p.Choices[0].Delta.Content != want[i] {
			s.t.Fatalf("token %d is %+v, want %q", i, p, want[i])
		}
	}
}

// heldStore lets a number of appends through and holds the others until it is
// released: an answer stays unfinished for as long as a test needs it.
type heldStore struct {
	*MemoryStore
	free     chan struct{} // a token for each append that may go through
	released chan struct{} // closed when all may
}

func newHeldStore(free int) *heldStore {
	s := &heldStore{MemoryStore: NewMemoryStore(), free: make(chan struct{}, free), released: make(chan struct{})}
	for range free {
		s.free <- struct{}{}
	}
	return s
}

func (s *heldStore) Append(ctx context.Context, a Append) (uint64, error) {
	select {
	case <-s.free:
	case <-s.released:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	return s.MemoryStore.Append(ctx, a)
}
