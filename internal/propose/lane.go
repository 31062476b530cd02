// SPDX-License-Identifier: Apache-2.0

package propose

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// lane is one stream to one leader and what was sent on it.
type lane struct {
	leader raft.ServerID
	stream pb.PeerService_ForwardClient
	// cancel ends the stream and with it the receiver.
	cancel context.CancelFunc
	// answered is called after each message of answers.
	answered func()

	// mu guards the fields below.
	mu sync.Mutex
	// sent are the items that await their answer, by the id on the stream.
	sent map[uint64]*item
	// broken: no item may be added, all have been ended.
	broken  bool
	retired *time.Timer
}

func (l *lane) outstanding() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.sent)
}

func (l *lane) isBroken() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.broken || l.retired != nil
}

// send sends claimed items. From its first line on they count as sent: a Send
// that fails may have reached the leader.
func (l *lane) send(items []*item, nextID *uint64) {
	msg := &pb.ForwardRequest{Items: make([]*pb.ForwardRequest_Item, len(items))}
	l.mu.Lock()
	if l.broken {
		l.mu.Unlock()
		finishAll(items, &hastate.NotLeaderError{LeaderID: string(l.leader), LeaderAddress: string(l.leader)})
		return
	}
	for i, it := range items {
		*nextID++
		l.sent[*nextID] = it
		msg.Items[i] = &pb.ForwardRequest_Item{Id: *nextID, Command: it.cmd}
	}
	l.mu.Unlock()
	// If Send fails the stream is over: the receiver gets its error and ends
	// what was sent.
	_ = l.stream.Send(msg)
}

// receive resolves items until the stream ends.
func (l *lane) receive() {
	for {
		msg, err := l.stream.Recv()
		if err != nil {
			l.breakUp(err)
			return
		}
		for _, answer := range msg.GetItems() {
			if it := l.answeredItem(answer.GetId()); it != nil {
				it.finish(readAnswer(answer, l.leader))
			}
		}
		l.answered()
	}
}

func (l *lane) answeredItem(id uint64) *item {
	l.mu.Lock()
	defer l.mu.Unlock()
	it := l.sent[id]
	delete(l.sent, id)
	return it
}

// breakUp ends everything that was sent and not answered: it may be applied.
func (l *lane) breakUp(cause error) {
	l.cancel()
	l.mu.Lock()
	l.broken = true
	if l.retired != nil {
		l.retired.Stop()
	}
	items := make([]*item, 0, len(l.sent))
	for _, it := range l.sent {
		items = append(items, it)
	}
	clear(l.sent)
	l.mu.Unlock()
	finishAll(items, unknown("the stream to the leader %s broke: %v", l.leader, cause))
	l.answered()
}

// retire lets the lane live for grace and no longer.
func (l *lane) retire(grace time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.retired == nil && !l.broken {
		l.retired = time.AfterFunc(grace, l.cancel)
	}
}

// expire gives up items whose deadline has passed and forgets those that were
// given up, so that a leader that does not answer holds no memory.
func (l *lane) expire(now time.Time) {
	l.mu.Lock()
	var late []*item
	for id, it := range l.sent {
		if it.over() || now.After(it.deadline) {
			delete(l.sent, id)
			late = append(late, it)
		}
	}
	l.mu.Unlock()
	for _, it := range late {
		it.giveUp(context.DeadlineExceeded)
	}
	if len(late) > 0 {
		l.answered()
	}
}

// readAnswer turns the leader's answer into what the caller is told.
func readAnswer(a *pb.ForwardResponse_Item, leader raft.ServerID) (*pb.Result, error) {
	res := a.GetResult()
	switch {
	case a.GetOutcomeUnknown():
		return nil, unknown("%s", a.GetMessage())
	case a.GetNotLeader():
		// The node that was asked leads no more; who does is not known yet.
		return nil, notBegun(errDeclined(leader, a.GetMessage()))
	case res == nil:
		return nil, unknown("the leader answered without a result")
	case isQueueLimit(res):
		return nil, &hastate.LimitError{Limit: res.GetLimit(), Maximum: res.GetLimitMaximum(), Actual: res.GetLimitActual()}
	}
	return res, nil
}
