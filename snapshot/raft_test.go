// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate/internal/wait"
)

// backupOf writes a backup of a node's state.
func backupOf(t testing.TB, p *peer) []byte {
	t.Helper()
	s, err := p.sm.BeginStream()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := WriteArchive(&b, NewHeader(s, true, created, "v1"), s.Body); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func restore(t testing.TB, p *peer, backup []byte) error {
	t.Helper()
	info, err := Inspect(bytes.NewReader(backup))
	if err != nil {
		t.Fatal(err)
	}
	return p.raft.Restore(RestoreMeta(info), bytes.NewReader(backup), 10*time.Second)
}

func TestRaftRestartsFromALiveSnapshot(t *testing.T) {
	p := newPeer(t, "n1")
	p.start(configuration(p))
	leaderOf(t, p).apply(1, 50)
	if err := p.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	p.apply(51, 60)
	want := p.sm.values()
	p.stop()
	if n := len(p.sm.file.Values); n != 50 {
		t.Fatalf("the state file has %d values", n)
	}
	p.start(raft.Configuration{})
	leaderOf(t, p)
	if err := p.has(want); err != nil {
		t.Fatal(err)
	}
	if p.sm.restored != 0 {
		t.Error("restored at start")
	}
}

func TestRaftRestoresABackup(t *testing.T) {
	p := newPeer(t, "n1")
	p.start(configuration(p))
	leaderOf(t, p).apply(1, 20)
	backup, want := backupOf(t, p), p.sm.values()
	p.apply(21, 30)
	before := p.raft.LastIndex()
	// A damaged one, as if it had been inspected before it was damaged, is refused
	// and changes nothing.
	bad := bytes.Clone(backup)
	bad[len(bad)/2] ^= 1
	info, err := Inspect(bytes.NewReader(backup))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.raft.Restore(RestoreMeta(info), bytes.NewReader(bad), 10*time.Second); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Fatal(err)
	}
	if err := p.raft.Restore(RestoreMeta(info), io.LimitReader(bytes.NewReader(backup), 40), 10*time.Second); err == nil {
		t.Fatal("a truncated backup was restored")
	}
	if n := len(p.sm.values()); n != 30 || p.sm.restored != 0 {
		t.Fatalf("%d values after a refused restore", n)
	}
	if err := restore(t, p, backup); err != nil {
		t.Fatal(err)
	}
	if err := p.has(want); err != nil {
		t.Fatal(err)
	}
	_, h, ok := p.snaps.Pending()
	if !ok || h.GetIndex() != before+1 || !h.GetBackup() {
		t.Fatalf("pending: %v %v, the log ended at %d", h, ok, before)
	}
	if err := p.snaps.Restored(h.GetIndex()); err != nil {
		t.Fatal(err)
	}
	p.apply(31, 33)
	want = p.sm.values()
	p.stop()
	p.start(raft.Configuration{})
	leaderOf(t, p)
	if err := p.has(want); err != nil {
		t.Fatal(err)
	}
}

// TestACrashBetweenReceivingAndRestoringIsFinishedAtStart: raft takes the state
// machine to be at the snapshot's index after a restart, so it has to be.
func TestACrashBetweenReceivingAndRestoringIsFinishedAtStart(t *testing.T) {
	p := newPeer(t, "n1")
	p.start(configuration(p))
	leaderOf(t, p).apply(1, 10)
	backup, want := backupOf(t, p), p.sm.values()
	p.apply(11, 15)
	p.sm.mu.Lock()
	p.sm.flush()
	index := p.raft.LastIndex() + 1
	p.sm.mu.Unlock()
	// What raft.Restore does before it asks the state machine.
	sink, err := p.snaps.Create(1, index, p.raft.CurrentTerm(), configuration(p), 1, p.trans)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(sink, bytes.NewReader(backup)); err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
	p.stop()
	p.start(raft.Configuration{})
	leaderOf(t, p)
	if err := p.has(want); err != nil {
		t.Fatal(err)
	}
	if p.sm.restored != 1 {
		t.Fatalf("restored %d times", p.sm.restored)
	}
	if _, _, ok := p.snaps.Pending(); ok {
		t.Fatal("still pending")
	}
	p.apply(16, 16)
}

// trio starts three nodes.
func trio(t testing.TB) []*peer {
	t.Helper()
	peers := []*peer{newPeer(t, "n1"), newPeer(t, "n2"), newPeer(t, "n3")}
	for _, p := range peers {
		p.start(configuration(peers...))
	}
	connect(peers...)
	return peers
}

// others are the peers but p.
func others(peers []*peer, p *peer) []*peer {
	var rest []*peer
	for _, o := range peers {
		if o != p {
			rest = append(rest, o)
		}
	}
	return rest
}

func TestAFollowerThatFellBehindInstallsALiveSnapshot(t *testing.T) {
	peers := trio(t)
	leader := leaderOf(t, peers...)
	leader.apply(1, 10)
	behind := others(peers, leader)[0]
	for _, p := range peers {
		if p != behind {
			wait.Until(t, 10*time.Second, func() error { return p.has(leader.sm.values()) })
		}
	}
	behind.stop()
	leader.apply(11, 200)
	if err := leader.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	leader.apply(201, 210) // the state moves on; the snapshot's index does not
	behind.start(raft.Configuration{})
	connect(peers...)
	wait.Until(t, 20*time.Second, func() error { return behind.has(leader.sm.values()) })
	if behind.sm.restored == 0 {
		t.Fatal("it caught up without a snapshot")
	}
	id, h, ok := behind.snaps.Pending()
	metas, err := leader.snaps.List()
	if err != nil || !ok || h.GetIndex() < metas[0].Index+10 {
		t.Fatalf("pending %v %v, the leader's snapshot is %v", h, ok, metas[0])
	}
	if err := behind.snaps.Restored(h.GetIndex()); err != nil {
		t.Fatal(err)
	}
	if _, _, ok := behind.snaps.Pending(); ok || behind.snaps.find(id) == nil {
		t.Fatal("it did not become live")
	}
	leader.apply(211, 220)
	wait.Until(t, 10*time.Second, func() error { return behind.has(leader.sm.values()) })
	// Its live snapshot serves others: it can lead.
	behind.stop()
	behind.start(raft.Configuration{})
	connect(peers...)
	wait.Until(t, 20*time.Second, func() error { return behind.has(leader.sm.values()) })
}

func TestARestoredBackupReachesAllNodes(t *testing.T) {
	peers := trio(t)
	leader := leaderOf(t, peers...)
	leader.apply(1, 30)
	backup, want := backupOf(t, leader), leader.sm.values()
	leader.apply(31, 60)
	for _, p := range peers {
		wait.Until(t, 10*time.Second, func() error { return p.has(leader.sm.values()) })
	}
	if err := restore(t, leader, backup); err != nil {
		t.Fatal(err)
	}
	leader.apply(101, 105)
	for i := 101; i <= 105; i++ {
		want = append(want, fmt.Sprintf("v%d", i))
	}
	for _, p := range peers {
		wait.Until(t, 20*time.Second, func() error { return p.has(want) })
	}
}

// TestADivergentTailDoesNotLoop is hashicorp/raft#697: the log of a follower has
// other entries where the leader's snapshot ends. Without ForgetDivergent it refuses
// every append after the snapshot and is sent the snapshot for ever.
func TestADivergentTailDoesNotLoop(t *testing.T) {
	peers := []*peer{newPeer(t, "n1"), newPeer(t, "n2"), newPeer(t, "n3")}
	stale := peers[2]
	conf := configuration(peers...)
	for _, p := range peers {
		p.open()
		_, trans := raft.NewInmemTransport(raft.ServerAddress(p.id))
		if err := raft.BootstrapCluster(p.config(), p.log, p.log, p.snaps, trans, conf); err != nil {
			t.Fatal(err)
		}
	}
	// The stale node led term 2 alone and wrote what nobody else has.
	if err := stale.log.SetUint64([]byte("CurrentTerm"), 2); err != nil {
		t.Fatal(err)
	}
	var logs []*raft.Log
	for i := uint64(2); i <= 300; i++ {
		logs = append(logs, &raft.Log{Index: i, Term: 2, Type: raft.LogCommand, Data: []byte("never committed")})
	}
	if err := stale.log.StoreLogs(logs); err != nil {
		t.Fatal(err)
	}
	for _, p := range peers[:2] {
		if err := p.log.SetUint64([]byte("CurrentTerm"), 5); err != nil {
			t.Fatal(err)
		}
		p.start(conf)
	}
	connect(peers[:2]...)
	leader := leaderOf(t, peers[:2]...)
	leader.apply(1, 100)
	if err := leader.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	leader.apply(101, 110)
	stale.start(conf)
	connect(peers...)
	wait.Until(t, 30*time.Second, func() error { return stale.has(leader.sm.values()) })
	leader.apply(111, 120)
	wait.Until(t, 30*time.Second, func() error { return stale.has(leader.sm.values()) })
	if stale.sm.restored != 1 {
		t.Errorf("the snapshot was installed %d times", stale.sm.restored)
	}
	// Nothing of the stale log is left for anyone to receive.
	first, err := stale.log.FirstIndex()
	if err != nil {
		t.Fatal(err)
	}
	last, err := stale.log.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	for i := first; i <= last; i++ {
		var l raft.Log
		if err := stale.log.GetLog(i, &l); err != nil || l.Term == 2 {
			t.Fatalf("entry %d of %d..%d: %+v %v", i, first, last, l, err)
		}
	}
}

// TestACorruptedInstallLeavesTheFollowerAsItWas breaks the archive on its way: the
// follower refuses it, keeps its state and takes the next one.
func TestACorruptedInstallLeavesTheFollowerAsItWas(t *testing.T) {
	peers := trio(t)
	leader := leaderOf(t, peers...)
	leader.apply(1, 10)
	behind := others(peers, leader)[0]
	wait.Until(t, 10*time.Second, func() error { return behind.has(leader.sm.values()) })
	behind.sm.mu.Lock()
	behind.sm.flush()
	behind.sm.mu.Unlock()
	behind.stop()
	leader.apply(11, 50)
	if err := leader.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	had := behind.sm.values()
	var broken atomic.Int32
	behind.open()
	behind.snaps.dir.fault = corrupt{behind, &broken}
	behind.sm.beforeRestore = func() error {
		if broken.Load() < 2 {
			return errors.New("a corrupted archive came through")
		}
		return nil
	}
	behind.start(raft.Configuration{})
	if err := behind.has(had); err != nil {
		t.Fatal(err)
	}
	connect(peers...)
	wait.Until(t, 30*time.Second, func() error { return behind.has(leader.sm.values()) })
	if behind.sm.restored != 1 || broken.Load() < 2 {
		t.Errorf("restored %d times after %d corrupted ones", behind.sm.restored, broken.Load())
	}
}

// corrupt appends a byte to the first two archives as they are written.
type corrupt struct {
	p *peer
	n *atomic.Int32
}

func (c corrupt) Before(op, name string) error {
	if op != OpWrite || !strings.HasSuffix(name, dataSuffix) || c.n.Load() >= 2 {
		return nil
	}
	c.n.Add(1)
	if err := c.p.has(c.p.sm.values()); err != nil {
		return err
	}
	return errCorrupt
}

var errCorrupt = errors.New("the disk failed")
