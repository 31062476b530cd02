// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hastate/hastate/client"
	"github.com/hastate/hastate/examples/textserver/textserver"
)

const (
	sessionID = "demo"
	prompt    = "Tell me how a cluster keeps one primary."
	// silence is how long a stream may say nothing before it is given up.
	silence = 400 * time.Millisecond
	// maxLine bounds one line of the event stream.
	maxLine = 64 << 10
)

// stream is the client of the demo: it streams one completion from whoever is
// primary, and resumes after the last token that it has.
type stream struct {
	c *cluster
	// received are the tokens in order of arrival.
	received []received
	faultAt  time.Time
	// updates is the watch of the primary, known what it last said.
	updates <-chan client.Primary
	known   client.Primary
}

type received struct {
	index int
	text  string
	epoch uint64
	at    time.Time
}

func newStream(c *cluster) *stream { return &stream{c: c} }

func (s *stream) faulted(at time.Time) { s.faultAt = at }

// run streams to the end; each token is followed by a call of on with how many
// there are.
func (s *stream) run(ctx context.Context, on func(received int) error) error {
	var failed uint64 // the epoch whose primary failed us
	last := errors.New("no attempt was made")
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the watch
	var err error
	if s.updates, err = s.c.client.WatchPrimary(ctx, ""); err != nil {
		return err
	}
	for {
		p, err := s.primary(ctx, failed)
		if err != nil {
			return fmt.Errorf("find the primary: %w (before: %w)", err, last)
		}
		done, err := s.follow(ctx, p, on)
		switch {
		case done:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("the stream stopped at token %d of %d: %w (before: %w)", len(s.received), tokens, ctx.Err(), last)
		case errors.As(err, new(hookError)):
			return err
		}
		failed, last = p.Epoch, err
	}
}

// hookError is an error that trying again does not mend.
type hookError struct{ error }

// primary waits for a serving primary. One that has just failed is asked again
// too, after a moment: it may have been the connection.
func (s *stream) primary(ctx context.Context, failed uint64) (client.Primary, error) {
	again := time.NewTimer(20 * time.Millisecond)
	defer again.Stop()
	for {
		select { // what the watch has said by now goes first
		case p, ok := <-s.updates:
			if ok {
				s.known = p
				continue
			}
		default:
		}
		if s.known.Serving() && s.known.Epoch != failed {
			return s.known, nil
		}
		select {
		case <-ctx.Done():
			return s.known, ctx.Err()
		case p, ok := <-s.updates:
			if !ok {
				return s.known, errors.New("the watch ended")
			}
			s.known = p
		case <-again.C:
			failed = 0
		}
	}
}

// follow reads the stream of one primary until it ends.
func (s *stream) follow(ctx context.Context, p client.Primary, on func(int) error) (done bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	quiet := time.AfterFunc(silence, cancel)
	defer quiet.Stop()
	body, err := s.open(ctx, p)
	if err != nil {
		return false, err
	}
	defer func() { _ = body.Close() }()
	lines := bufio.NewScanner(body)
	lines.Buffer(make([]byte, 4096), maxLine)
	first := true
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		if data == "[DONE]" {
			return true, nil
		}
		token, ok, err := parseChunk(data)
		if err != nil {
			return false, err
		}
		if !ok {
			continue
		}
		quiet.Reset(silence)
		token.at = time.Now()
		s.received = append(s.received, token)
		if first && !s.faultAt.IsZero() {
			s.c.timeline.add(token.at, "first token from %s: number %d", p.NodeID, token.index)
		}
		first = false
		if err := on(len(s.received)); err != nil {
			return false, hookError{err}
		}
		quiet.Reset(silence)
	}
	return false, lines.Err()
}

func (s *stream) open(ctx context.Context, p client.Primary) (io.ReadCloser, error) {
	body, err := json.Marshal(map[string]any{
		"model": textserver.ModelName, "stream": true, "max_tokens": tokens,
		"messages": []map[string]string{{"role": "user", "content": prompt}},
	})
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+p.Address+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-HA-Session", sessionID)
	req.Header.Set("X-HA-Received", strconv.Itoa(len(s.received)))
	resp, err := s.c.web.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1024)) // only for the error
		_ = resp.Body.Close()
		err := fmt.Errorf("%s answered %s: %s", p.NodeID, resp.Status, text)
		if resp.StatusCode/100 == 4 {
			return nil, hookError{err} // no other primary would answer otherwise
		}
		return nil, err
	}
	return resp.Body, nil
}

// parseChunk reads one event; ok is false if it carries no token.
func parseChunk(data string) (received, bool, error) {
	var chunk struct {
		Choices []struct {
			Delta struct {
				Content string `json:"content"`
			} `json:"delta"`
		} `json:"choices"`
		HA *struct {
			Index int    `json:"index"`
			Epoch uint64 `json:"epoch"`
		} `json:"ha"`
		Error *struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	if err := json.Unmarshal([]byte(data), &chunk); err != nil {
		return received{}, false, fmt.Errorf("decode event: %w", err)
	}
	if chunk.Error != nil {
		return received{}, false, errors.New(chunk.Error.Message)
	}
	if chunk.HA == nil || len(chunk.Choices) == 0 || chunk.Choices[0].Delta.Content == "" {
		return received{}, false, nil
	}
	return received{index: chunk.HA.Index, text: chunk.Choices[0].Delta.Content, epoch: chunk.HA.Epoch}, true, nil
}

// gap is the longest time without a token from the fault on.
func (s *stream) gap() time.Duration {
	var longest time.Duration
	for i := 1; i < len(s.received); i++ {
		if s.received[i].at.After(s.faultAt) {
			longest = max(longest, s.received[i].at.Sub(s.received[i-1].at))
		}
	}
	return longest
}

var undisturbed = sync.OnceValues(func() ([]string, error) {
	model, err := textserver.Train()
	if err != nil {
		return nil, err
	}
	speech, said := model.Speak(seed, "user: "+prompt+"\n"), []string{}
	for range tokens {
		said = append(said, speech.Next(said))
	}
	return said, nil
})

// compare counts the tokens that are missing or wrong, and those that came more
// than once, against what the model says when nothing is broken.
func (s *stream) compare() (lost, repeated int, err error) {
	want, err := undisturbed()
	if err != nil {
		return 0, 0, err
	}
	seen := make([]int, len(want))
	for _, r := range s.received {
		if r.index < 0 || r.index >= len(want) || r.text != want[r.index] {
			lost++
			continue
		}
		seen[r.index]++
	}
	for _, n := range seen {
		switch {
		case n == 0:
			lost++
		case n > 1:
			repeated += n - 1
		}
	}
	return lost, repeated, nil
}
