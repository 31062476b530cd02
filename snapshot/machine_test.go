// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/hastate/hastate/internal/logstore"
	"github.com/hastate/hastate/internal/wait"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// image is the state file of machine.
type image struct {
	Index, Term uint64
	Values      []string
}

// machine is a small state machine that keeps the contract of the real one: a state
// in memory, a state file that lags behind, entries at or below the applied index
// skipped.
type machine struct {
	mu      sync.Mutex
	applied image
	file    image
	// restored counts Restore calls; beforeRestore is called in each.
	restored      int
	beforeRestore func() error
}

func (m *machine) Apply(l *raft.Log) any {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l.Index > m.applied.Index {
		m.applied.Index, m.applied.Term = l.Index, l.Term
		// A write that was tried again after an unknown outcome counts once.
		if v := string(l.Data); !slices.Contains(m.applied.Values, v) {
			m.applied.Values = append(m.applied.Values, v)
		}
	}
	return nil
}

func (m *machine) flush() { // with mu held
	m.file = m.applied
	m.file.Values = append([]string(nil), m.applied.Values...)
}

func (m *machine) Snapshot() (raft.FSMSnapshot, error) { return m, nil }

func (m *machine) Persist(sink raft.SnapshotSink) error {
	m.mu.Lock()
	m.flush()
	index := m.file.Index
	m.mu.Unlock()
	if err := sink.(interface{ Live(uint64) error }).Live(index); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (m *machine) Release() {}

func (m *machine) BeginStream() (Stream, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flush()
	b, err := json.Marshal(m.file)
	return Stream{
		Index: m.file.Index, Term: m.file.Term, Revision: uint64(len(m.file.Values)), Size: int64(len(b)),
		ClusterID: "c1", Body: &body{bytes.NewReader(b), func() {}},
	}, err
}

func (m *machine) Restore(rc io.ReadCloser) error {
	defer rc.Close()
	var h *pb.ArchiveHeader
	for inner := rc; h == nil; {
		if a, ok := inner.(*Archive); ok {
			h = a.Header()
		} else {
			inner = inner.(raft.ReadCloserWrapper).WrappedReadCloser()
		}
	}
	b, err := io.ReadAll(rc)
	if err != nil {
		return err
	}
	var got image
	if err := json.Unmarshal(b, &got); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.restored++
	if m.beforeRestore != nil {
		if err := m.beforeRestore(); err != nil {
			return err
		}
	}
	got.Index, got.Term = h.GetIndex(), h.GetTerm()
	m.applied = got
	m.flush()
	return nil
}

func (m *machine) values() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.applied.Values...)
}

// peer is one node: the disk survives stop, the rest does not.
type peer struct {
	t     testing.TB
	id    raft.ServerID
	dir   string
	sm    *machine
	log   *logstore.Store
	snaps *Store
	trans *raft.InmemTransport
	raft  *raft.Raft
	// forget is whether the log is made to agree with received snapshots.
	forget bool
	// flips is how many archives are still to be corrupted when they are sent.
	flips atomic.Pointer[atomic.Int32]
}

// flipping is the snapshot store that raft gets.
type flipping struct {
	*Store
	p *peer
}

func (f flipping) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, rc, err := f.Store.Open(id)
	if n := f.p.flips.Load(); err == nil && n != nil && n.Add(-1) >= 0 {
		rc = &flipped{ReadCloser: rc, at: meta.Size / 2}
	}
	return meta, rc, err
}

// flipped changes one bit of what it passes on.
type flipped struct {
	io.ReadCloser
	at int64
}

func (f *flipped) Read(p []byte) (int, error) {
	n, err := f.ReadCloser.Read(p)
	if f.at >= 0 && f.at < int64(n) {
		p[f.at] ^= 1
	}
	f.at -= int64(n)
	return n, err
}

func newPeer(t testing.TB, id raft.ServerID) *peer {
	t.Helper()
	p := &peer{t: t, id: id, dir: memoryDir(t), sm: &machine{}, forget: true}
	t.Cleanup(p.stop)
	return p
}

// memoryDir is a directory in memory where there is one: a disk that others keep busy
// makes leaders lose their lease.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "snapshot") //nolint:usetesting // not on the disk: it is slow and busy
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// open opens the stores.
func (p *peer) open() {
	p.t.Helper()
	var err error
	if p.log, err = logstore.Open(logstore.Options{Path: filepath.Join(p.dir, "log.db")}); err != nil {
		p.t.Fatal(err)
	}
	o := Options{Dir: filepath.Join(p.dir, "snapshots"), Source: p.sm}
	if p.forget {
		o.OnReceived = p.log.ForgetDivergent
	}
	o.OnInstalled = func(index, term, state uint64) {
		p.log.SnapshotInstalled(state)
		p.log.Base(index, term)
	}
	p.snaps = openStore(p.t, o)
}

// start opens the stores if they are not, finishes a pending restore and starts raft.
func (p *peer) start(conf raft.Configuration) {
	p.t.Helper()
	if p.log == nil {
		p.open()
	}
	if id, h, ok := p.snaps.Pending(); ok {
		if p.sm.file.Index < h.GetIndex() {
			_, rc, err := p.snaps.Open(id)
			if err != nil {
				p.t.Fatal(err)
			}
			if err := p.sm.Restore(rc); err != nil {
				p.t.Fatal(err)
			}
		}
		if err := p.snaps.Restored(h.GetIndex()); err != nil {
			p.t.Fatal(err)
		}
	}
	c := p.config()
	_, p.trans = raft.NewInmemTransportWithTimeout(raft.ServerAddress(p.id), 500*time.Millisecond)
	if has, err := raft.HasExistingState(p.log, p.log, p.snaps); err != nil {
		p.t.Fatal(err)
	} else if !has {
		if err := raft.BootstrapCluster(c, p.log, p.log, p.snaps, p.trans, conf); err != nil {
			p.t.Fatal(err)
		}
	}
	r, err := raft.NewRaft(c, p.sm, p.log, p.log, flipping{p.snaps, p}, p.trans)
	if err != nil {
		p.t.Fatal(err)
	}
	p.raft = r
}

func (p *peer) config() *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = p.id
	c.Logger = hclog.NewNullLogger()
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = 400*time.Millisecond, 400*time.Millisecond, 400*time.Millisecond
	c.CommitTimeout = 5 * time.Millisecond
	c.SnapshotInterval = time.Hour
	c.TrailingLogs = 1
	c.NoSnapshotRestoreOnStart = true
	c.NoLegacyTelemetry = true
	return c
}

// stop ends the process: what the machine had not flushed is lost.
func (p *peer) stop() {
	if p.raft != nil {
		if err := p.raft.Shutdown().Error(); err != nil {
			p.t.Error(err)
		}
		_ = p.trans.Close()
	}
	if p.log != nil {
		if err := p.log.Close(); err != nil {
			p.t.Error(err)
		}
	}
	p.raft, p.log, p.snaps = nil, nil, nil
	p.sm = &machine{applied: p.sm.file, file: p.sm.file}
}

// cluster is the nodes that run; a busy machine may change its leader at any time.
type cluster []*peer

func configuration(peers ...*peer) raft.Configuration {
	var c raft.Configuration
	for _, p := range peers {
		c.Servers = append(c.Servers, raft.Server{ID: p.id, Address: raft.ServerAddress(p.id)})
	}
	return c
}

func (c cluster) connect() {
	for _, a := range c {
		for _, b := range c {
			a.trans.Connect(raft.ServerAddress(b.id), b.trans)
		}
	}
}

func (c cluster) leader() *peer {
	c[0].t.Helper()
	var leader *peer
	wait.Until(c[0].t, 20*time.Second, func() error {
		for _, p := range c {
			if p.raft.State() == raft.Leader && p.raft.Barrier(time.Second).Error() == nil {
				leader = p
				return nil
			}
		}
		return errors.New("no leader")
	})
	return leader
}

// apply writes v<from>..v<to> and returns all values.
func (c cluster) apply(from, to int) []string {
	c[0].t.Helper()
	for i := from; i <= to; i++ {
		wait.Until(c[0].t, 20*time.Second, func() error {
			for _, p := range c {
				if p.raft.State() == raft.Leader {
					return p.raft.Apply(fmt.Appendf(nil, "v%d", i), 5*time.Second).Error()
				}
			}
			return errors.New("no leader")
		})
	}
	return c.leader().sm.values()
}

// snapshot takes one on each node.
func (c cluster) snapshot() {
	c[0].t.Helper()
	for _, p := range c {
		if err := p.raft.Snapshot().Error(); err != nil {
			p.t.Fatal(err)
		}
	}
}

// have waits until all nodes have these values.
func (c cluster) have(want []string) {
	c[0].t.Helper()
	for _, p := range c {
		wait.Until(p.t, 30*time.Second, func() error { return p.has(want) })
	}
}

// without are the others.
func (c cluster) without(p *peer) cluster {
	return slices.DeleteFunc(slices.Clone(c), func(o *peer) bool { return o == p })
}

func (p *peer) has(want []string) error {
	if got := p.sm.values(); !slices.Equal(got, want) {
		return fmt.Errorf("%s has %d values, want %d", p.id, len(got), len(want))
	}
	return nil
}
