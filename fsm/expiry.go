// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"container/heap"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const (
	// ClientIdle is how long a writer may be silent before it is forgotten.
	ClientIdle = time.Hour
	// clientCheck is how often a writer is looked at.
	clientCheck = ClientIdle / 4
	// expireRetry is when something due is proposed again if it is still there.
	expireRetry = 10 * time.Second
	// maxTTL keeps sums of times in range.
	maxTTL = time.Duration(1 << 61)
)

// Expiry says to the leader what has been idle for too long. It counts from the
// last write that this node has applied, which is never earlier than the write
// itself: expiry may come late, never early. It holds something only for
// sessions with a time to live and for writers, and only between Reset and Stop.
type Expiry struct {
	m     *Machine
	clock clock.Clock

	// mu guards the fields below. It is taken after Machine.mu.
	mu sync.Mutex
	// on: the node leads and everything is tracked.
	on bool
	// stale: the state was replaced and has to be looked through again.
	stale    bool
	sessions map[string]*idle
	clients  map[uint64]*idle
	queue    idleQueue
}

// idle is one session or writer.
type idle struct {
	key    string // Of the session; empty for a writer.
	client uint64
	group  string
	id     string
	// version is the session's revision or the writer's sequence number when it
	// was last seen to change.
	version uint64
	ttl     time.Duration
	// due is when it may expire. at is where it is queued: never later than due,
	// and moved only when it comes up, so that a write costs no sorting.
	due, at clock.Instant
	place   int
}

// NewExpiry returns the Machine's Expiry, switched off. A Machine has one: a
// second one takes the place of the first. A nil clock is that of Options.
func NewExpiry(m *Machine, c clock.Clock) *Expiry {
	if c == nil {
		c = m.opts.Clock
	}
	x := &Expiry{m: m, clock: c}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.expiry = x
	return x
}

// Reset begins to track: the node has become leader. Every time to live begins
// afresh at now. It reads the whole state once.
func (x *Expiry) Reset(now clock.Instant) {
	x.mu.Lock()
	x.on, x.stale = true, false
	x.sessions, x.clients, x.queue = map[string]*idle{}, map[uint64]*idle{}, nil
	x.mu.Unlock()
	// From here on writes are noted, so nothing is missed by the scan.
	var writers map[uint64]uint64
	v, end, err := x.m.snapshotView(func() {
		writers = make(map[uint64]uint64, len(x.m.state.clients))
		for n, w := range x.m.state.clients {
			writers[n] = w.highestSeq
		}
	})
	if err != nil {
		x.m.haltOn(err)
		return
	}
	v.ascend(tableSessions, "", func(key string, load func() (proto.Message, error)) bool {
		var rec proto.Message
		if rec, err = load(); err != nil {
			return false
		}
		if s, _ := rec.(*pb.Session); s.GetTtlMs() != 0 {
			x.mu.Lock()
			if x.sessions[key] == nil {
				x.trackSession(key, s, now)
			}
			x.mu.Unlock()
		}
		return true
	})
	if e := end(); err == nil {
		err = e
	}
	x.m.haltOn(err)
	x.mu.Lock()
	defer x.mu.Unlock()
	for n, seq := range writers {
		if x.clients[n] == nil {
			x.trackClient(n, seq, now)
		}
	}
}

// Stop ends tracking: the node does not lead any more.
func (x *Expiry) Stop() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.on, x.sessions, x.clients, x.queue = false, nil, nil, nil
}

// restart is called when the state was replaced, with Machine.mu held.
func (x *Expiry) restart() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.stale = true
}

// note is called with the events of an entry, with Machine.mu held.
func (x *Expiry) note(events []Event, opened []uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.on || (len(events) == 0 && len(opened) == 0) {
		return
	}
	now := x.clock.Now()
	for i := range events {
		if ev := events[i].Session; ev != nil {
			x.noteSession(ev, now)
		}
	}
	for _, n := range opened {
		x.trackClient(n, 0, now)
	}
}

func (x *Expiry) noteSession(ev *pb.SessionEvent, now clock.Instant) {
	s := ev.GetSession()
	key := pairKey(s.GetGroup(), s.GetId())
	it := x.sessions[key]
	switch {
	case ev.GetDeleted() || s.GetTtlMs() == 0:
		if it != nil {
			x.drop(it)
		}
	case it == nil:
		x.trackSession(key, s, now)
	default:
		it.version, it.ttl = s.GetRevision(), ttlOf(s)
		it.due = now.Add(it.ttl)
		if it.due < it.at {
			it.at = it.due
			heap.Fix(&x.queue, it.place)
		}
	}
}

func ttlOf(s *pb.Session) time.Duration {
	if s.GetTtlMs() >= uint64(maxTTL/time.Millisecond) {
		return maxTTL
	}
	return time.Duration(s.GetTtlMs()) * time.Millisecond
}

func (x *Expiry) trackSession(key string, s *pb.Session, now clock.Instant) {
	it := &idle{key: key, group: s.GetGroup(), id: s.GetId(), version: s.GetRevision(), ttl: ttlOf(s)}
	it.due = now.Add(it.ttl)
	it.at = it.due
	x.sessions[key] = it
	heap.Push(&x.queue, it)
}

func (x *Expiry) trackClient(n, seq uint64, now clock.Instant) {
	it := &idle{client: n, version: seq, ttl: ClientIdle, due: now.Add(ClientIdle), at: now.Add(clientCheck)}
	x.clients[n] = it
	heap.Push(&x.queue, it)
}

func (x *Expiry) drop(it *idle) {
	if it.key != "" {
		delete(x.sessions, it.key)
	} else {
		delete(x.clients, it.client)
	}
	heap.Remove(&x.queue, it.place)
}

// Due returns a command that removes what is due at now, at most limit sessions
// and writers together; nil if nothing is. What is still there some time later
// is returned again, so a proposal that was lost does no harm.
func (x *Expiry) Due(now clock.Instant, limit int) *pb.Expire {
	x.mu.Lock()
	stale := x.on && x.stale
	x.mu.Unlock()
	if stale {
		x.Reset(now)
	}
	limit = max(1, min(limit, maxExpire))
	cmd := &pb.Expire{}
	for _, it := range x.comeUp(now, limit) {
		x.decide(it, now, cmd)
	}
	if len(cmd.GetSessions()) == 0 && len(cmd.GetClients()) == 0 {
		return nil
	}
	return cmd
}

// comeUp returns copies of what has to be looked at, and queues it again for
// later.
func (x *Expiry) comeUp(now clock.Instant, limit int) []idle {
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []idle
	for len(x.queue) > 0 && len(out) < limit && x.queue[0].at <= now {
		it := x.queue[0]
		switch {
		case it.key != "" && it.due > now:
			it.at = it.due
		case it.key != "":
			out = append(out, *it)
			it.at = now.Add(expireRetry)
			it.due = it.at
		default:
			out = append(out, *it)
			it.at = now.Add(clientCheck)
			if it.due <= now {
				it.at = now.Add(expireRetry)
			}
		}
		heap.Fix(&x.queue, it.place)
	}
	return out
}

// decide compares what has come up with the state, without mu: the state is
// locked by others while they wait for mu.
func (x *Expiry) decide(it idle, now clock.Instant, cmd *pb.Expire) {
	if it.key == "" {
		x.decideClient(it, now, cmd)
		return
	}
	s, found, err := x.m.Session(it.group, it.id)
	switch {
	case err != nil:
	case found && s.GetRevision() == it.version:
		cmd.Sessions = append(cmd.Sessions, &pb.Expire_SessionItem{Group: it.group, Id: it.id, IfRevision: it.version})
	case !found:
		x.mu.Lock()
		defer x.mu.Unlock()
		if cur := x.sessions[it.key]; cur != nil && cur.version == it.version {
			x.drop(cur)
		}
	}
	// With another revision, the write has been noted or is about to be.
}

func (x *Expiry) decideClient(it idle, now clock.Instant, cmd *pb.Expire) {
	x.m.mu.RLock()
	w := x.m.state.clients[it.client]
	var seq uint64
	if w != nil {
		seq = w.highestSeq
	}
	x.m.mu.RUnlock()
	x.mu.Lock()
	defer x.mu.Unlock()
	cur := x.clients[it.client]
	switch {
	case cur == nil:
	case w == nil:
		x.drop(cur)
	case seq != it.version:
		cur.version, cur.due = seq, now.Add(ClientIdle)
		cur.at = now.Add(clientCheck)
		heap.Fix(&x.queue, cur.place)
	case it.due <= now:
		cmd.Clients = append(cmd.Clients, &pb.Expire_ClientItem{Client: it.client, IfSeq: seq})
	}
}

// idleQueue is a heap ordered by at.
type idleQueue []*idle

func (q idleQueue) Len() int           { return len(q) }
func (q idleQueue) Less(i, j int) bool { return q[i].at < q[j].at }
func (q idleQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

// Push is for package heap.
func (q *idleQueue) Push(v any) {
	it, _ := v.(*idle)
	it.place = len(*q)
	*q = append(*q, it)
}

// Pop is for package heap.
func (q *idleQueue) Pop() any {
	old := *q
	it := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return it
}
