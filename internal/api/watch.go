// SPDX-License-Identifier: Apache-2.0

package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const (
	// maxWatchedGroups bounds the list of a WatchRequest.
	maxWatchedGroups = 1024
	// manyGroups: above it heartbeats carry so much that they come slower.
	manyGroups    = 100
	slowHeartbeat = time.Second
)

// groupWatch is one Watch stream.
type groupWatch struct {
	s      *Services
	stream pb.GroupService_WatchServer
	// wanted groups; empty: all.
	wanted map[string]bool
	feed   Feed
	// seen is up to which revision the stream is complete.
	seen uint64
	// sent is the revision of each group as last sent from the current state:
	// older events of it are contained in that.
	sent map[string]uint64
}

func (x *groupServer) Watch(req *pb.WatchRequest, stream pb.GroupService_WatchServer) error {
	if n := len(req.GetGroups()); n > maxWatchedGroups {
		return &hastate.LimitError{Limit: "watched groups", Maximum: maxWatchedGroups, Actual: uint64(n)}
	}
	w := &groupWatch{s: x.s, stream: stream, wanted: make(map[string]bool), sent: make(map[string]uint64)}
	for _, g := range req.GetGroups() {
		name, err := groupName(g)
		if err != nil {
			return err
		}
		w.wanted[name] = true
	}
	defer func() { // not the feed of now: it may be replaced
		if w.feed != nil {
			w.feed.Close()
		}
	}()
	if err := x.s.inTouch(); err != nil {
		return err
	}
	if err := w.begin(req.GetAfterRevision()); err != nil {
		return err
	}
	return w.run(stream.Context())
}

// begin subscribes after a revision, or sends the current state if it is 0.
func (w *groupWatch) begin(after uint64) error {
	if after == 0 {
		return w.current()
	}
	feed, err := w.s.cfg.State.Subscribe(after)
	if err != nil {
		return err
	}
	w.feed, w.seen = feed, after
	return w.heartbeat()
}

// current subscribes from now and sends the state. The subscription comes first,
// so that no change falls between the two.
func (w *groupWatch) current() error {
	from := w.s.cfg.State.Revision()
	feed, err := w.s.cfg.State.Subscribe(from)
	if err != nil {
		return err
	}
	w.feed, w.seen = feed, from
	clear(w.sent)
	for _, g := range w.s.cfg.State.Groups() {
		if !w.wants(g.GetName()) {
			continue
		}
		w.sent[g.GetName()] = g.GetRevision()
		// Without a revision: who resumes in the middle of the state starts anew.
		if err := w.stream.Send(&pb.WatchResponse{Group: g, Primary: w.s.primaryOf(g)}); err != nil {
			return err
		}
	}
	return w.heartbeat()
}

func (w *groupWatch) wants(group string) bool { return len(w.wanted) == 0 || w.wanted[group] }

// heartbeat says how far the stream is complete and renews the primaries. The
// watch ends when this node is out of touch.
func (w *groupWatch) heartbeat() error {
	if err := w.s.inTouch(); err != nil {
		return err
	}
	res := &pb.WatchResponse{Revision: w.seen, Heartbeat: true}
	for _, g := range w.groups() {
		res.Primaries = append(res.Primaries, w.s.primaryOf(g))
	}
	return w.stream.Send(res)
}

// groups are the records of the watched groups as of now.
func (w *groupWatch) groups() []*pb.Group {
	if len(w.wanted) == 0 {
		return w.s.cfg.State.Groups()
	}
	var out []*pb.Group
	for name := range w.wanted {
		if g, ok := w.s.cfg.State.Group(name); ok {
			out = append(out, g)
		}
	}
	slices.SortFunc(out, func(a, b *pb.Group) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return out
}

func (w *groupWatch) interval() time.Duration {
	if len(w.wanted) > manyGroups || (len(w.wanted) == 0 && len(w.s.cfg.State.Groups()) > manyGroups) {
		return max(slowHeartbeat, w.s.cfg.Profile.Renew)
	}
	return w.s.cfg.Profile.Renew
}

// run sends changes, and a heartbeat whenever one is due.
func (w *groupWatch) run(ctx context.Context) error {
	due := time.Now().Add(w.interval())
	for {
		events, err := next(ctx, w.feed, due)
		switch {
		case errors.Is(err, hastate.ErrCompacted):
			// This reader is slower than the changes: it gets their sum.
			w.feed.Close()
			if err := w.current(); err != nil {
				return err
			}
		case err != nil:
			return fmt.Errorf("watch groups: %w", err)
		}
		for _, e := range events {
			if err := w.event(e); err != nil {
				return err
			}
		}
		if now := time.Now(); !now.Before(due) {
			if err := w.heartbeat(); err != nil {
				return err
			}
			due = now.Add(w.interval())
		}
	}
}

// next waits for changes. None until a time is no error, whatever else is: a feed
// that has ended would end at once again.
func next(ctx context.Context, feed Feed, until time.Time) ([]Event, error) {
	timed, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	events, err := feed.Next(timed)
	if err != nil && timed.Err() != nil {
		return nil, ctx.Err()
	}
	return events, err
}

// event sends what a change means for the watched groups.
func (w *groupWatch) event(e Event) error {
	w.seen = e.Revision
	g := e.Group
	if g == nil && e.Instance != nil {
		// The address of a primary may have changed. A group that has changed since is
		// told by its own event, which comes in its turn.
		now, ok := w.s.cfg.State.Group(e.Instance.GetGroup())
		if ok && now.GetHolder() == e.Instance.GetNodeId() && now.GetRevision() <= e.Revision {
			g = now
		}
	}
	if g == nil || !w.wants(g.GetName()) || e.Revision <= w.sent[g.GetName()] {
		return nil
	}
	return w.stream.Send(&pb.WatchResponse{Revision: e.Revision, Group: g, Primary: w.s.primaryOf(g), Transition: e.Transition})
}
