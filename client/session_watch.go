// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// SessionChange is one message of a session watch.
type SessionChange struct {
	// Resync: changes were missed, because the revision to go on from is no longer
	// kept. Forget what is known; the current sessions follow, then changes.
	Resync bool
	// Event is the change; nil with Resync, and where only Revision has moved on.
	Event *pb.SessionEvent
	// Revision is up to where everything has been told, with this change: another
	// Watch may begin after it. 0 while the current sessions are being told: one that
	// began after the revision of such an Event would miss changes.
	Revision uint64
}

// Watch calls on with the changes of the sessions whose ids begin with prefix,
// after a revision (0: the current sessions first), in order of revision. It goes
// on at another node when one fails or falls silent, where it left off. It
// returns the error of on, or why ctx ended.
func (s *Sessions) Watch(ctx context.Context, prefix string, after uint64, on func(SessionChange) error) error {
	if s.err != nil {
		return s.err
	}
	ctx, cancel := s.c.bind(ctx)
	defer cancel()
	w := &sessionWatch{s: s, prefix: prefix, after: after, on: on, told: after > 0}
	if err := s.c.follow(ctx, "sessions", w.stream); err != nil {
		return fmt.Errorf("watch sessions of group %q: %w", s.group, err)
	}
	return nil
}

type sessionWatch struct {
	s      *Sessions
	prefix string
	on     func(SessionChange) error
	// after is the revision up to which everything was seen, 0 if the current
	// sessions were not read to their end.
	after uint64
	// told: the consumer may know sessions.
	told bool
}

func (w *sessionWatch) stream(ctx context.Context, cc grpc.ClientConnInterface, g *guard) error {
	if w.after == 0 && w.told {
		w.told = false
		if err := w.on(SessionChange{Resync: true}); err != nil {
			return stopError{err}
		}
	}
	// Nothing comes while nothing changes: the node is asked whether it still
	// answers.
	var probing sync.WaitGroup
	defer probing.Wait()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	probing.Go(func() { w.s.c.probe(ctx, cc, g.cancel) })
	stream, err := pb.NewSessionServiceClient(cc).WatchSessions(ctx,
		&pb.WatchSessionsRequest{Group: w.s.group, Prefix: w.prefix, AfterRevision: w.after})
	if err != nil {
		return err
	}
	for {
		var resp *pb.WatchSessionsResponse
		receive := func() (err error) {
			resp, err = stream.Recv()
			return err
		}
		if g.heard {
			err = receive()
		} else {
			err = g.recv(receive) // the first message comes at once
		}
		if errors.Is(hastate.FromStatus(err), hastate.ErrCompacted) {
			w.after = 0
		}
		if err != nil {
			return err
		}
		if err := w.tell(resp); err != nil {
			return stopError{err}
		}
	}
}

// tell hands on a message, which is complete up to its revision when the last of
// its events has been told.
func (w *sessionWatch) tell(resp *pb.WatchSessionsResponse) error {
	complete := max(w.after, resp.GetRevision())
	events := resp.GetEvents()
	for i, event := range events {
		w.told = true
		change := SessionChange{Event: event, Revision: w.after}
		if i == len(events)-1 {
			change.Revision = complete
		}
		if err := w.on(change); err != nil {
			return err
		}
	}
	if len(events) == 0 && complete > w.after {
		if err := w.on(SessionChange{Revision: complete}); err != nil {
			return err
		}
	}
	w.after = complete
	return nil
}
