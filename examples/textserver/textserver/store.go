// SPDX-License-Identifier: Apache-2.0

package textserver

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hastate/hastate"
)

// Stream is the kept part of a session's stream.
type Stream struct {
	// Base is the offset of the first byte of Data.
	Base uint64
	Data []byte
	// Found is false if there is no such session.
	Found bool
}

// Append adds to a session's stream.
type Append struct {
	Group, ID string
	// Offset is where Data begins; 0 also creates the session.
	Offset uint64
	Data   []byte
	// Epoch of the writer; a stale one is refused with a hastate.FencedError.
	Epoch uint64
	// TrimBefore lets the stream before it be forgotten; 0: keep it.
	TrimBefore uint64
	Owner      string
	TTL        time.Duration
}

// SessionStore keeps the sessions. A returned error of Append other than
// hastate.ErrOutcomeUnknown means that nothing was appended.
type SessionStore interface {
	// Load reads a session; the answer reflects every Append that was
	// acknowledged to anyone.
	Load(ctx context.Context, group, id string) (Stream, error)
	// Append is durable when it returns. The same bytes at the same offset again
	// are a success; anything else that is not at the end is a
	// hastate.ConflictError.
	Append(ctx context.Context, a Append) (end uint64, err error)
	Close() error
}

// MemoryStore is a SessionStore for tests and for trying the server without a
// cluster: nothing survives the process.
type MemoryStore struct {
	mu       sync.Mutex // guards all below
	sessions map[string]Stream
	newest   map[string]uint64 // epoch by group
}

var _ SessionStore = (*MemoryStore)(nil)

// NewMemoryStore makes an empty store.
func NewMemoryStore() *MemoryStore {
	return &MemoryStore{sessions: map[string]Stream{}, newest: map[string]uint64{}}
}

// Grant makes an epoch the newest of a group.
func (s *MemoryStore) Grant(group string, epoch uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.newest[group] = max(s.newest[group], epoch)
}

// Load reads a session.
func (s *MemoryStore) Load(_ context.Context, group, id string) (Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.sessions[group+"/"+id]
	st.Data = append([]byte(nil), st.Data...)
	return st, nil
}

// Append adds to a session.
func (s *MemoryStore) Append(_ context.Context, a Append) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := a.Group + "/" + a.ID
	if newest := s.newest[a.Group]; a.Epoch < newest {
		return 0, &hastate.FencedError{Group: a.Group, Epoch: a.Epoch, NewestEpoch: newest}
	}
	s.newest[a.Group] = max(s.newest[a.Group], a.Epoch)
	st := s.sessions[key]
	end := st.Base + uint64(len(st.Data))
	after := a.Offset + uint64(len(a.Data))
	if a.Offset < end && a.Offset >= st.Base && after <= end && string(st.Data[a.Offset-st.Base:after-st.Base]) == string(a.Data) {
		return end, nil
	}
	if a.Offset != end {
		return 0, &hastate.ConflictError{Key: key, CurrentOffset: end, Reason: fmt.Sprintf("append at offset %d", a.Offset)}
	}
	st.Data = append(st.Data, a.Data...)
	if cut := min(a.TrimBefore, after); cut > st.Base {
		st.Data = append([]byte(nil), st.Data[cut-st.Base:]...)
		st.Base = cut
	}
	st.Found = true
	s.sessions[key] = st
	return after, nil
}

// Close does nothing: the store may be shared.
func (s *MemoryStore) Close() error { return nil }
