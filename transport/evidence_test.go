// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/hastate/hastate/internal/clock"
	"github.com/hastate/hastate/internal/wait"
)

func TestQuorumSentAt(t *testing.T) {
	type ans struct {
		id          raft.ServerID
		asked, told uint64
		at          clock.Instant
	}
	ids := func(s ...raft.ServerID) []raft.ServerID { return s }
	const now = 100
	cases := []struct {
		name    string
		answers []ans
		term    uint64
		voters  []raft.ServerID
		want    clock.Instant
		ok      bool
	}{
		{name: "alone", term: 3, voters: ids("n1"), want: now, ok: true},
		{name: "no voters", term: 3},
		{name: "nobody answered", term: 3, voters: ids("n1", "n2", "n3")},
		{name: "one of two others", answers: []ans{{"n2", 3, 3, 40}}, term: 3, voters: ids("n1", "n2", "n3"), want: 40, ok: true},
		{name: "the newest of both", answers: []ans{{"n2", 3, 3, 40}, {"n3", 3, 3, 50}}, term: 3, voters: ids("n1", "n2", "n3"), want: 50, ok: true},
		{name: "an older answer that comes later", answers: []ans{{"n2", 3, 3, 40}, {"n2", 3, 3, 30}}, term: 3, voters: ids("n1", "n2", "n3"), want: 40, ok: true},
		{name: "five voters need two others", answers: []ans{{"n2", 3, 3, 40}, {"n3", 3, 3, 60}, {"n4", 3, 3, 50}}, term: 3, voters: ids("n1", "n2", "n3", "n4", "n5"), want: 50, ok: true},
		{name: "four voters need two others", answers: []ans{{"n2", 3, 3, 40}}, term: 3, voters: ids("n1", "n2", "n3", "n4")},
		{name: "two voters need the other", answers: []ans{{"n3", 3, 3, 40}}, term: 3, voters: ids("n1", "n2")},
		{name: "nonvoters do not count", answers: []ans{{"n4", 3, 3, 90}, {"n5", 3, 3, 90}}, term: 3, voters: ids("n1", "n2", "n3")},
		{name: "this node is no voter", answers: []ans{{"n2", 3, 3, 40}, {"n3", 3, 3, 50}}, term: 3, voters: ids("n2", "n3", "n4"), want: 40, ok: true},
		{name: "this node is no voter and one answered", answers: []ans{{"n2", 3, 3, 40}}, term: 3, voters: ids("n2", "n3")},
		{name: "a voter listed twice counts once", answers: []ans{{"n2", 3, 3, 40}}, term: 3, voters: ids("n2", "n2", "n3")},
		{name: "a response with a higher term", answers: []ans{{"n2", 3, 4, 40}}, term: 3, voters: ids("n1", "n2", "n3")},
		{name: "nor does it count for that term", answers: []ans{{"n2", 3, 4, 40}}, term: 4, voters: ids("n1", "n2", "n3")},
		{name: "another term", answers: []ans{{"n2", 3, 3, 40}}, term: 4, voters: ids("n1", "n2", "n3")},
		{name: "a newer term replaces", answers: []ans{{"n2", 3, 3, 40}, {"n2", 4, 4, 30}}, term: 4, voters: ids("n1", "n2", "n3"), want: 30, ok: true},
		{name: "an older term does not", answers: []ans{{"n2", 4, 4, 30}, {"n2", 3, 3, 40}}, term: 4, voters: ids("n1", "n2", "n3"), want: 30, ok: true},
		{name: "it is gone", answers: []ans{{"n2", 3, 3, 40}, {"n2", 4, 4, 30}}, term: 3, voters: ids("n1", "n2", "n3")},
		{name: "term 0", answers: []ans{{"n2", 0, 0, 40}}, term: 0, voters: ids("n1", "n2", "n3")},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			e := newEvidence()
			for _, a := range c.answers {
				e.appended(a.id, a.asked, a.told, a.at)
			}
			got, ok := e.quorumSentAt(c.term, c.voters, "n1", now)
			if got != c.want || ok != c.ok {
				t.Errorf("got %d, %v, want %d, %v", got, ok, c.want, c.ok)
			}
		})
	}
}

// A response counts for the time its request left, however late it comes back.
func TestEvidenceIsOfTheSendTime(t *testing.T) {
	m, net, now := newMesh(), NewNetwork(), &clock.Fake{}
	now.Advance(time.Second)
	a := m.add(t, "n1", func(o *Options) { o.Clock, o.Fault, o.Heartbeat = now, net, time.Minute })
	b := m.add(t, "n2", nil)
	answer(t, b, accept)
	r := &fakeRaft{state: raft.Leader, term: 5}
	a.Bind(r)
	voters := []raft.ServerID{"n1", "n2"}

	held := net.HoldResponses("n1", "n2")
	sent := now.Now()
	done := make(chan error, 1)
	go func() { done <- a.AppendEntries("n2", "n2", heartbeatOf("n1", 5), &raft.AppendEntriesResponse{}) }()
	wait.Until(t, long, func() error {
		if held.Count() != 1 {
			return errors.New("no response is held")
		}
		return nil
	})
	if at, ok := a.QuorumSentAt(5, voters); ok {
		t.Fatalf("a response that has not come counts for %d", at)
	}
	now.Advance(time.Second)
	t0 := now.Now()
	now.Advance(time.Second)
	held.Release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	at, ok := a.QuorumSentAt(5, voters)
	if !ok || at != sent || at >= t0 {
		t.Fatalf("got %d, %v, want %d, before %d", at, ok, sent, t0)
	}
	if at, ok := a.LastAnswered("n2"); !ok || at != sent {
		t.Fatalf("last answered %d, %v, want %d", at, ok, sent)
	}

	// A new one moves it beyond t0.
	if err := a.AppendEntries("n2", "n2", heartbeatOf("n1", 5), &raft.AppendEntriesResponse{}); err != nil {
		t.Fatal(err)
	}
	if at, ok := a.QuorumSentAt(5, voters); !ok || at < t0 {
		t.Fatalf("got %d, %v, want at least %d", at, ok, t0)
	}

	// Nothing counts once this node does not lead.
	for _, c := range []struct {
		state raft.RaftState
		term  uint64
		want  bool
	}{{raft.Leader, 5, true}, {raft.Follower, 5, false}, {raft.Leader, 6, false}, {raft.Shutdown, 5, false}} {
		r.set(c.state, c.term)
		if _, ok := a.QuorumSentAt(5, voters); ok != c.want {
			t.Errorf("%v in term %d: %v", c.state, c.term, ok)
		}
	}
}

// Each way of sending an append gives evidence, and a higher term never does.
func TestEvidenceOfEveryKind(t *testing.T) {
	for _, higher := range []bool{false, true} {
		for _, kind := range []string{KindHeartbeat, KindAppend, KindPipeline} {
			t.Run(fmt.Sprintf("%s higher=%v", kind, higher), func(t *testing.T) {
				m, now := newMesh(), &clock.Fake{}
				now.Advance(time.Second)
				a := m.add(t, "n1", func(o *Options) { o.Clock = now })
				a.Bind(&fakeRaft{state: raft.Leader, term: 5})
				b := m.add(t, "n2", nil)
				answer(t, b, func(rpc raft.RPC) {
					r := rpc.Command.(*raft.AppendEntriesRequest)
					resp := &raft.AppendEntriesResponse{RPCHeader: header("n2"), Term: r.Term, Success: true}
					if higher {
						resp.Term, resp.Success = r.Term+1, false
					}
					rpc.Respond(resp, nil)
				})
				sendOne(t, a, kind)
				at, ok := a.QuorumSentAt(5, []raft.ServerID{"n1", "n2"})
				if ok == higher || (ok && at != now.Now()) {
					t.Fatalf("evidence %d, %v", at, ok)
				}
				if _, ok := a.LastAnswered("n2"); !ok {
					t.Fatal("the peer has answered, but does not count as reached")
				}
			})
		}
	}
}

func sendOne(t *testing.T, a *Transport, kind string) {
	t.Helper()
	var resp raft.AppendEntriesResponse
	switch kind {
	case KindHeartbeat:
		if err := a.AppendEntries("n2", "n2", heartbeatOf("n1", 5), &resp); err != nil {
			t.Fatal(err)
		}
	case KindAppend:
		if err := a.AppendEntries("n2", "n2", appendOf("n1", 5, 7, 1), &resp); err != nil {
			t.Fatal(err)
		}
	case KindPipeline:
		l, err := a.AppendEntriesPipeline("n2", "n2")
		if err != nil {
			t.Fatal(err)
		}
		f, err := l.AppendEntries(appendOf("n1", 5, 7, 1), &resp)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Error(); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
