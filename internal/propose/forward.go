// SPDX-License-Identifier: Apache-2.0

package propose

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// maxMessageItems and maxMessageBytes bound one ForwardRequest.
const (
	maxMessageItems = 1024
	maxMessageBytes = 1 << 20
)

// forwarder sends commands to the leader over one stream. What is queued while
// a message is being sent goes into the next one.
type forwarder struct {
	cfg   *NodeConfig
	queue *queue
	// room has place for one token: the lane has been answered. Never closed.
	room chan struct{}
	// wg waits for the receivers of all lanes.
	wg sync.WaitGroup

	// mu guards lane: the one that new commands go to, nil if there is none.
	mu   sync.Mutex
	lane *lane
	// nextID is used by the sender alone.
	nextID uint64
}

func newForwarder(cfg *NodeConfig) *forwarder {
	return &forwarder{
		cfg:   cfg,
		queue: newQueue("forward_queue", cfg.QueueCommands, cfg.QueueBytes),
		room:  make(chan struct{}, 1),
	}
}

// run sends until ctx ends; it leaves no goroutine behind.
func (f *forwarder) run(ctx context.Context) error {
	f.wg.Go(func() { f.sweep(ctx) })
	for {
		select {
		case <-ctx.Done():
			f.queue.close()
			f.setLane(nil)
			f.wg.Wait()
			return nil
		case <-f.queue.ready:
			f.sendQueued(ctx)
		}
	}
}

// sendQueued sends one message of what is queued.
func (f *forwarder) sendQueued(ctx context.Context) {
	l, err := f.laneToLeader(ctx)
	if err != nil {
		f.queue.drain(err)
		return
	}
	room := f.cfg.Outstanding - l.outstanding()
	if room <= 0 {
		select {
		case <-ctx.Done():
		case <-f.room:
		}
		f.queue.nudge()
		return
	}
	items := f.queue.pop(min(room, maxMessageItems), maxMessageBytes)
	if len(items) > 0 {
		l.send(items, &f.nextID)
	}
}

// laneToLeader returns the lane to the present leader, opened if need be. An
// error means that nothing was sent.
func (f *forwarder) laneToLeader(ctx context.Context) (*lane, error) {
	leader, local := leaderOf(f.cfg)
	if leader == "" || local || leader == f.cfg.ID {
		// If it is this node now, the next attempt goes to the local Batcher.
		f.setLane(nil)
		return nil, f.notLeader(leader)
	}
	if l := f.current(); l != nil && l.leader == leader && !l.isBroken() {
		return l, nil
	}
	f.setLane(nil)
	l, err := f.open(ctx, leader)
	if err != nil {
		return nil, fmt.Errorf("forward to %s: %w: %w", leader, err, f.notLeader(leader))
	}
	f.setLane(l)
	f.wg.Go(l.receive)
	return l, nil
}

func (f *forwarder) notLeader(id raft.ServerID) error {
	if id == "" {
		return &hastate.NotLeaderError{}
	}
	return &hastate.NotLeaderError{LeaderID: string(id), LeaderAddress: f.cfg.Address(id)}
}

// open opens a stream within a bounded time.
func (f *forwarder) open(ctx context.Context, leader raft.ServerID) (*lane, error) {
	conn, err := f.cfg.Peers.Conn(leader)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	limit := time.AfterFunc(f.cfg.Dial, cancel)
	stream, err := pb.NewPeerServiceClient(conn).Forward(ctx)
	if err != nil {
		limit.Stop()
		cancel()
		return nil, err
	}
	if !limit.Stop() {
		cancel()
		return nil, fmt.Errorf("no stream within %v", f.cfg.Dial)
	}
	return &lane{leader: leader, stream: stream, cancel: cancel, answered: f.nudgeRoom, sent: make(map[uint64]*item)}, nil
}

func (f *forwarder) nudgeRoom() {
	select {
	case f.room <- struct{}{}:
	default:
	}
}

func (f *forwarder) current() *lane {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lane
}

// setLane replaces the lane; the sender calls it. The former one may still
// answer what it was sent, for a bounded time.
func (f *forwarder) setLane(l *lane) {
	f.mu.Lock()
	old := f.lane
	f.lane = l
	f.mu.Unlock()
	if old != nil {
		_ = old.stream.CloseSend() // the answers are awaited, or the lane breaks
		old.retire(f.cfg.Grace)
	}
}

// sweep enforces deadlines and cuts a lane to a node that leads no more; the
// sender may be blocked in it and could not notice by itself.
func (f *forwarder) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			f.queue.expire(now)
			l := f.current()
			if l == nil {
				continue
			}
			if leader, _ := leaderOf(f.cfg); leader != l.leader {
				l.retire(f.cfg.Grace)
			}
			l.expire(now)
		}
	}
}
