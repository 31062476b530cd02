// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"io"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// newRaftLogger sends raft's log lines to ours, at the level that they have.
func newRaftLogger(log *slog.Logger) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Level: hclog.Debug, Output: io.Discard})
	l.RegisterSink(&raftSink{log: log.With("from", "raft")})
	return l
}

// raftSink is an hclog sink over slog.
type raftSink struct{ log *slog.Logger }

// Accept writes one line.
func (s *raftSink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	to := slog.LevelDebug
	switch level {
	case hclog.Warn:
		to = slog.LevelWarn
	case hclog.Error:
		to = slog.LevelError
	case hclog.Info:
		to = slog.LevelInfo
	default:
	}
	if !s.log.Enabled(context.Background(), to) {
		return
	}
	for i, a := range args {
		if f, ok := a.(hclog.Format); ok { // raft's way to say "format these"
			args[i] = f
		}
	}
	s.log.Log(context.Background(), to, msg, args...)
}
