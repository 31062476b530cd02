// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

var (
	_ raft.Transport   = (*Transport)(nil)
	_ raft.WithPreVote = (*Transport)(nil)
	_ raft.WithClose   = (*Transport)(nil)
	_ raft.WithPeers   = (*Transport)(nil)
)

var (
	errClosed     = fmt.Errorf("transport: %w", hastate.ErrClosed)
	errWithheld   = errors.New("withheld: this node must not lead or stand for election now")
	errNotLeading = errors.New("this node does not lead in the term of the request any more")
)

// Transport is the raft.Transport of a node, and its connections to its peers.
type Transport struct {
	opts     Options
	logger   *slog.Logger
	consumer chan raft.RPC // unbuffered: what waits is not yet Raft's
	evidence *evidence
	watch    *watch

	ctx    context.Context // done when Close begins
	cancel context.CancelCauseFunc

	mu     sync.Mutex
	closed bool                    // guarded by mu
	peers  map[raft.ServerID]*peer // guarded by mu
	wg     sync.WaitGroup          // Add only under mu while not closed
}

// New returns the transport of a node. It does no I/O: connections are made when
// they are needed.
func New(opts Options) (*Transport, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, err
	}
	t := &Transport{
		opts:     opts,
		logger:   opts.Logger,
		consumer: make(chan raft.RPC),
		evidence: newEvidence(),
		peers:    make(map[raft.ServerID]*peer),
	}
	t.ctx, t.cancel = context.WithCancelCause(context.Background())
	t.watch = newWatch(t)
	return t, nil
}

// Register adds the service that peers call to a server. The server needs
// ServerOptions.
func (t *Transport) Register(s grpc.ServiceRegistrar) {
	pb.RegisterRaftServiceServer(s, &service{t: t})
}

// RaftState is what the transport watches of the Raft node that uses it.
type RaftState interface {
	State() raft.RaftState
	CurrentTerm() uint64
}

// Bind tells the transport the Raft node that uses it. Until then it takes each
// request's term for the present one, and QuorumSentAt gives no evidence. A Raft
// node is bound once, right after raft.NewRaft.
func (t *Transport) Bind(r RaftState) { t.watch.bind(r) }

// Answered returns a channel that is closed at the next answer to an append in a
// term: then QuorumSentAt may have grown. Get it before asking.
func (t *Transport) Answered() <-chan struct{} { return t.evidence.next() }

// QuorumSentAt returns the latest t such that a majority of the voters answered,
// in this term, an append or heartbeat that was sent at or after t. This node
// counts with the present time if it is among the voters. False means that there
// is no such majority, or that this node does not lead in this term (or Bind was
// not called). The package comment says what follows from it.
//
// The voters must be those of the newest configuration in the leader's log;
// others must not be listed.
func (t *Transport) QuorumSentAt(term uint64, voters []raft.ServerID) (clock.Instant, bool) {
	at, ok := t.evidence.quorumSentAt(term, voters, t.opts.ID, t.opts.Clock.Now())
	// Leadership is looked at last: the time of this node counts only if it
	// still led in this term after all the others had answered.
	if !ok || !t.watch.surelyLeads(term) {
		return 0, false
	}
	return at, true
}

// LastAnswered returns when the latest request was sent to a peer that it has
// answered. It tells whether the peer can be reached, not whether it follows.
func (t *Transport) LastAnswered(id raft.ServerID) (clock.Instant, bool) {
	return t.evidence.lastAnswered(id)
}

// Conn returns the control connection to a peer. It belongs to the transport and
// stays usable when the peer's address changes. Calls over it carry this node's
// identity (see Outgoing) and go through Options.Fault; they must have a
// deadline and be small, because heartbeats share the connection.
func (t *Transport) Conn(id raft.ServerID) (*grpc.ClientConn, error) {
	p, err := t.peer(id)
	if err != nil {
		return nil, err
	}
	return p.conns[controlConn], nil
}

// Consumer implements raft.Transport.
func (t *Transport) Consumer() <-chan raft.RPC { return t.consumer }

// LocalAddr implements raft.Transport: the address of a node is its id.
func (t *Transport) LocalAddr() raft.ServerAddress { return raft.ServerAddress(t.opts.ID) }

// EncodePeer implements raft.Transport. What is sent as a node's address, and
// stored as a vote, is its id.
func (t *Transport) EncodePeer(id raft.ServerID, addr raft.ServerAddress) []byte {
	if id != "" {
		return []byte(id)
	}
	return []byte(addr)
}

// DecodePeer implements raft.Transport.
func (t *Transport) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// SetHeartbeatHandler implements raft.Transport. The handler is not used: it
// would change term and state of the Raft node concurrently with its main loop.
// Heartbeats go to Consumer.
func (t *Transport) SetHeartbeatHandler(func(raft.RPC)) {}

// Connect implements raft.WithPeers: it begins to connect to a peer. The second
// argument is not used.
func (t *Transport) Connect(addr raft.ServerAddress, _ raft.Transport) {
	if p, err := t.peer(raft.ServerID(addr)); err == nil {
		p.connect()
	}
}

// Disconnect implements raft.WithPeers: it closes the connections to a peer,
// ends the calls that are under way, and forgets the peer. Use it for a node
// that has left the cluster. A later call connects afresh.
func (t *Transport) Disconnect(addr raft.ServerAddress) {
	id := raft.ServerID(addr)
	t.mu.Lock()
	p := t.peers[id]
	delete(t.peers, id)
	t.mu.Unlock()
	if p != nil {
		p.close()
	}
	t.evidence.forget(id)
}

// DisconnectAll implements raft.WithPeers.
func (t *Transport) DisconnectAll() {
	t.mu.Lock()
	ids := make([]raft.ServerID, 0, len(t.peers))
	for id := range t.peers {
		ids = append(ids, id)
	}
	t.mu.Unlock()
	for _, id := range ids {
		t.Disconnect(raft.ServerAddress(id))
	}
}

// Close ends every call, closes every connection and waits for the goroutines
// of the transport. Requests that arrive later are refused.
func (t *Transport) Close() error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.cancel(errClosed)
	t.DisconnectAll()
	t.wg.Wait()
	return nil
}

// peer returns the connections to a peer, making them if need be.
func (t *Transport) peer(id raft.ServerID) (*peer, error) {
	if id == t.opts.ID || id == "" {
		return nil, fmt.Errorf("connect to node %q: %w: it is not a peer of this node", id, hastate.ErrInvalid)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, errClosed
	}
	if p := t.peers[id]; p != nil {
		return p, nil
	}
	if len(t.peers) >= MaxPeers {
		return nil, fmt.Errorf("connect to node %q: %w", id, &hastate.LimitError{Limit: "peers", Maximum: MaxPeers, Actual: uint64(len(t.peers)) + 1})
	}
	p, err := newPeer(t, id)
	if err != nil {
		return nil, fmt.Errorf("connect to node %q: %w", id, err)
	}
	t.peers[id] = p
	return p, nil
}

// calledBy notes that a node has called this one: it is up, so there is no
// reason to wait before connecting to it.
func (t *Transport) calledBy(id raft.ServerID) {
	t.mu.Lock()
	p := t.peers[id]
	t.mu.Unlock()
	if p != nil {
		p.nudge()
	}
}

// hurry ends the wait before the next attempt to connect to a peer.
func (t *Transport) hurry(id raft.ServerID) {
	if p, err := t.peer(id); err == nil {
		p.hurry()
	}
}

// start runs f in a goroutine that Close waits for; f must end when t.ctx is
// done, at the latest soon after. False: the transport is closed.
func (t *Transport) start(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.wg.Add(1)
	go func() {
		defer t.wg.Done()
		f()
	}()
	return true
}
