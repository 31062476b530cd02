// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// isHeartbeat tells a heartbeat from an append without entries, which has a
// commit index or a previous entry.
func isHeartbeat(r *raft.AppendEntriesRequest) bool {
	return r.Term != 0 && r.PrevLogEntry == 0 && r.PrevLogTerm == 0 && len(r.Entries) == 0 && r.LeaderCommitIndex == 0
}

// AppendEntries implements raft.Transport. A heartbeat fails soon; an append
// waits while the peer cannot be reached.
func (t *Transport) AppendEntries(id raft.ServerID, _ raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if isHeartbeat(args) {
		return t.heartbeat(id, args, resp)
	}
	p, err := t.peer(id)
	if err != nil {
		return err
	}
	ctx, end := t.watch.lead(p.ctx, args.Term)
	defer end()
	park, cancel := context.WithTimeoutCause(ctx, t.opts.ParkLimit, errAway)
	defer cancel()
	for {
		if err := p.park(park, appendConn); err != nil {
			return fmt.Errorf("append to node %s: %w", id, err)
		}
		err := p.appendParts(ctx, args, resp)
		// Only a peer that was not there is waited for. One that is there and
		// does not answer in time is Raft's to judge.
		if err == nil || !errors.Is(err, errNoPeer) {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("append to node %s: %w", id, context.Cause(ctx))
		}
	}
}

var (
	// errNoPeer marks an append that did not reach the peer.
	errNoPeer = errors.New("the peer cannot be reached")
	// errAway ends the wait for a peer.
	errAway = errors.New("the peer could not be reached for a long time")
)

func (p *peer) appendParts(ctx context.Context, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	for _, part := range split(args, p.t.opts.SplitBytes) {
		r, err := p.appendOnce(ctx, part)
		if err != nil {
			return err
		}
		*resp = *r
		// A rejection of one part is one of the whole: Raft sends again from
		// where the peer's log ends.
		if !r.Success || r.Term != args.Term {
			return nil
		}
	}
	return nil
}

func (p *peer) appendOnce(ctx context.Context, args *raft.AppendEntriesRequest) (*raft.AppendEntriesResponse, error) {
	in, err := appendRequestToProto(args)
	if err != nil {
		return nil, fmt.Errorf("append to node %s: %w", p.id, err)
	}
	ctx, cancel := context.WithTimeout(ctx, p.t.opts.AppendTimeout)
	defer cancel()
	defer p.awaited(args, func(error) {})() // ctx ends at the same time
	sentAt := p.t.opts.Clock.Now()
	out, err := p.clients[appendConn].AppendEntries(ctx, in)
	var r *raft.AppendEntriesResponse
	if err == nil {
		r, err = appendResponseFromProto(out)
	}
	if err == nil {
		err = p.checkSender(r)
	}
	settled := p.settle(ctx, "append", sentAt, err)
	switch {
	case settled == nil:
		p.t.evidence.appended(p.id, args.Term, r.Term, sentAt)
		return r, nil
	case status.Code(err) == codes.Unavailable:
		return nil, fmt.Errorf("%w: %w", errNoPeer, settled)
	}
	return nil, settled
}

func (t *Transport) heartbeat(id raft.ServerID, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if !t.opts.Serving() {
		return errWithheld
	}
	in, err := appendRequestToProto(args)
	if err != nil {
		return fmt.Errorf("heartbeat to node %s: %w", id, err)
	}
	r, sentAt, err := ask(t, id, "heartbeat", t.opts.Heartbeat/2, func(ctx context.Context, c pb.RaftServiceClient) (*raft.AppendEntriesResponse, error) {
		out, err := c.Heartbeat(ctx, &pb.HeartbeatRequest{Append: in})
		if err != nil {
			return nil, err
		}
		return appendResponseFromProto(out.GetAppend())
	})
	if err != nil {
		return err
	}
	t.evidence.appended(id, args.Term, r.Term, sentAt)
	*resp = *r
	return nil
}

// split cuts an append whose entries exceed a size into parts that each make a
// valid append. A part before the last tells no commit index beyond its own
// entries: what the peer has behind them has not been compared yet.
func split(r *raft.AppendEntriesRequest, maxBytes int) []*raft.AppendEntriesRequest {
	if logBytes(r.Entries...) <= maxBytes {
		return []*raft.AppendEntriesRequest{r}
	}
	var parts []*raft.AppendEntriesRequest
	rest := *r
	for len(rest.Entries) > 0 {
		n, size := 0, 0
		for n < len(rest.Entries) && (n == 0 || size+logBytes(rest.Entries[n]) <= maxBytes) {
			size += logBytes(rest.Entries[n])
			n++
		}
		part := rest
		part.Entries = rest.Entries[:n:n]
		last := part.Entries[n-1]
		rest.PrevLogEntry, rest.PrevLogTerm, rest.Entries = last.Index, last.Term, rest.Entries[n:]
		if len(rest.Entries) > 0 {
			part.LeaderCommitIndex = min(part.LeaderCommitIndex, last.Index)
		}
		parts = append(parts, &part)
	}
	return parts
}

// logBytes estimates the size of entries in a message, and in memory.
func logBytes(entries ...*raft.Log) int {
	const fixed = 48
	n := 0
	for _, l := range entries {
		n += len(l.Data) + len(l.Extensions) + fixed
	}
	return n
}
