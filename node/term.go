// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
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
}

// SetUint64 does not return when the term cannot be saved.
func (s stable) SetUint64(key []byte, value uint64) error {
	err := s.Store.SetUint64(key, value)
	if err == nil || string(key) != "CurrentTerm" {
		return err
	}
	<-s.n.raftReady // it may run before NewRaft has returned
	s.n.raft.Shutdown()
	runtime.Goexit() // raft's main goroutine, with what it has deferred
	return errors.New("not reached")
}

// startRaft starts raft over the transport.
func (n *Node) startRaft() (err error) {
	n.raft, err = raft.NewRaft(n.raftConfig(), n.applier, n.logs, stable{n.logs, n}, n.snapshots, n.transport)
	if err == nil {
		close(n.raftReady)
	}
	return err
}
