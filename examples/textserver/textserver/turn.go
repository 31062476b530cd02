// SPDX-License-Identifier: Apache-2.0

package textserver

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/hastate/hastate"
)

// A session's stream is a row of records: kind, length (uvarint), payload. A
// turn record begins an answer and holds all that is needed to go on with it;
// the token records after it are the answer. When a new turn begins, what is
// before it is trimmed, so the kept part of a stream begins with a turn record.
const (
	recordTurn  = 1
	recordToken = 2
)

const (
	// maxTurnBytes bounds one turn's records; the cluster keeps 64 KiB a session.
	maxTurnBytes = hastate.DefaultSessionValueBytes - 4<<10
	// maxTurnHeader bounds the turn record, that is, the prompt.
	maxTurnHeader = 24 << 10
	// MaxTokens bounds an answer, and DefaultTokens is its length if the client
	// asks for none.
	MaxTokens     = 4096
	DefaultTokens = 128
)

// turn is the payload of a turn record.
type turn struct {
	Prompt    string `json:"prompt"`
	Seed      uint64 `json:"seed"`
	MaxTokens int    `json:"max_tokens"`
	// Model is the digest that the turn was begun with.
	Model string `json:"model"`
	// Created is when, for the answer's "created" field, Unix seconds.
	Created int64 `json:"created"`
}

// sameAs reports whether a request asks for this turn.
func (t turn) sameAs(o turn) bool {
	return t.Prompt == o.Prompt && t.Seed == o.Seed && t.MaxTokens == o.MaxTokens
}

// transcript is a session's last turn as it is in the cluster.
type transcript struct {
	turn   turn
	tokens []string
	// start is the stream offset of the turn record, end that after the last
	// record.
	start, end uint64
	// begun: there is a turn.
	begun bool
}

func appendRecord(b []byte, kind byte, payload []byte) []byte {
	b = binary.AppendUvarint(append(b, kind), uint64(len(payload)))
	return append(b, payload...)
}

// record is the turn's record.
func (t turn) record() ([]byte, error) {
	payload, err := json.Marshal(t)
	if err != nil {
		return nil, fmt.Errorf("encode turn: %w", err)
	}
	if len(payload) > maxTurnHeader {
		return nil, &hastate.LimitError{Limit: "textserver.prompt_bytes", Maximum: maxTurnHeader, Actual: uint64(len(payload))}
	}
	return appendRecord(nil, recordTurn, payload), nil
}

// decodeStream reads the kept part of a session's stream.
func decodeStream(s Stream) (transcript, error) {
	t := transcript{start: s.Base, end: s.Base + uint64(len(s.Data))}
	for at := 0; at < len(s.Data); {
		kind := s.Data[at]
		size, n := binary.Uvarint(s.Data[at+1:])
		if n <= 0 || size > uint64(len(s.Data)-at-1-n) {
			return t, fmt.Errorf("record at offset %d of the session is cut off", s.Base+uint64(at))
		}
		begin := at + 1 + n
		payload := s.Data[begin : begin+int(size)]
		switch {
		case kind == recordTurn:
			t.turn, t.tokens, t.start, t.begun = turn{}, nil, s.Base+uint64(at), true
			if err := json.Unmarshal(payload, &t.turn); err != nil {
				return t, fmt.Errorf("decode turn at offset %d of the session: %w", t.start, err)
			}
		case kind == recordToken && t.begun:
			t.tokens = append(t.tokens, string(payload))
		case kind == recordToken:
			return t, errors.New("the session begins with a token: its turn is missing")
		default:
			return t, fmt.Errorf("record at offset %d of the session has the unknown kind %d", s.Base+uint64(at), kind)
		}
		at = begin + int(size)
	}
	return t, nil
}
