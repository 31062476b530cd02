// SPDX-License-Identifier: Apache-2.0

package leaselog

import (
	"context"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Log commits every command at once and is everybody's state.
type Log struct {
	clock clock.Clock

	// mu guards the rest.
	mu      sync.Mutex
	state   *State
	index   uint64
	stored  map[uint64]clock.Instant
	changed chan struct{}
	cut     map[string]bool
	seen    []*pb.Command
	fault   func(node string, cmd *pb.Command) error
}

// NewLog is empty.
func NewLog(c clock.Clock) *Log {
	return &Log{clock: c, state: NewState(), stored: map[uint64]clock.Instant{}, changed: make(chan struct{}), cut: map[string]bool{}}
}

// Cut lets the proposals of a node get lost, until it is called with false.
func (l *Log) Cut(node string, cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut[node] = cut
}

// Fault is asked before a command of a node is applied; its error is the answer.
func (l *Log) Fault(f func(node string, cmd *pb.Command) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fault = f
}

// Node proposes as that node.
func (l *Log) Node(id string) Node { return Node{log: l, id: id} }

// Node is one node's way to the log.
type Node struct {
	log *Log
	id  string
}

// Propose commits and applies, unless the node is cut off: then the outcome is
// unknown when ctx ends.
func (n Node) Propose(ctx context.Context, cmd *pb.Command) (*pb.Result, error) {
	l := n.log
	l.mu.Lock()
	cut, fault := l.cut[n.id], l.fault
	l.mu.Unlock()
	if cut {
		<-ctx.Done()
		return nil, &hastate.OutcomeUnknownError{Reason: ctx.Err().Error()}
	}
	if fault != nil {
		if err := fault(n.id, cmd); err != nil {
			return nil, err
		}
	}
	return l.Commit(cmd), nil
}

// Commit appends and applies.
func (l *Log) Commit(cmd *pb.Command) *pb.Result {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.index++
	l.stored[l.index] = l.clock.Now()
	l.seen = append(l.seen, proto.Clone(cmd).(*pb.Command))
	res := l.state.Apply(l.index, cmd)
	l.wake()
	return res
}

// wake tells who waits for a change. The caller holds mu.
func (l *Log) wake() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// Change edits the record of a group, which is made if there is none.
func (l *Log) Change(group string, f func(*pb.Group)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.state.groups[group]
	if g == nil {
		g = &pb.Group{Name: group, Phase: vacant}
		l.state.groups[group] = g
	}
	f(g)
	l.state.touch(g)
	l.wake()
}

// Commands returns what was committed, in order.
func (l *Log) Commands() []*pb.Command {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.seen)
}

// StoredAt is when the entry was committed.
func (l *Log) StoredAt(index uint64) clock.Instant {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stored[index]
}

// Group returns a copy.
func (l *Log) Group(name string) (*pb.Group, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.Group(name)
}

// Groups returns copies.
func (l *Log) Groups() []*pb.Group {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []*pb.Group
	for name := range l.state.groups {
		g, _ := l.state.Group(name)
		out = append(out, g)
	}
	return out
}

// Instances returns copies.
func (l *Log) Instances(group string) []*pb.Instance {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.Instances(group)
}

// History returns copies, newest first.
func (l *Log) History(group string, limit int) []*pb.Transition {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []*pb.Transition
	for _, t := range slices.Backward(l.state.history[group]) {
		if len(out) < limit {
			out = append(out, proto.Clone(t).(*pb.Transition))
		}
	}
	return out
}

// Applied is the newest index.
func (l *Log) Applied() (index, term uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.index, 1
}

// Changed is closed at the next commit.
func (l *Log) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}
