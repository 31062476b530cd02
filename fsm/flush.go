// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"errors"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"
)

// batch is what one flush writes: a layer, the writers that changed, and the
// meta record that says which log entries are included.
type batch struct {
	layer   *layer
	clients map[uint64][]byte // nil bytes: removed.
	meta    meta
}

// runFlusher writes the changes to the file when there are many, and from time
// to time. It is the only goroutine that flushes on its own account.
func (m *Machine) runFlusher() {
	tick := time.NewTicker(m.opts.FlushInterval)
	defer tick.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-tick.C:
		case <-m.kick:
		}
		if err := m.flush(); err != nil {
			return // Halted.
		}
	}
}

func (m *Machine) wakeFlusher() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// waitForFlusher makes Apply wait when changes come much faster than the disk
// takes them, so that memory stays bounded.
func (m *Machine) waitForFlusher() error {
	for {
		progress := m.progress.wait()
		m.mu.RLock()
		full := m.active.bytes >= stallFactor*m.opts.FlushBytes
		err := m.failed
		m.mu.RUnlock()
		if err != nil || !full {
			return err
		}
		m.wakeFlusher()
		select {
		case <-progress:
		case <-m.ctx.Done():
			return nil // Close flushes.
		}
	}
}

// flush writes everything applied so far to the file. When it returns nil the
// file includes it, on the disk. An error is fatal: after a failed fsync nobody
// knows what is on the disk, so it is never tried again.
func (m *Machine) flush() error {
	m.flushing.Lock()
	defer m.flushing.Unlock()
	b, db, err := m.seal()
	if err != nil || b == nil {
		return err
	}
	m.progress.wake() // Apply has room again.
	if err := m.write(db, b); err != nil {
		return m.halt(fmt.Errorf("flush the state to %s: %w", m.opts.Path, err))
	}
	m.mu.Lock()
	m.sealed, m.flushed, m.tally = nil, b.meta.applied, b.meta.tally
	m.mu.Unlock()
	m.progress.wake()
	return nil
}

// flushTo returns when the file includes an entry that has been applied.
func (m *Machine) flushTo(index uint64) error {
	if m.Flushed() >= index {
		return nil
	}
	return m.flush()
}

// seal takes the active layer out of use. It returns nil if the file is up to
// date. flushing is held.
func (m *Machine) seal() (*batch, *bolt.DB, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed != nil {
		return nil, nil, m.failed
	}
	if m.applied == m.flushed {
		return nil, nil, nil
	}
	b := &batch{
		layer:   m.active,
		clients: make(map[uint64][]byte, len(m.state.changedClients)),
		meta: meta{
			applied: m.applied, term: m.term, revision: m.state.revision, clusterID: m.state.clusterID,
			configuration: m.configuration, configurationIndex: m.configurationIndex, tally: m.tally,
		},
	}
	for n := range m.state.changedClients {
		b.clients[n] = nil
		if w := m.state.clients[n]; w != nil {
			b.clients[n] = w.encode()
		}
	}
	clear(m.state.changedClients)
	m.sealed, m.active = m.active, newLayer()
	return b, m.db, nil
}

// write puts a batch into the file in one transaction. bolt syncs the pages,
// then the root that makes them count, so a power loss leaves the state before
// or the state after.
func (m *Machine) write(db *bolt.DB, b *batch) error {
	tx, err := db.Begin(true)
	if err != nil {
		return err
	}
	if err := b.putAll(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return m.opts.commit(db, tx)
}

func (b *batch) putAll(tx *bolt.Tx) error {
	for t, tree := range b.layer.trees {
		bucket := tx.Bucket(bucketNames[t])
		var err error
		tree.Ascend(func(it item) bool {
			err = putItem(&b.meta.tally, bucket, table(t), it)
			return err == nil
		})
		if err != nil {
			return err
		}
	}
	bucket := tx.Bucket(bucketClients)
	for n, rec := range b.clients {
		key := clientKey(n)
		if rec != nil {
			rec = sealed(tableClients, string(key), rec)
		}
		if err := b.meta.tally.put(bucket, key, rec); err != nil {
			return fmt.Errorf("write client %d: %w", n, err)
		}
	}
	return tx.Bucket(bucketMeta).Put(keyMeta, b.meta.encode())
}

func putItem(in *tally, bucket *bolt.Bucket, t table, it item) error {
	if it.rec == nil {
		return in.put(bucket, []byte(it.key), nil)
	}
	v, err := encodeRecord(it.rec)
	if err != nil {
		return err
	}
	return in.put(bucket, []byte(it.key), sealed(t, it.key, v))
}
