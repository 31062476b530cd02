// SPDX-License-Identifier: Apache-2.0

package api

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const (
	// maxEventBytes is about how much one WatchSessionsResponse carries.
	maxEventBytes = 1 << 20
	// sessionProgress is how often a watch without changes says how far it is.
	sessionProgress = time.Second
)

// sessionWatch is one WatchSessions stream.
type sessionWatch struct {
	s             *Services
	stream        pb.SessionService_WatchSessionsServer
	group, prefix string
	feed          Feed
	// seen is up to which revision the stream is complete.
	seen uint64
	// listed are the sessions that were sent with the initial state at a revision
	// above the one that the feed begins at: older events of them are past.
	listed map[string]uint64
}

func (x *sessionServer) WatchSessions(req *pb.WatchSessionsRequest, stream pb.SessionService_WatchSessionsServer) error {
	group, err := groupName(req.GetGroup())
	if err = first(err, checkText("prefix", req.GetPrefix(), hastate.MaxSessionIDBytes)); err != nil {
		return err
	}
	if err := x.s.inTouch(); err != nil {
		return err
	}
	w := &sessionWatch{s: x.s, stream: stream, group: group, prefix: req.GetPrefix(), listed: make(map[string]uint64)}
	from := req.GetAfterRevision()
	if from == 0 {
		from = x.s.cfg.State.Revision()
	}
	if w.feed, err = x.s.cfg.State.Subscribe(from); err != nil {
		return err
	}
	defer w.feed.Close()
	w.seen = from
	if req.GetAfterRevision() == 0 {
		if err := w.list(stream.Context()); err != nil {
			return err
		}
	}
	// Also without a change: the client learns that the watch stands.
	if err := stream.Send(&pb.WatchSessionsResponse{Revision: w.seen}); err != nil {
		return err
	}
	return w.run(stream.Context())
}

// list sends the current records. They carry no revision to resume from: who
// resumes in the middle of them starts anew.
func (w *sessionWatch) list(ctx context.Context) error {
	q := SessionQuery{Group: w.group, Prefix: w.prefix, Limit: maxPage}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		sessions, next, err := w.s.page(q)
		if err != nil {
			return err
		}
		var events []*pb.SessionEvent
		for _, one := range sessions {
			if one.GetRevision() > w.seen {
				w.listed[one.GetId()] = one.GetRevision()
			}
			events = append(events, &pb.SessionEvent{Revision: one.GetRevision(), Session: one})
		}
		if len(events) > 0 {
			if err := w.stream.Send(&pb.WatchSessionsResponse{Events: events}); err != nil {
				return err
			}
		}
		if next == "" {
			return nil
		}
		q.After = next
	}
}

// run sends changes until the stream ends. A reader that falls too far behind
// is told so: what was deleted meanwhile is no longer known.
func (w *sessionWatch) run(ctx context.Context) error {
	told := w.seen
	for {
		events, err := next(ctx, w.feed, time.Now().Add(sessionProgress))
		if err != nil {
			return fmt.Errorf("watch sessions: %w", err)
		}
		if err := w.s.inTouch(); err != nil {
			return err
		}
		if len(events) > 0 {
			last := events[len(events)-1].Revision
			if err := w.send(w.merge(events), last); err != nil {
				return err
			}
			w.seen = last
		} else if told != w.seen {
			if err := w.stream.Send(&pb.WatchSessionsResponse{Revision: w.seen}); err != nil {
				return err
			}
			told = w.seen
		}
	}
}

// merge keeps the last change of each watched session, in order of revision.
func (w *sessionWatch) merge(events []Event) []*pb.SessionEvent {
	last := make(map[string]*pb.SessionEvent)
	for _, e := range events {
		s := e.Session.GetSession()
		if e.Session == nil || s.GetGroup() != w.group || !strings.HasPrefix(s.GetId(), w.prefix) {
			continue
		}
		if at, ok := w.listed[s.GetId()]; ok {
			if e.Revision <= at {
				continue
			}
			delete(w.listed, s.GetId())
		}
		last[s.GetId()] = e.Session
	}
	out := make([]*pb.SessionEvent, 0, len(last))
	for _, e := range last {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b *pb.SessionEvent) int { return cmp.Compare(a.GetRevision(), b.GetRevision()) })
	return out
}

// send sends events in messages of bounded size. Each message is complete up to
// its last event; the last one up to revision.
func (w *sessionWatch) send(events []*pb.SessionEvent, revision uint64) error {
	for len(events) > 0 {
		n, size := 0, 0
		for n < len(events) && (n == 0 || size < maxEventBytes) {
			size += proto.Size(events[n])
			n++
		}
		res := &pb.WatchSessionsResponse{Events: events[:n], Revision: events[n-1].GetRevision()}
		if events = events[n:]; len(events) == 0 {
			res.Revision = revision
		}
		if err := w.stream.Send(res); err != nil {
			return err
		}
	}
	return nil
}
