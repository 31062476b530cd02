// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"slices"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate/internal/clock"
)

// evidence remembers when answered requests were sent. The package comment says
// what follows from it.
type evidence struct {
	mu    sync.Mutex
	peers map[raft.ServerID]answered // guarded by mu
	// news is closed and replaced at every answer in a term. Guarded by mu.
	news chan struct{}
}

// answered is what is known of one peer.
type answered struct {
	// at is the latest send time of a request of any kind that was answered.
	at clock.Instant
	// term is the newest term of an append whose answer had that term, and
	// sentAt the latest send time of such an append in this term. Older terms
	// are forgotten: this node cannot lead in them again.
	term   uint64
	sentAt clock.Instant
}

func newEvidence() *evidence {
	return &evidence{peers: make(map[raft.ServerID]answered), news: make(chan struct{})}
}

// heard notes that a request sent at sentAt was answered, whatever the answer.
func (e *evidence) heard(id raft.ServerID, sentAt clock.Instant) {
	e.mu.Lock()
	defer e.mu.Unlock()
	a, known := e.peers[id]
	if !known || sentAt > a.at {
		a.at = sentAt
	}
	e.peers[id] = a
}

// appended notes the answer to an append, a heartbeat or a snapshot: asked is
// the term of the request, told that of the response. sentAt must have been
// read before the request could leave this node.
func (e *evidence) appended(id raft.ServerID, asked, told uint64, sentAt clock.Instant) {
	e.heard(id, sentAt)
	// A higher term is evidence against this leader. A lower one cannot be:
	// the peer would not have processed the request in the leader's term.
	if asked == 0 || told != asked {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	a := e.peers[id]
	switch {
	case asked > a.term:
		a.term, a.sentAt = asked, sentAt
	case asked == a.term && sentAt > a.sentAt:
		a.sentAt = sentAt
	}
	e.peers[id] = a
	close(e.news)
	e.news = make(chan struct{})
}

// next is closed at the next answer in a term.
func (e *evidence) next() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.news
}

func (e *evidence) lastAnswered(id raft.ServerID) (clock.Instant, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	a, known := e.peers[id]
	return a.at, known
}

func (e *evidence) forget(id raft.ServerID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.peers, id)
}

// quorumSentAt returns the latest t such that a majority of the voters answered,
// in this term, an append sent at or after t. self, if it is among the voters,
// counts with now.
func (e *evidence) quorumSentAt(term uint64, voters []raft.ServerID, self raft.ServerID, now clock.Instant) (clock.Instant, bool) {
	if len(voters) == 0 || term == 0 {
		return 0, false
	}
	// A voter that is listed twice must not vote twice.
	ids := slices.Clone(voters)
	slices.Sort(ids)
	ids = slices.Compact(ids)

	times := make([]clock.Instant, 0, len(ids))
	e.mu.Lock()
	for _, id := range ids {
		if id == self {
			times = append(times, now)
		} else if a, known := e.peers[id]; known && a.term == term {
			times = append(times, a.sentAt)
		}
	}
	e.mu.Unlock()

	majority := len(ids)/2 + 1
	if len(times) < majority {
		return 0, false
	}
	slices.Sort(times)
	return times[len(times)-majority], true
}
