// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"sync"

	"github.com/hashicorp/raft"
)

// memory says whether a node may answer Raft's requests. A node without a log is
// either new or has lost its disk, and cannot tell which. If it has lost its disk, it
// has voted and confirmed entries that it does not know of; voting again it could
// help to elect a second leader of a term, or one that lacks acknowledged writes. So
// it takes no part until one of these says that there is nothing it has forgotten:
//
//   - its log file knows a term: it remembers all since then;
//   - a leader has taken it in (Join), which refuses a voter that has lost its data;
//   - the sender had no log either when this process saw it: what the sender's log
//     has now, and all that this node could have been asked about it, came later.
type memory struct {
	// mu guards the fields below.
	mu sync.Mutex
	// whole: everything that this node was ever asked is in its log file.
	whole bool
	// blank are the nodes that this process has seen without a log.
	blank map[string]bool
}

// sawBlank notes that another node was seen without a log.
func (m *memory) sawBlank(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.blank == nil {
		m.blank = map[string]bool{}
	}
	if len(m.blank) < maxAddresses {
		m.blank[id] = true
	}
}

// complete notes that nothing can have been forgotten.
func (m *memory) complete() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.whole, m.blank = true, nil
}

func (m *memory) trusts(from string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.whole || m.blank[from]
}

// admit is for transport.Options.
func (n *Node) admit(from raft.ServerID) error {
	if n.raft.CurrentTerm() > 0 || n.memory.trusts(string(from)) {
		return nil
	}
	return fmt.Errorf("it has no log, and %s has one: it must be taken in by a leader first", from)
}
