// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// TestConcurrentUse is for the race detector: everything that may be called
// from anywhere, while entries are applied and flushed.
func TestConcurrentUse(t *testing.T) {
	o := quiet(filepath.Join(t.TempDir(), "state.db"))
	o.FlushBytes, o.FlushInterval = 8<<10, time.Millisecond
	m := open(t, o)
	x := NewExpiry(m, nil)
	must(t, m, report("g", "n1"), openClient("w"))
	f := subscribe(t, m, m.Revision())
	ctx, cancel := context.WithCancel(context.Background())
	var others sync.WaitGroup
	loop := func(fn func() error) {
		others.Go(func() {
			for ctx.Err() == nil {
				if err := fn(); err != nil && ctx.Err() == nil {
					t.Error(err)
					return
				}
			}
		})
	}
	loop(func() error {
		page, err := m.Sessions(SessionQuery{Group: "g", Limit: 20})
		for _, s := range page.Sessions {
			if s.GetRevision() > page.Revision {
				return fmt.Errorf("session of revision %d in a page of %d", s.GetRevision(), page.Revision)
			}
		}
		return err
	})
	loop(func() error {
		m.Hash()
		_, _, err := m.Session("g", "s1")
		return err
	})
	after := m.Revision()
	loop(func() error {
		events, err := f.Next(ctx)
		for _, ev := range events {
			if after++; ev.Revision != after {
				return fmt.Errorf("event of revision %d, want %d", ev.Revision, after)
			}
			if m.Revision() < after {
				return fmt.Errorf("event of revision %d before the state has it", after)
			}
		}
		return err
	})
	loop(func() error {
		x.Reset(clock.Boot{}.Now())
		x.Due(clock.Boot{}.Now(), 5)
		m.Groups()
		m.Members()
		return nil
	})
	loop(func() error {
		snap, err := m.Snapshot()
		if err != nil {
			return err
		}
		return snap.Persist(&plainSink{})
	})
	for i := range uint64(300) {
		must(t, m, with(3, i+1, i/2, put("g", fmt.Sprintf("s%d", i%50), string(make([]byte, 500)))), putTTL("t", time.Hour))
	}
	cancel()
	others.Wait()
	f.Close()
	x.Stop()
	closeMachine(t, m)
}

// BenchmarkApply writes 1 KiB sessions as a busy cluster does: 256 to an entry.
func BenchmarkApply(b *testing.B) {
	m := open(b, Options{Path: filepath.Join(b.TempDir(), "state.db")})
	defer func() { closeMachine(b, m) }()
	r := m.Apply(logOf(b, 1, openClient("w"))).([]*pb.Result)
	client := r[0].GetClient()
	value := make([]byte, 1024)
	const perEntry, ids = 256, 100_000
	var seq uint64
	next := func(index uint64) *raft.Log {
		e := &pb.Entry{}
		for range perEntry {
			seq++
			e.Commands = append(e.Commands, with(client, seq, max(seq, 512)-511, sessions(opPut(&pb.PutRequest{Session: &pb.Session{
				Group: "g", Id: fmt.Sprintf("session-%06d", seq*7919%ids), Value: value,
			}}))))
		}
		data, err := proto.Marshal(e)
		if err != nil {
			b.Fatal(err)
		}
		return &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: data}
	}
	b.ReportAllocs()
	index := uint64(1)
	for b.Loop() {
		b.StopTimer()
		index++
		l := next(index)
		b.StartTimer()
		m.Apply(l)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(index-1)/perEntry, "ns/put")
}
