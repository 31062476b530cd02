// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate/internal/logstore"
)

// stable is the log store as raft keeps its term and vote in it. Raft panics when
// it cannot save the term, which would end the process with a stack trace and
// without a word to the others. Here raft ends instead, and only raft: the log
// store has told the node already, which leaves in good order.
type stable struct {
	*logstore.Store
	n *Node
	// opened: NewRaft has saved the term that it has read, the first that is saved and
	// the only one on the goroutine of its caller. Raft's own goroutines begin after it.
	opened bool
}

// errTerm is why raft could not begin.
var errTerm = errors.New("the term cannot be saved")

// SetUint64 does not return when the term cannot be saved, but for the first time: that
// ends NewRaft with a panic.
func (s *stable) SetUint64(key []byte, value uint64) error {
	err := s.Store.SetUint64(key, value)
	if string(key) != "CurrentTerm" {
		return err
	}
	if !s.opened {
		s.opened = err == nil
		if err != nil {
			panic(fmt.Errorf("%w: %w", errTerm, err)) // startRaft takes it
		}
		return nil
	}
	if err == nil {
		return nil
	}
	<-s.n.raftReady // it may run before NewRaft has returned
	s.n.raft.Shutdown()
	runtime.Goexit() // raft's main goroutine, with what it has deferred
	return errors.New("not reached")
}

// startRaft starts raft over the transport.
func (n *Node) startRaft() (err error) {
	defer func() {
		why := recover()
		if e, ok := why.(error); ok && errors.Is(e, errTerm) {
			err = e
		} else if why != nil {
			panic(why)
		}
	}()
	n.raft, err = raft.NewRaft(n.raftConfig(), n.applier, n.logs, &stable{Store: n.logs, n: n}, n.snapshots, n.transport)
	if err == nil {
		close(n.raftReady)
	}
	return err
}
