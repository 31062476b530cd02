// SPDX-License-Identifier: Apache-2.0

package textserver

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// The headers of highly available answers.
const (
	// HeaderSession names the session, in requests and answers.
	HeaderSession = "X-HA-Session"
	// HeaderReceived is the number of tokens that the client has already.
	HeaderReceived = "X-HA-Received"
	// HeaderEpoch is the fencing token: of the server in answers; in requests, of
	// the primary that the sender means.
	HeaderEpoch = "X-HA-Epoch"
)

const (
	// maxBody bounds a request.
	maxBody = 1 << 20
	// writeTimeout bounds the sending of one piece to a slow client.
	writeTimeout = 10 * time.Second
	// farewell is how long a cut answer may take to say why.
	farewell = 250 * time.Millisecond
)

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/chat/completions", s.serveChat)
	mux.HandleFunc("GET /v1/models", s.serveModels)
	mux.HandleFunc("GET /health", s.serveHealth)
	if s.cfg.AllowFaults {
		mux.HandleFunc("POST /fault/{what}", s.fault.serve)
	}
	return mux
}

// serveHealth says 200 to a trained server, primary or not, hung or not.
func (s *Server) serveHealth(w http.ResponseWriter, _ *http.Request) {
	st, _ := s.role.status()
	if st.GetState() == pb.InstanceState_INSTANCE_STATE_LOADING {
		writeError(w, http.StatusServiceUnavailable, "loading", errLoading.Error())
		return
	}
	role := strings.ToLower(strings.TrimPrefix(st.GetRole().String(), "ROLE_"))
	writeJSON(w, http.StatusOK, map[string]any{"status": "ok", "role": role, "epoch": st.GetEpoch()})
}

func (s *Server) serveModels(w http.ResponseWriter, r *http.Request) {
	if err := s.fault.wait(r.Context()); err != nil {
		return // the client is gone
	}
	models := []map[string]any{}
	if ref := s.ref(); ref != nil {
		models = append(models, map[string]any{
			"id": ref.GetName(), "object": "model", "created": 0, "owned_by": "hastate",
			"version": ref.GetVersion(), "digest": ref.GetDigest(),
		})
	}
	writeJSON(w, http.StatusOK, map[string]any{"object": "list", "data": models})
}

// chatRequest is the part of an OpenAI request that means something here.
type chatRequest struct {
	Model    string `json:"model"`
	Messages []struct {
		Role    string  `json:"role"`
		Content content `json:"content"`
	} `json:"messages"`
	Stream              bool    `json:"stream"`
	MaxTokens           *int    `json:"max_tokens"`
	MaxCompletionTokens *int    `json:"max_completion_tokens"`
	Seed                *uint64 `json:"seed"`
	User                string  `json:"user"`
}

// content is a string, or a list of parts of which those of type text count.
type content string

func (c *content) UnmarshalJSON(b []byte) error {
	var parts []struct {
		Type, Text string
	}
	if err := json.Unmarshal(b, &parts); err != nil {
		return json.Unmarshal(b, (*string)(c))
	}
	var text strings.Builder
	for _, p := range parts {
		if p.Type == "text" {
			text.WriteString(p.Text)
		}
	}
	*c = content(text.String())
	return nil
}

// refusal is an answer other than 200.
type refusal struct {
	status     int
	code, text string
}

func (r *refusal) Error() string { return r.text }

func badRequest(format string, args ...any) error {
	return &refusal{http.StatusBadRequest, "invalid_request", fmt.Sprintf(format, args...)}
}

// readQuestion checks a request.
func (s *Server) readQuestion(w http.ResponseWriter, r *http.Request) (q question, stream bool, err error) {
	var req chatRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&req); err != nil {
		return q, false, badRequest("the body is no chat request of at most %d bytes: %v", maxBody, err)
	}
	if req.Model != "" && req.Model != ModelName {
		return q, false, &refusal{http.StatusNotFound, "model_not_found", fmt.Sprintf("there is no model %q: use %q", req.Model, ModelName)}
	}
	if len(req.Messages) == 0 {
		return q, false, badRequest("messages is empty: give at least one")
	}
	var prompt strings.Builder
	for _, m := range req.Messages {
		fmt.Fprintf(&prompt, "%s: %s\n", m.Role, m.Content)
	}
	q.turn = turn{Prompt: strings.ToValidUTF8(prompt.String(), "?"), Seed: s.cfg.Seed, MaxTokens: DefaultTokens, Created: time.Now().Unix()}
	if req.Seed != nil {
		q.turn.Seed = *req.Seed
	}
	for _, n := range []*int{req.MaxTokens, req.MaxCompletionTokens} {
		if n == nil {
			continue
		}
		if q.turn.MaxTokens = *n; *n < 1 || *n > MaxTokens {
			return q, false, badRequest("max_tokens %d must be between 1 and %d", *n, MaxTokens)
		}
	}
	if q.session = r.Header.Get(HeaderSession); q.session == "" {
		q.session = req.User
	}
	if err := checkSession(q.session); err != nil {
		return q, false, err
	}
	if h := r.Header.Get(HeaderReceived); h != "" {
		if q.received, err = strconv.Atoi(h); err != nil || q.received < 0 || q.received > q.turn.MaxTokens {
			return q, false, badRequest("%s %q must be a number of tokens from 0 to max_tokens, %d", HeaderReceived, h, q.turn.MaxTokens)
		}
	}
	if q.session == "" {
		if q.received > 0 {
			return q, false, badRequest("%s needs a session: name it with %s", HeaderReceived, HeaderSession)
		}
		q.session = "anonymous-" + rand.Text()
	}
	return q, req.Stream, nil
}

func checkSession(id string) error {
	if len(id) > hastate.MaxSessionIDBytes || !utf8.ValidString(id) || strings.ContainsFunc(id, unicode.IsControl) {
		return badRequest("the session id must be UTF-8 of at most %d bytes without control characters", hastate.MaxSessionIDBytes)
	}
	return nil
}

// checkEpoch refuses a request that was meant for another term.
func checkEpoch(r *http.Request, t *term) error {
	h := r.Header.Get(HeaderEpoch)
	if h == "" {
		return nil
	}
	epoch, err := strconv.ParseUint(h, 10, 64)
	switch {
	case err != nil:
		return badRequest("%s %q must be a number", HeaderEpoch, h)
	case epoch < t.epoch:
		return &refusal{http.StatusConflict, "stale_epoch", fmt.Sprintf("the request is for epoch %d, this server has %d", epoch, t.epoch)}
	case epoch > t.epoch:
		return errNotPrimary
	}
	return nil
}

// serveChat answers one chat request.
func (s *Server) serveChat(w http.ResponseWriter, r *http.Request) {
	if err := s.fault.wait(r.Context()); err != nil {
		return // the client is gone
	}
	q, stream, err := s.readQuestion(w, r)
	if err != nil {
		writeRefusal(w, err)
		return
	}
	t, leave, err := s.role.enter()
	if err != nil {
		writeRefusal(w, err)
		return
	}
	defer leave()
	if err := checkEpoch(r, t); err != nil {
		writeRefusal(w, err)
		return
	}
	q.turn.Model = s.ref().GetDigest()
	ctx, give, err := s.turns.take(r.Context(), q.session)
	if err != nil {
		writeRefusal(w, err)
		return
	}
	defer give()
	ctx, cancel := within(ctx, t)
	defer cancel()
	// A client that does not read must not hold up the end of the term.
	stop := context.AfterFunc(ctx, func() {
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(farewell)) // HTTP/1 and 2 have it
	})
	defer stop()
	a, err := s.prepare(ctx, t, q)
	if err == nil {
		a.client = r.Context()
		w.Header().Set(HeaderSession, q.session)
		w.Header().Set(HeaderEpoch, strconv.FormatUint(t.epoch, 10))
		if stream {
			a.streamTo(ctx, w)
			return
		}
		err = a.writeTo(ctx, w)
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if err != nil {
		writeRefusal(w, err)
	}
}

// refusalOf says what an error means to a client.
func refusalOf(err error) *refusal {
	var r *refusal
	if errors.As(err, &r) {
		return r
	}
	for _, known := range []struct {
		err    error
		status int
		code   string
	}{
		{errLoading, http.StatusServiceUnavailable, "loading"},
		{errNotPrimary, http.StatusServiceUnavailable, "not_primary"},
		{errDemoted, http.StatusServiceUnavailable, "not_primary"},
		{errFenced, http.StatusServiceUnavailable, "not_primary"},
		{errLeaseOver, http.StatusServiceUnavailable, "not_primary"},
		{errDraining, http.StatusServiceUnavailable, "draining"},
		{errClosing, http.StatusServiceUnavailable, "draining"},
		{errTakenOver, http.StatusConflict, "session_taken_over"},
		{hastate.ErrConflict, http.StatusConflict, "session_conflict"},
		{hastate.ErrNotLeader, http.StatusServiceUnavailable, "store_unavailable"},
		{hastate.ErrNoLeader, http.StatusServiceUnavailable, "store_unavailable"},
		{hastate.ErrOutcomeUnknown, http.StatusServiceUnavailable, "store_unavailable"},
	} {
		if errors.Is(err, known.err) {
			return &refusal{known.status, known.code, err.Error()}
		}
	}
	var limit *hastate.LimitError
	switch {
	case errors.As(err, &limit) && limit.Limit == "textserver.prompt_bytes":
		return &refusal{http.StatusBadRequest, "context_length_exceeded", err.Error()}
	case errors.Is(err, hastate.ErrLimit):
		return &refusal{http.StatusServiceUnavailable, "overloaded", err.Error()}
	}
	return &refusal{http.StatusInternalServerError, "internal", err.Error()}
}

func writeRefusal(w http.ResponseWriter, err error) {
	r := refusalOf(err)
	writeError(w, r.status, r.code, r.text)
}

// errorBody is an error as OpenAI clients expect it.
func errorBody(status int, code, text string) map[string]any {
	kind := "invalid_request_error"
	if status >= http.StatusInternalServerError {
		kind = "server_error"
	}
	return map[string]any{"message": text, "type": kind, "code": code}
}

func writeError(w http.ResponseWriter, status int, code, text string) {
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	writeJSON(w, status, map[string]any{"error": errorBody(status, code, text)})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // a client that is gone has no use for it
}
