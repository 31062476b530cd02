// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// repeatAfter is how long a line of raft's that is said over and over (a peer
// that is down is complained of several times a second) stays unsaid.
const repeatAfter = 10 * time.Second

// maxRepeats bounds the lines that are remembered.
const maxRepeats = 256

// newRaftLogger sends raft's log lines to ours.
func newRaftLogger(log *slog.Logger) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Level: hclog.Debug, Output: io.Discard})
	l.RegisterSink(&raftSink{log: log.With("from", "raft"), said: map[string]*repeat{}})
	return l
}

// raftSink is an hclog sink over slog. What raft calls an error is a peer that
// does not answer, mostly: a warning to us.
type raftSink struct {
	log *slog.Logger
	// mu guards said.
	mu   sync.Mutex
	said map[string]*repeat
}

// repeat is a line that was said, and how often it was left unsaid since.
type repeat struct {
	at     time.Time
	unsaid int
}

// Accept writes one line, or counts it.
func (s *raftSink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	to := slog.LevelDebug
	switch level {
	case hclog.Warn, hclog.Error:
		to = slog.LevelWarn
	case hclog.Info:
		// Elections without a majority come several times a second; what matters of
		// them node says itself.
		to = slog.LevelDebug
	default:
	}
	ctx := context.Background()
	if !s.log.Enabled(ctx, to) {
		return
	}
	if to >= slog.LevelWarn || restless[msg] {
		unsaid, ok := s.say(msg, args)
		if !ok {
			return
		}
		if unsaid > 0 {
			args = append(args, "repeated", unsaid)
		}
	}
	s.log.Log(ctx, to, msg, printable(args)...)
}

// restless are what a node without a majority does several times a second, for as
// long as that lasts.
var restless = map[string]bool{
	"entering candidate state": true, "pre-vote campaign failed, waiting for election timeout": true,
}

// say decides whether a warning is said now.
func (s *raftSink) say(msg string, args []any) (unsaid int, ok bool) {
	key := msg
	for i := 0; i+1 < len(args); i += 2 {
		if name, isText := args[i].(string); isText && (name == "peer" || name == "target" || name == "server-id") {
			key += fmt.Sprint(args[i+1])
		}
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	r, known := s.said[key]
	switch {
	case known && now.Sub(r.at) < repeatAfter:
		r.unsaid++
		return 0, false
	case known:
		unsaid = r.unsaid
	case len(s.said) >= maxRepeats:
		clear(s.said)
	}
	s.said[key] = &repeat{at: now}
	return unsaid, true
}

// printable replaces hclog's deferred formats by their text.
func printable(args []any) []any {
	out := make([]any, len(args))
	for i, a := range args {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			if format, isText := f[0].(string); isText {
				out[i] = fmt.Sprintf(format, f[1:]...)
				continue
			}
		}
		out[i] = a
	}
	return out
}
