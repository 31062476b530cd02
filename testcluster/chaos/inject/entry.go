// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// maxHold is how long a Grant is held at most: then the node goes on whatever has
// become of those who would have let it.
const maxHold = 3 * time.Second

// grantHold holds an entry with a Grant on its way to Raft: the goroutine that has
// it gets no CPU.
type grantHold struct {
	mu sync.Mutex // guards open
	// open is closed when the hold ends; nil: nothing is held.
	open chan struct{}
}

func (g *grantHold) set(hold bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case hold && g.open == nil:
		g.open = make(chan struct{})
	case !hold && g.open != nil:
		close(g.open)
		g.open = nil
	}
}

// before is node.Faults.Entry.
func (g *grantHold) before(entry []byte) {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	if open == nil || !hasGrant(entry) {
		return
	}
	timer := time.NewTimer(maxHold)
	defer timer.Stop()
	select {
	case <-open:
	case <-timer.C:
	}
}

func hasGrant(entry []byte) bool {
	var e pb.Entry
	if proto.Unmarshal(entry, &e) != nil {
		return false // Raft's matter
	}
	for _, c := range e.GetCommands() {
		if c.GetGrant() != nil {
			return true
		}
	}
	return false
}
