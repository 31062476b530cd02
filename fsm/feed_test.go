// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func subscribe(t tb, m *Machine, after uint64) *Feed {
	t.Helper()
	f, err := m.Subscribe(after)
	if err != nil {
		t.Fatalf("subscribe: %v", err)
	}
	return f
}

// readAll reads a feed up to a revision and checks that nothing is missing.
func readAll(t tb, f *Feed, from, to uint64) []Event {
	t.Helper()
	var out []Event
	for from < to {
		events, err := f.Next(context.Background())
		if err != nil {
			t.Fatalf("next: %v", err)
		}
		for _, ev := range events {
			if from++; ev.Revision != from {
				t.Fatalf("revision %d, want %d", ev.Revision, from)
			}
		}
		out = append(out, events...)
	}
	return out
}

func TestFeedHasEveryRevision(t *testing.T) {
	m := newMachine(t)
	f := subscribe(t, m, 0)
	defer f.Close()
	must(t, m, initCluster("c"), openClient("w"), setMember("n1"), report("g", "n1"), registerModel("m", "1", digestA), setAlias("m", "a", "1", ""))
	must(t, m, cmdGrant(&pb.Grant{Group: "g", Holder: "n1"}))
	must(t, m, renew("n1", renewal("g", 2)))
	must(t, m, cmdGrant(&pb.Grant{Group: "g", Holder: "n2", IfEpoch: 2, IfLastRenew: 3}))
	must(t, m, put("g", "s", "v"), sessions(opDelete(&pb.DeleteRequest{Group: "g", Id: "s"})))
	events := readAll(t, f, 0, m.Revision())
	var kinds []string
	for _, ev := range events {
		switch {
		case ev.Session != nil:
			kinds = append(kinds, fmt.Sprintf("session deleted=%v", ev.Session.GetDeleted()))
		case ev.Transition != nil:
			kinds = append(kinds, fmt.Sprintf("transition %d %v, holder %s", ev.Transition.GetNumber(), ev.Transition.GetOutcome(), ev.Group.GetHolder()))
		case ev.Group != nil:
			kinds = append(kinds, "group")
		case ev.Instance != nil:
			kinds = append(kinds, "instance")
		case ev.Member != nil:
			kinds = append(kinds, "member")
		case ev.Model != nil:
			kinds = append(kinds, "model")
		case ev.Alias != nil:
			kinds = append(kinds, "alias")
		default:
			kinds = append(kinds, "-")
		}
	}
	expect := "-|-|member|group|instance|model|alias|" +
		"transition 1 TRANSITION_OUTCOME_PENDING, holder n1|" +
		"transition 1 TRANSITION_OUTCOME_FAILED, holder n1|transition 2 TRANSITION_OUTCOME_PENDING, holder n2|" +
		"session deleted=false|session deleted=true"
	if got := strings.Join(kinds, "|"); got != expect {
		t.Errorf("events\n%s, want\n%s", got, expect)
	}
	g := subscribe(t, m, 5)
	defer g.Close()
	if events := readAll(t, g, 5, m.Revision()); events[0].Revision != 6 {
		t.Errorf("a feed after 5 begins with %d", events[0].Revision)
	}
}

func TestFeedWaits(t *testing.T) {
	m := open(t, quiet(filepath.Join(t.TempDir(), "state.db")))
	must(t, m, put("g", "s", "v"))
	next := func(f *Feed, ctx context.Context) chan error {
		done := make(chan error, 1)
		go func() {
			_, err := f.Next(ctx)
			done <- err
		}()
		return done
	}
	f := subscribe(t, m, 1)
	done := next(f, context.Background())
	must(t, m, put("g", "s", "w"))
	if err := <-done; err != nil {
		t.Errorf("next: %v", err)
	}
	done = next(f, context.Background())
	f.Close()
	if err := <-done; !errors.Is(err, hastate.ErrClosed) {
		t.Errorf("next of a closed feed: %v", err)
	}
	f = subscribe(t, m, 100) // Not reached yet.
	ctx, cancel := context.WithCancel(context.Background())
	done = next(f, ctx)
	must(t, m, put("g", "s", "x"))
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("next with an ended context: %v", err)
	}
	done = next(f, context.Background())
	closeMachine(t, m)
	if err := <-done; !errors.Is(err, hastate.ErrClosed) {
		t.Errorf("next of a closed machine: %v", err)
	}
	if _, err := m.Subscribe(3); !errors.Is(err, hastate.ErrClosed) {
		t.Errorf("subscribe to a closed machine: %v", err)
	}
}

func TestSlowReadersAreToldAndBlockNobody(t *testing.T) {
	for name, limit := range map[string]func(*Options){
		"events": func(o *Options) { o.RingEvents = 10 },
		"bytes":  func(o *Options) { o.RingBytes = 4000 },
	} {
		t.Run(name, func(t *testing.T) {
			o := quiet(filepath.Join(t.TempDir(), "state.db"))
			limit(&o)
			m := open(t, o)
			defer func() { closeMachine(t, m) }()
			f := subscribe(t, m, 0)
			defer f.Close()
			for i := range 100 {
				must(t, m, put("g", "s", strings.Repeat("x", i)))
			}
			var compacted *hastate.CompactedError
			if _, err := f.Next(context.Background()); !errors.As(err, &compacted) || compacted.Newest != 100 || compacted.Oldest < 50 {
				t.Fatalf("next: %v", err)
			}
			m.ring.mu.Lock()
			if len(m.ring.events) > 64 || m.ring.bytes > o.RingBytes && o.RingBytes != 0 {
				t.Errorf("%d events of %d bytes are kept", len(m.ring.events), m.ring.bytes)
			}
			m.ring.mu.Unlock()
			if _, err := m.Subscribe(compacted.Oldest - 1); !errors.Is(err, hastate.ErrCompacted) {
				t.Errorf("subscribe before the oldest: %v", err)
			}
			g := subscribe(t, m, compacted.Oldest)
			defer g.Close()
			readAll(t, g, compacted.Oldest, 100)
		})
	}
}

func TestFeedAfterARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	m := open(t, quiet(path))
	must(t, m, put("g", "s", "v"), put("g", "t", "v"))
	closeMachine(t, m)
	m = open(t, quiet(path))
	defer func() { closeMachine(t, m) }()
	if _, err := m.Subscribe(1); !errors.Is(err, hastate.ErrCompacted) {
		t.Errorf("subscribe after 1: %v", err)
	}
	f := subscribe(t, m, 2)
	defer f.Close()
	must(t, m, put("g", "s", "w"))
	readAll(t, f, 2, 3)
}

func TestChanged(t *testing.T) {
	m := newMachine(t)
	quietly := func(c *pb.Command) {
		t.Helper()
		ch := m.Changed()
		must(t, m, c)
		select {
		case <-ch:
			t.Errorf("%v is told as a change of a group", c)
		default:
		}
	}
	loudly := func(c *pb.Command) {
		t.Helper()
		ch := m.Changed()
		must(t, m, c)
		<-ch
	}
	quietly(put("g", "s", "v"))
	quietly(openClient(""))
	loudly(report("g", "n1"))
	loudly(cmdGrant(&pb.Grant{Group: "g", Holder: "n1"}))
	loudly(renew("n1", renewal("g", 4)))
	quietly(renew("n1", renewal("g", 3))) // Refused.
	loudly(setMember("n1"))
}
