// SPDX-License-Identifier: Apache-2.0

package propose

import (
	"errors"
	"io"
	"sync"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// maxServed bounds the commands of one stream that are under way here; beyond
// it the stream is not read, and the sender's own bounds take over.
const maxServed = 32 << 10

// ServeForward is the server side of PeerService.Forward. It proposes here and
// never forwards on: a command cannot travel in a circle.
func (n *Node) ServeForward(stream pb.PeerService_ForwardServer) error {
	s := &served{stream: stream, wake: make(chan struct{}, 1)}
	s.room = sync.NewCond(&s.mu)
	var sender sync.WaitGroup
	sender.Go(s.sendAnswers)
	err := s.receive(n.cfg.Local)
	s.close(err != nil)
	sender.Wait()
	return err
}

// served is one stream of another node.
type served struct {
	stream pb.PeerService_ForwardServer
	// wake has room for one token: there is something to send, or the end.
	wake chan struct{}

	// mu guards the fields below; room is signalled when open falls or the
	// stream ends.
	mu   sync.Mutex
	room *sync.Cond
	// open counts the commands that were received and whose answer the sender has
	// not taken.
	open int
	out  []*pb.ForwardResponse_Item
	// closed: the other side sends no more. aborted: nor does it listen.
	closed, aborted bool
}

// receive proposes what comes in; nil when the other side has closed its half.
func (s *served) receive(local *Batcher) error {
	for {
		msg, err := s.stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(msg.GetItems()) > hastate.MaxEntryCommands {
			return hastate.ToStatus(&hastate.LimitError{Limit: "forward_items", Maximum: hastate.MaxEntryCommands, Actual: uint64(len(msg.GetItems()))})
		}
		for _, in := range msg.GetItems() {
			if !s.admit() {
				return nil
			}
			id := in.GetId()
			local.ProposeAsync(in.GetCommand(), func(res *pb.Result, err error) {
				s.answer(writeAnswer(id, res, err))
			})
		}
	}
}

// admit waits for room; false if the stream has ended meanwhile.
func (s *served) admit() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.open >= maxServed && !s.aborted {
		s.room.Wait()
	}
	s.open++
	return !s.aborted
}

func (s *served) answer(a *pb.ForwardResponse_Item) {
	s.mu.Lock()
	if !s.aborted {
		s.out = append(s.out, a)
	}
	s.mu.Unlock()
	s.nudge()
}

func (s *served) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *served) close(aborted bool) {
	s.mu.Lock()
	s.closed = true
	s.aborted = s.aborted || aborted
	s.room.Broadcast()
	s.mu.Unlock()
	s.nudge()
}

// sendAnswers sends what is there, all in one message, until everything that was
// received is answered or nobody listens.
func (s *served) sendAnswers() {
	for {
		select {
		case <-s.wake:
		case <-s.stream.Context().Done():
			s.close(true)
			return
		}
		batch, end := s.takeAnswers()
		for len(batch) > 0 {
			n := answersThatFit(batch)
			if s.stream.Send(&pb.ForwardResponse{Items: batch[:n]}) != nil {
				s.close(true)
				return
			}
			batch = batch[n:]
		}
		if end {
			return
		}
	}
}

func (s *served) takeAnswers() (batch []*pb.ForwardResponse_Item, end bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	batch, s.out = s.out, nil
	s.open -= len(batch)
	s.room.Broadcast()
	return batch, s.aborted || (s.closed && s.open == 0)
}
