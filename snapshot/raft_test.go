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
	cluster{p}.apply(1, 50)
	if err := p.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	cluster{p}.apply(51, 60)
	want := p.sm.values()
	p.stop()
	if n := len(p.sm.file.Values); n != 50 {
		t.Fatalf("the state file has %d values", n)
	}
	p.start(raft.Configuration{})
	cluster{p}.leader()
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
	cluster{p}.apply(1, 20)
	backup, want := backupOf(t, p), p.sm.values()
	cluster{p}.apply(21, 30)
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
	cluster{p}.apply(31, 33)
	want = p.sm.values()
	p.stop()
	p.start(raft.Configuration{})
	cluster{p}.leader()
	if err := p.has(want); err != nil {
		t.Fatal(err)
	}
}

// TestACrashBetweenReceivingAndRestoringIsFinishedAtStart: raft takes the state
// machine to be at the snapshot's index after a restart, so it has to be.
func TestACrashBetweenReceivingAndRestoringIsFinishedAtStart(t *testing.T) {
	p := newPeer(t, "n1")
	p.start(configuration(p))
	cluster{p}.apply(1, 10)
	backup, want := backupOf(t, p), p.sm.values()
	cluster{p}.apply(11, 15)
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
	cluster{p}.leader()
	if err := p.has(want); err != nil {
		t.Fatal(err)
	}
	if p.sm.restored != 1 {
		t.Fatalf("restored %d times", p.sm.restored)
	}
	if _, _, ok := p.snaps.Pending(); ok {
		t.Fatal("still pending")
	}
	cluster{p}.apply(16, 16)
}

// trio starts three nodes.
func trio(t testing.TB) cluster {
	t.Helper()
	c := cluster{newPeer(t, "n1"), newPeer(t, "n2"), newPeer(t, "n3")}
	for _, p := range c {
		p.start(configuration(c...))
	}
	c.connect()
	return c
}

func TestAFollowerThatFellBehindInstallsALiveSnapshot(t *testing.T) {
	all := trio(t)
	all.have(all.apply(1, 10))
	behind := all.without(all.leader())[0]
	rest := all.without(behind)
	behind.stop()
	rest.have(rest.apply(11, 100))
	rest.snapshot()
	rest.have(rest.apply(101, 110)) // the state moves on; the snapshot's index does not
	metas, err := rest[0].snaps.List()
	if err != nil {
		t.Fatal(err)
	}
	behind.start(raft.Configuration{})
	all.connect()
	all.have(all.leader().sm.values())
	if behind.sm.restored == 0 {
		t.Fatal("it caught up without a snapshot")
	}
	id, h, ok := behind.snaps.Pending()
	if !ok || h.GetIndex() < metas[0].Index+10 {
		t.Fatalf("pending %v %v, the others' snapshot is %v", h, ok, metas[0])
	}
	if err := behind.snaps.Restored(h.GetIndex()); err != nil {
		t.Fatal(err)
	}
	if _, _, ok := behind.snaps.Pending(); ok || behind.snaps.find(id) == nil {
		t.Fatal("it did not become live")
	}
	all.have(all.apply(111, 120))
	behind.stop()
	behind.start(raft.Configuration{})
	all.connect()
	all.have(all.apply(121, 121))
}

func TestARestoredBackupReachesAllNodes(t *testing.T) {
	all := trio(t)
	want := all.apply(1, 30)
	leader := all.leader()
	backup := backupOf(t, leader)
	all.have(all.apply(31, 60))
	// An error leaves the outcome open, as it does for every write.
	wait.Until(t, 20*time.Second, func() error { return restore(t, all.leader(), backup) })
	for i := 101; i <= 105; i++ {
		want = append(want, fmt.Sprintf("v%d", i))
	}
	all.apply(101, 105)
	all.have(want)
}

// TestADivergentTailDoesNotLoop is hashicorp/raft#697: the log of a follower has
// other entries where the leader's snapshot ends. Without ForgetDivergent it refuses
// every append after the snapshot and is sent the snapshot for ever.
func TestADivergentTailDoesNotLoop(t *testing.T) {
	all := cluster{newPeer(t, "n1"), newPeer(t, "n2"), newPeer(t, "n3")}
	stale, rest := all[2], all[:2]
	conf := configuration(all...)
	for _, p := range all {
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
	for _, p := range rest {
		if err := p.log.SetUint64([]byte("CurrentTerm"), 5); err != nil {
			t.Fatal(err)
		}
		p.start(conf)
	}
	rest.connect()
	rest.have(rest.apply(1, 100))
	rest.snapshot()
	rest.have(rest.apply(101, 110))
	stale.start(conf)
	all.connect()
	all.have(all.apply(111, 120))
	// Nothing of the stale log is left for anyone to receive, and the last entries
	// came through the log.
	wait.Until(t, 20*time.Second, func() error {
		first, err := stale.log.FirstIndex()
		if err != nil {
			return err
		}
		last, err := stale.log.LastIndex()
		if err != nil {
			return err
		}
		for i := first; i <= last; i++ {
			var l raft.Log
			if err := stale.log.GetLog(i, &l); err != nil || l.Term == 2 {
				return fmt.Errorf("entry %d of %d..%d: term %d, %w", i, first, last, l.Term, err)
			}
		}
		return nil
	})
	// Once, or once more per change of the leader.
	if stale.sm.restored > 3 {
		t.Errorf("the snapshot was installed %d times", stale.sm.restored)
	}
}

// TestACorruptedInstallLeavesTheFollowerAsItWas flips a bit of the first two archives
// on their way: the follower refuses them, keeps its state and takes the third.
func TestACorruptedInstallLeavesTheFollowerAsItWas(t *testing.T) {
	all := trio(t)
	all.have(all.apply(1, 10))
	behind := all.without(all.leader())[0]
	rest := all.without(behind)
	behind.sm.mu.Lock()
	behind.sm.flush()
	behind.sm.mu.Unlock()
	behind.stop()
	rest.have(rest.apply(11, 50))
	rest.snapshot()

	var flips atomic.Int32
	flips.Store(2)
	for _, p := range rest {
		p.flips.Store(&flips)
	}
	had := behind.sm.values()
	behind.start(raft.Configuration{})
	if err := behind.has(had); err != nil {
		t.Fatal(err)
	}
	behind.sm.mu.Lock()
	behind.sm.beforeRestore = func() error {
		if flips.Load() > 0 {
			return errors.New("a corrupted archive came through")
		}
		return nil
	}
	behind.sm.mu.Unlock()
	all.connect()
	all.have(all.apply(51, 51))
	if flips.Load() > 0 || behind.sm.restored == 0 {
		t.Errorf("restored %d times, %d corrupted archives left", behind.sm.restored, flips.Load())
	}
}
