// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hastate/hastate/internal/clock"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func putTTL(id string, ttl time.Duration) *pb.Command {
	return sessions(opPut(&pb.PutRequest{Session: &pb.Session{Group: "g", Id: id, TtlMs: uint64(ttl.Milliseconds())}}))
}

func dueIDs(e *pb.Expire) []string {
	var out []string
	for _, it := range e.GetSessions() {
		out = append(out, it.GetId())
	}
	slices.Sort(out)
	return out
}

func TestExpiry(t *testing.T) {
	m := newMachine(t)
	c := &clock.Fake{}
	x := NewExpiry(m, c)
	expect := func(ids ...string) *pb.Expire {
		t.Helper()
		e := x.Due(c.Now(), 100)
		if got := dueIDs(e); !slices.Equal(got, ids) {
			t.Fatalf("at %v: due %v, want %v", time.Duration(c.Now()), got, ids)
		}
		return e
	}
	must(t, m, putTTL("old", 10*time.Second), putTTL("ever", 0))
	c.Advance(time.Hour)
	expect() // A follower expires nothing.
	x.Reset(c.Now())
	must(t, m, putTTL("new", 5*time.Second), putTTL("kept", 5*time.Second))
	expect()
	c.Advance(4 * time.Second)
	must(t, m, sessions(opTouch(&pb.TouchRequest{Group: "g", Id: "kept"})), putTTL("shorter", time.Hour))
	must(t, m, putTTL("shorter", time.Second))
	c.Advance(999 * time.Millisecond)
	expect()
	c.Advance(time.Millisecond)
	e := expect("new", "shorter")
	expect() // Proposed, and under way.
	must(t, m, cmdExpire(e))
	c.Advance(4 * time.Second)
	expect("kept")
	c.Advance(time.Second)
	expect("old") // Ten seconds after the takeover.
	c.Advance(expireRetry)
	e = expect("kept", "old") // The proposals were lost.
	must(t, m, putTTL("kept", time.Second))
	must(t, m, cmdExpire(e))
	if _, found, _ := m.Session("g", "kept"); !found {
		t.Error("a session that was written after it was found idle has expired")
	}
	x.Stop()
	c.Advance(time.Hour)
	expect()
	if x.queue != nil || x.sessions != nil {
		t.Error("a stopped expiry holds on to memory")
	}
}

func TestExpiryOfClients(t *testing.T) {
	m := newMachine(t)
	c := &clock.Fake{}
	x := NewExpiry(m, c)
	a := must(t, m, openClient("a")).GetClient()
	x.Reset(c.Now())
	b := must(t, m, openClient("b")).GetClient()
	seq := uint64(0)
	for range 12 { // Three hours in which only a writes.
		c.Advance(ClientIdle/4 - time.Nanosecond)
		seq++
		must(t, m, with(a, seq, 0, put("g", "s", "v")))
		for {
			e := x.Due(c.Now(), 1)
			if e == nil {
				break
			}
			for _, it := range e.GetClients() {
				if it.GetClient() == a {
					t.Fatal("a client that writes is due")
				}
			}
			must(t, m, cmdExpire(e))
		}
	}
	want(t, apply(t, m, with(b, 1, 0, put("g", "s", "v"))), codeExpired)
	c.Advance(ClientIdle - time.Nanosecond)
	if e := x.Due(c.Now(), 10); e != nil {
		t.Errorf("due too early: %v", e)
	}
	c.Advance(ClientIdle)
	e := x.Due(c.Now(), 10)
	if len(e.GetClients()) != 1 || e.GetClients()[0].GetIfSeq() != seq {
		t.Errorf("due: %v", e)
	}
}

func TestExpiryAfterARestore(t *testing.T) {
	from := newMachine(t)
	must(t, from, putTTL("restored", 5*time.Second))
	h, data := save(t, from)
	m := newMachine(t)
	c := &clock.Fake{}
	x := NewExpiry(m, c)
	x.Reset(c.Now())
	must(t, m, putTTL("gone", time.Second))
	if err := restore(m, h, data); err != nil {
		t.Fatal(err)
	}
	c.Advance(10 * time.Second)
	if e := x.Due(c.Now(), 10); e != nil {
		t.Errorf("due at once: %v", e)
	}
	c.Advance(5 * time.Second)
	if got := dueIDs(x.Due(c.Now(), 10)); !slices.Equal(got, []string{"restored"}) {
		t.Errorf("due: %v", got)
	}
}

func TestExpiryIsBounded(t *testing.T) {
	m := newMachine(t)
	c := &clock.Fake{}
	x := NewExpiry(m, c)
	x.Reset(c.Now())
	for i := range 20 {
		must(t, m, putTTL(string(rune('a'+i)), time.Second))
	}
	c.Advance(time.Second)
	var all []string
	for range 4 {
		e := x.Due(c.Now(), 5)
		if len(e.GetSessions()) != 5 {
			t.Fatalf("due: %v", e)
		}
		all = append(all, dueIDs(e)...)
	}
	if len(slices.Compact(all)) != 20 || x.Due(c.Now(), 5) != nil {
		t.Errorf("due: %v", all)
	}
}

// TestExpiryIsNeverEarly compares with the times of the last writes.
func TestExpiryIsNeverEarly(t *testing.T) {
	m := newMachine(t)
	rapid.Check(t, func(t *rapid.T) {
		c := &clock.Fake{}
		x := NewExpiry(m, c)
		defer x.Stop()
		x.Reset(c.Now())
		type last struct {
			at  clock.Instant
			ttl time.Duration
		}
		written := map[string]last{}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			id := rapid.SampledFrom(idNames).Draw(t, "id")
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0:
				ttl := time.Duration(rapid.IntRange(0, 5).Draw(t, "ttl")) * time.Second
				must(t, m, putTTL(id, ttl))
				written[id] = last{c.Now(), ttl}
			case 1:
				must(t, m, sessions(opDelete(&pb.DeleteRequest{Group: "g", Id: id})))
				delete(written, id)
			case 2:
				c.Advance(time.Duration(rapid.IntRange(0, 3).Draw(t, "seconds")) * time.Second)
			case 3:
				e := x.Due(c.Now(), 10)
				for _, id := range dueIDs(e) {
					if w, known := written[id]; known && (w.ttl == 0 || c.Now() < w.at.Add(w.ttl)) {
						t.Fatalf("session %s is due at %v, was written at %v with %v", id, c.Now(), w.at, w.ttl)
					}
				}
				if e != nil {
					must(t, m, cmdExpire(e))
				}
			}
		}
		// Late is allowed, never is not.
		c.Advance(time.Minute)
		if e := x.Due(c.Now(), 100); e != nil {
			must(t, m, cmdExpire(e))
		}
		page, err := m.Sessions(SessionQuery{Group: "g"})
		if err != nil {
			t.Fatalf("list: %v", err)
		}
		for _, s := range page.Sessions {
			if s.GetTtlMs() != 0 {
				t.Fatalf("session %v has not expired", s)
			}
		}
	})
}
