// SPDX-License-Identifier: Apache-2.0

package textserver

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// The parts of an OpenAI answer.
type (
	completion struct {
		ID      string   `json:"id"`
		Object  string   `json:"object"`
		Created int64    `json:"created"`
		Model   string   `json:"model"`
		Choices []choice `json:"choices"`
		Usage   *usage   `json:"usage,omitempty"`
		HA      position `json:"ha"`
	}
	choice struct {
		Index        int      `json:"index"`
		Delta        *message `json:"delta,omitempty"`
		Message      *message `json:"message,omitempty"`
		FinishReason *string  `json:"finish_reason"`
	}
	message struct {
		Role    string `json:"role,omitempty"`
		Content string `json:"content,omitempty"`
	}
	usage struct {
		PromptTokens     int `json:"prompt_tokens"`
		CompletionTokens int `json:"completion_tokens"`
		TotalTokens      int `json:"total_tokens"`
	}
	// position says where in the answer a piece is. In the last piece, index is
	// the number of tokens: what X-HA-Received would be.
	position struct {
		Index int    `json:"index"`
		Epoch uint64 `json:"epoch"`
	}
)

// completion is a piece of the answer. Its id is the same on every server.
func (a *answer) completion(object string, index int, c choice) completion {
	id := sha256.Sum256(fmt.Appendf(nil, "%s/%s %d", a.s.cfg.Group, a.q.session, a.script.start))
	return completion{
		ID: fmt.Sprintf("chatcmpl-%x", id[:12]), Object: object, Created: a.q.turn.Created, Model: ModelName,
		Choices: []choice{c}, HA: position{Index: index, Epoch: a.term.epoch},
	}
}

// sse is a stream of server-sent events.
type sse struct {
	a       *answer
	w       http.ResponseWriter
	control *http.ResponseController
	// sent is the number of tokens that the client has.
	sent  int
	begun bool
}

// streamTo answers with a stream. An error after the first byte is an event of
// its own, and the stream ends without [DONE].
func (a *answer) streamTo(ctx context.Context, w http.ResponseWriter) {
	out := &sse{a: a, w: w, control: http.NewResponseController(w), sent: a.q.received}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	err := a.run(ctx, out)
	if err == nil {
		err = a.s.role.valid(a.term)
	}
	if err == nil {
		finish := "length"
		err = out.event(a.completion("chat.completion.chunk", out.sent, choice{Delta: &message{}, FinishReason: &finish}))
		if err == nil {
			err = out.write("data: [DONE]\n\n")
		}
	}
	if err != nil {
		r := refusalOf(err)
		a.s.log.Info("textserver: answer cut", "session", a.q.session, "epoch", a.term.epoch, "sent", out.sent, "error", err)
		_ = out.event(map[string]any{ // the client may be gone
			"error": errorBody(r.status, r.code, r.text),
			"ha":    position{Index: out.sent, Epoch: a.term.epoch},
		})
	}
}

func (o *sse) token(i int, text string) error {
	delta := &message{Content: text}
	if !o.begun {
		delta.Role, o.begun = "assistant", true
	}
	if err := o.event(o.a.completion("chat.completion.chunk", i, choice{Delta: delta})); err != nil {
		return err
	}
	o.sent = i + 1
	return nil
}

func (o *sse) event(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	return o.write("data: " + string(b) + "\n\n")
}

func (o *sse) write(s string) error {
	limit := writeTimeout
	for {
		if err := o.control.SetWriteDeadline(time.Now().Add(limit)); err != nil {
			return fmt.Errorf("bound write: %w", err)
		}
		// The end of the term sets a short limit once; it must not be undone.
		if limit == farewell || o.a.term.ctx.Err() == nil {
			break
		}
		limit = farewell
	}
	if _, err := o.w.Write([]byte(s)); err != nil {
		return fmt.Errorf("send to client: %w", err)
	}
	if err := o.control.Flush(); err != nil {
		return fmt.Errorf("send to client: %w", err)
	}
	return nil
}

// whole collects an answer that is not streamed.
type whole struct {
	text strings.Builder
	sent int
}

func (o *whole) token(i int, text string) error {
	o.text.WriteString(text)
	o.sent = i + 1
	return nil
}

// writeTo answers in one piece: the tokens that the client does not have.
func (a *answer) writeTo(ctx context.Context, w http.ResponseWriter) error {
	out := &whole{sent: a.q.received}
	if err := a.run(ctx, out); err != nil {
		return err
	}
	if err := a.s.role.valid(a.term); err != nil {
		return err
	}
	finish := "length"
	c := a.completion("chat.completion", out.sent, choice{Message: &message{Role: "assistant", Content: out.text.String()}, FinishReason: &finish})
	prompt := len(pieces.FindAllString(a.q.turn.Prompt, -1))
	c.Usage = &usage{PromptTokens: prompt, CompletionTokens: out.sent, TotalTokens: prompt + out.sent}
	writeJSON(w, http.StatusOK, c)
	return nil
}
