// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func TestRetriesAreAnsweredNotApplied(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	m := open(t, quiet(path))
	r := must(t, m, openClient("worker"))
	c := r.GetClient()
	if c == 0 || c != m.Revision() {
		t.Fatalf("client %d, revision %d", c, m.Revision())
	}
	first := must(t, m, with(c, 1, 0, put("g", "s", "1")))
	refused := want(t, apply(t, m, with(c, 2, 0, sessions(opPut(&pb.PutRequest{IfAbsent: true, Session: &pb.Session{Group: "g", Id: "s"}})))), codeConflict)
	must(t, m, sessions(opDelete(&pb.DeleteRequest{Group: "g", Id: "s"})))
	check := func() {
		t.Helper()
		revision := m.Revision()
		if r := apply(t, m, with(c, 1, 0, put("g", "s", "1"))); !proto.Equal(r, first) {
			t.Errorf("retry: %v, want %v", r, first)
		}
		// Now it would succeed; the first attempt did not, so neither must this.
		if r := apply(t, m, with(c, 2, 0, sessions(opPut(&pb.PutRequest{IfAbsent: true, Session: &pb.Session{Group: "g", Id: "s"}})))); !proto.Equal(r, refused) {
			t.Errorf("retry of a refusal: %v, want %v", r, refused)
		}
		if m.Revision() != revision {
			t.Error("a retry was applied")
		}
	}
	check()
	closeMachine(t, m)
	m = open(t, quiet(path))
	defer func() { closeMachine(t, m) }()
	check()
	must(t, m, with(c, 5, 2, put("g", "s", "5"))) // Has seen 1; 3 and 4 are under way.
	want(t, apply(t, m, with(c, 1, 0, put("g", "s", "1"))), codeAcked)
	want(t, apply(t, m, with(c, 2, 0, put("g", "s", "2"))), codeConflict)
	must(t, m, with(c, 4, 2, put("g", "s", "4")), with(c, 3, 2, put("g", "s", "3")))
	if w := m.state.clients[c]; w.highestSeq != 5 || len(w.answered) != 4 || w.answered[1].seq != 3 {
		t.Errorf("writer %+v", w)
	}
}

func TestRequestIDsAreChecked(t *testing.T) {
	m := newMachine(t)
	c := must(t, m, openClient("")).GetClient()
	for name, tc := range map[string]struct {
		client, seq, acked uint64
		code               pb.ResultCode
	}{
		"no client":      {0, 1, 0, codeInvalid},
		"no seq":         {c, 0, 0, codeInvalid},
		"acks itself":    {c, 3, 4, codeInvalid},
		"unknown client": {c + 100, 1, 0, codeExpired},
	} {
		revision := m.Revision()
		r := want(t, apply(t, m, with(tc.client, tc.seq, tc.acked, put("g", "s", "v"))), tc.code)
		if m.Revision() != revision || r.GetRevision() != revision || r.GetIndex() == 0 {
			t.Errorf("%s: %v", name, r)
		}
	}
	want(t, apply(t, m, openClient(strings.Repeat("x", hastate.MaxTextBytes+1))), codeLimit)
}

func TestWindowIsBounded(t *testing.T) {
	m := newMachine(t)
	c := must(t, m, openClient("")).GetClient()
	for seq := uint64(1); seq <= hastate.MaxClientWindow; seq += 256 {
		var cmds []*pb.Command
		for i := range uint64(256) {
			cmds = append(cmds, with(c, seq+i, 0, sessions(opTouch(&pb.TouchRequest{Group: "g", Id: "none"}))))
		}
		apply(t, m, cmds...)
	}
	over := uint64(hastate.MaxClientWindow + 1)
	r := want(t, apply(t, m, with(c, over, 0, put("g", "s", "v"))), codeLimit)
	if r.GetLimitMaximum() != hastate.MaxClientWindow {
		t.Errorf("limit: %v", r)
	}
	must(t, m, with(c, over, 2, put("g", "s", "v"))) // With room it is applied: the refusal was not kept.
	bytes := 0
	for _, w := range m.state.clients {
		for _, a := range w.answered {
			bytes += len(a.result)
		}
	}
	if bytes != m.state.answeredBytes {
		t.Errorf("%d bytes counted, %d kept", m.state.answeredBytes, bytes)
	}
	m.state.answeredBytes = maxAnsweredBytes
	want(t, apply(t, m, with(c, over+1, 0, put("g", "s", "v"))), codeLimit)
}

func TestClientsAreBounded(t *testing.T) {
	m := newMachine(t)
	for range hastate.MaxClients / 4000 {
		cmds := make([]*pb.Command, 4000)
		for i := range cmds {
			cmds[i] = openClient("")
		}
		must(t, m, cmds...)
	}
	want(t, apply(t, m, openClient("")), codeLimit)
}

// TestClientRecordIsProtobuf: the hand-written encoding is that of the message.
func TestClientRecordIsProtobuf(t *testing.T) {
	m := newMachine(t)
	c := must(t, m, openClient("worker")).GetClient()
	must(t, m, with(c, 7, 3, put("g", "s", "v")), with(c, 9, 3, openClient("")))
	w := m.state.clients[c]
	rec := &pb.ClientRecord{}
	if err := proto.Unmarshal(w.encode(), rec); err != nil {
		t.Fatal(err)
	}
	if rec.GetClient() != c || rec.GetName() != "worker" || rec.GetAckedBelow() != 3 || rec.GetHighestSeq() != 9 || len(rec.GetAnswered()) != 2 {
		t.Errorf("record %v", rec)
	}
	b, err := encodeRecord(rec)
	if err != nil || !bytes.Equal(b, w.encode()) {
		t.Errorf("encoded %x, protobuf %x, %v", w.encode(), b, err)
	}
	again, err := decodeWriter(b)
	if err != nil || !bytes.Equal(again.encode(), b) {
		t.Errorf("decoded %+v, %v", again, err)
	}
}
