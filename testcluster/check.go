// SPDX-License-Identifier: Apache-2.0

package testcluster

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/wait"
	"github.com/hastate/hastate/node"
)

// monitor looks at all nodes as long as the test runs and notes what must never
// be seen.
type monitor struct {
	cluster *Cluster
	cancel  context.CancelFunc
	done    chan struct{}

	// mu guards all below.
	mu    sync.Mutex
	nodes map[*Member]*node.Node
	// leaders: who led a term; epochs: the newest epoch seen on a node.
	leaders map[uint64]string
	epochs  map[string]uint64
	// newest is the newest epoch that was seen committed anywhere.
	newest     uint64
	violations []string
	looks      int
}

func startMonitor(c *Cluster) *monitor {
	ctx, cancel := context.WithCancel(context.Background())
	m := &monitor{
		cluster: c, cancel: cancel, done: make(chan struct{}),
		nodes: map[*Member]*node.Node{}, leaders: map[uint64]string{}, epochs: map[string]uint64{},
	}
	go func() {
		defer close(m.done)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				m.look()
			}
		}
	}()
	return m
}

// set tells which node a member runs now, nil for none. While a look is under
// way it waits, so that no closed node is looked at.
func (m *monitor) set(member *Member, n *node.Node) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n == nil {
		delete(m.nodes, member)
		return
	}
	m.nodes[member] = n
}

// forget drops what is known of a member's state: its disk is a new one.
func (m *monitor) forget(member *Member) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.epochs, member.ID)
}

func (m *monitor) look() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.looks++
	for member, n := range m.nodes {
		m.lookAtTerm(member, n)
		if g, ok := n.Machine().Group(hastate.DefaultGroup); ok {
			if before := m.epochs[member.ID]; g.GetEpoch() < before {
				m.violate("%s: epoch went back from %d to %d", member.ID, before, g.GetEpoch())
			}
			m.epochs[member.ID] = g.GetEpoch()
			m.newest = max(m.newest, g.GetEpoch())
		}
	}
	m.lookAtLeases()
}

// lookAtTerm notes a leader; the state is read between two equal readings of the
// term, so that it belongs to it.
func (m *monitor) lookAtTerm(member *Member, n *node.Node) {
	term := n.Raft().CurrentTerm()
	if n.Raft().State() != raft.Leader || n.Raft().CurrentTerm() != term {
		return
	}
	if other, ok := m.leaders[term]; ok && other != member.ID {
		m.violate("term %d has two leaders: %s and %s", term, other, member.ID)
	}
	m.leaders[term] = member.ID
}

// lookAtLeases: with the first holder's lease valid before and after the second
// one's was seen valid, both were valid at one instant. And no lease outlives the
// commit of a newer grant, which was seen before the lease is looked at.
func (m *monitor) lookAtLeases() {
	for a, first := range m.nodes {
		epoch, ok := primary(first)
		if !ok {
			continue
		}
		if epoch < m.newest {
			m.violate("the lease of %s under epoch %d is valid although epoch %d was granted", a.ID, epoch, m.newest)
		}
		for b, second := range m.nodes {
			if a == b {
				continue
			}
			other, ok := primary(second)
			if !ok {
				continue
			}
			if again, still := primary(first); still && again == epoch {
				m.violate("two valid leases at one instant: %s under epoch %d, %s under epoch %d", a.ID, epoch, b.ID, other)
			}
		}
	}
}

func primary(n *node.Node) (uint64, bool) {
	h, ok := n.Holder(hastate.DefaultGroup)
	if !ok {
		return 0, false
	}
	return h.Primary()
}

// violate keeps the first few, each once.
func (m *monitor) violate(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if len(m.violations) < 10 && !slices.Contains(m.violations, text) {
		m.violations = append(m.violations, text)
	}
}

// finish heals everything, proves the invariants and stops the cluster.
func (c *Cluster) finish() {
	c.tb.Helper()
	c.Network.Heal()
	for _, m := range c.Members {
		m.Log.Heal()
		if m.Instance != nil {
			m.Instance.Resume()
		}
	}
	if !c.tb.Failed() && len(c.Running()) > 0 {
		c.checkStates()
	}
	c.monitor.cancel()
	<-c.monitor.done
	for _, m := range c.Members {
		if m.node != nil {
			m.node.Abort(errCrash)
		}
	}
	for _, m := range c.Members {
		if m.node != nil {
			if err := m.end(); err != nil && !errors.Is(err, errCrash) && !c.tb.Failed() {
				c.tb.Errorf("%s: %v", m.ID, err)
			}
			m.cancel()
		}
	}
	for _, v := range c.monitor.violations {
		c.tb.Errorf("invariant: %s", v)
	}
}

// checkStates waits until the running nodes that are members hold the same state
// at the same index. Without a majority there is nothing to wait for.
func (c *Cluster) checkStates() {
	c.tb.Helper()
	running := c.Running()
	voters := 0
	configuration, _ := running[0].node.Machine().Configuration()
	for _, s := range configuration.Servers {
		if s.Suffrage == raft.Voter {
			voters++
		}
	}
	if 2*len(running) <= voters {
		return
	}
	wait.Until(c.tb, Patience, func() error {
		hashes, indexes := map[string][]string{}, map[uint64]bool{}
		for _, m := range running {
			index, hash := m.node.Machine().Hash()
			key := hex.EncodeToString(hash[:6])
			hashes[key] = append(hashes[key], m.ID)
			indexes[index] = true
		}
		switch {
		case len(indexes) > 1:
			return fmt.Errorf("applied indexes differ: %v", indexes)
		case len(hashes) > 1:
			return fmt.Errorf("states differ at one index: %v", hashes)
		}
		return nil
	})
}
