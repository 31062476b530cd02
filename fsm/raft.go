// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"bytes"
	"fmt"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Apply applies one log entry. The response is a []*pb.Result, one for each
// command; nil for an entry that was applied before; an error if the Machine
// was halted.
func (m *Machine) Apply(l *raft.Log) any {
	return m.ApplyBatch([]*raft.Log{l})[0]
}

// ApplyBatch applies log entries in order.
func (m *Machine) ApplyBatch(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	for i, l := range logs {
		out[i] = m.applyLog(l)
	}
	m.progress.wake()
	return out
}

func (m *Machine) applyLog(l *raft.Log) any {
	if m.seen(l.Index) {
		return nil
	}
	var entry *pb.Entry
	if l.Type == raft.LogCommand {
		var err error
		if entry, err = decodeEntry(l.Data); err != nil {
			return m.halt(fmt.Errorf("log entry %d of term %d: %w", l.Index, l.Term, err))
		}
	}
	if err := m.waitForFlusher(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed != nil {
		return m.failed
	}
	var response any
	switch l.Type {
	case raft.LogCommand:
		response = m.applyEntry(l.Index, entry)
	case raft.LogConfiguration:
		m.setConfiguration(l.Index, raft.DecodeConfiguration(l.Data))
	}
	m.applied, m.term = l.Index, l.Term
	if m.active.bytes >= m.opts.FlushBytes {
		m.wakeFlusher()
	}
	return response
}

// seen is the guard against applying an entry twice: after a restart Raft
// delivers again what the file may already include, and a compare-and-set, an
// append or a grant must not meet its own effect.
func (m *Machine) seen(index uint64) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return index <= m.applied
}

// applyEntry applies the commands of an entry. mu is held.
func (m *Machine) applyEntry(index uint64, entry *pb.Entry) []*pb.Result {
	results := make([]*pb.Result, 0, len(entry.GetCommands()))
	e := env{index: index, wall: entry.GetWallUnixMs()}
	for _, cmd := range entry.GetCommands() {
		results = append(results, m.state.apply(e, cmd))
	}
	m.endApplyTx()
	m.publish()
	return results
}

// publish gives the events of an entry to those who wait for them. mu is held.
func (m *Machine) publish() {
	s := m.state
	wake := s.renewed
	for i := range s.events {
		wake = wake || s.events[i].wakes()
	}
	if m.expiry != nil {
		m.expiry.note(s.events, s.opened)
	}
	m.ring.add(s.events)
	clear(s.events)
	s.events, s.opened, s.renewed = s.events[:0], s.opened[:0], false
	if wake {
		m.changed.wake()
	}
}

// StoreConfiguration notes Raft's configuration. Raft calls it in place of
// ApplyBatch when it does not batch.
func (m *Machine) StoreConfiguration(index uint64, c raft.Configuration) {
	if m.seen(index) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed != nil {
		return
	}
	// The term of the entry is not told; the last one known is a lower bound.
	m.setConfiguration(index, c)
	m.applied = index
	m.progress.wake()
}

// setConfiguration keeps the newest configuration. mu is held.
func (m *Machine) setConfiguration(index uint64, c raft.Configuration) {
	m.configuration, m.configurationIndex = raft.EncodeConfiguration(c), index
	m.changed.wake()
}

// Configuration is the newest one that was applied, and the index of its entry:
// the prevIndex of the next change.
func (m *Machine) Configuration() (raft.Configuration, uint64) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if len(m.configuration) == 0 {
		return raft.Configuration{}, m.configurationIndex
	}
	return raft.DecodeConfiguration(bytes.Clone(m.configuration)), m.configurationIndex
}

// get, put and del make the Machine the kv of its state. mu is held for writing.

func (m *Machine) get(t table, key string) proto.Message {
	if it, found := m.active.trees[t].Get(item{key: key}); found {
		return it.rec
	}
	if m.sealed != nil {
		if it, found := m.sealed.trees[t].Get(item{key: key}); found {
			return it.rec
		}
	}
	if m.applyTx == nil {
		tx, err := m.db.Begin(false)
		if err != nil {
			panic(fmt.Errorf("fsm: read the state file: %w", err))
		}
		m.applyTx = tx
	}
	v := view{tx: m.applyTx}
	rec, err := v.get(t, key)
	if err != nil {
		// Going on would make this node's state another one than that of the
		// others; the process has to end.
		panic(fmt.Errorf("fsm: read the state file: %w: %w", ErrDamaged, err))
	}
	return rec
}

func (m *Machine) put(t table, key string, rec proto.Message) {
	m.active.set(t, item{key: key, rec: rec})
}

func (m *Machine) del(t table, key string) { m.active.set(t, item{key: key}) }

// endApplyTx lets go of the file. mu is held.
func (m *Machine) endApplyTx() {
	if m.applyTx == nil {
		return
	}
	if err := m.applyTx.Rollback(); err != nil {
		panic(fmt.Errorf("fsm: end the read of the state file: %w", err))
	}
	m.applyTx = nil
}
