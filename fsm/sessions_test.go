// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// TestSessionEpochCheck guards fencing: a write under an epoch that is not the
// newest, or was released, changes nothing.
func TestSessionEpochCheck(t *testing.T) {
	ops := map[string]func(epoch uint64) *pb.SessionOp{
		"put": func(e uint64) *pb.SessionOp {
			return opPut(&pb.PutRequest{Session: &pb.Session{Group: "g", Id: "s", Value: []byte("w"), Epoch: e}})
		},
		"append": func(e uint64) *pb.SessionOp {
			return opAppend(&pb.AppendRequest{Group: "g", Id: "s", Offset: 1, Data: []byte("w"), Epoch: e})
		},
		"delete": func(e uint64) *pb.SessionOp {
			return opDelete(&pb.DeleteRequest{Group: "g", Id: "s", Epoch: e})
		},
		"touch": func(e uint64) *pb.SessionOp {
			return opTouch(&pb.TouchRequest{Group: "g", Id: "s", TtlMs: 5, Epoch: e})
		},
	}
	for name, op := range ops {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			must(t, m, put("g", "s", "v"))
			refused := func(epoch, newest uint64, holder string) {
				t.Helper()
				before := hashOf(t, m)
				r := want(t, apply(t, m, sessions(op(epoch))), codeFenced)
				if r.GetEpoch() != newest || r.GetHolder() != holder {
					t.Errorf("epoch %d: %v", epoch, r)
				}
				if hashOf(t, m) != before {
					t.Errorf("epoch %d: a fenced write changed the state", epoch)
				}
			}
			refused(3, 0, "") // There is no group yet.
			must(t, m, report("g", "n1"))
			old := must(t, m, cmdGrant(&pb.Grant{Group: "g", Holder: "n1"})).GetEpoch()
			refused(old+1, old, "n1")
			refused(old-1, old, "n1")
			epoch := must(t, m, cmdHandover(&pb.Handover{Group: "g", From: "n1", To: "n2", IfEpoch: old})).GetEpoch()
			refused(old, epoch, "n2")
			must(t, m, cmdRelease(&pb.Release{Group: "g", Holder: "n2", Epoch: epoch}))
			refused(epoch, epoch, "") // Released: over.
			newest := must(t, m, cmdGrant(&pb.Grant{Group: "g", Holder: "n1", IfEpoch: epoch, IfLastRenew: epoch})).GetEpoch()
			refused(epoch, newest, "n1")
			must(t, m, cmdRevoke("g", newest)) // Its lease still runs.
			must(t, m, sessions(op(newest)))
		})
	}
}

func TestPut(t *testing.T) {
	m := newMachine(t)
	r := must(t, m, put("g", "s", "v"))
	first := r.GetSessions()[0].GetRevision()
	conflict := func(p *pb.PutRequest, revision uint64) {
		t.Helper()
		p.Session = &pb.Session{Group: "g", Id: "s", Value: []byte("other")}
		if r := want(t, apply(t, m, sessions(opPut(p))), codeConflict); r.GetCurrentRevision() != revision || r.GetConflictKey() != "g/s" {
			t.Errorf("conflict %v", r)
		}
	}
	conflict(&pb.PutRequest{IfAbsent: true}, first)
	conflict(&pb.PutRequest{IfRevision: first + 1}, first)
	second := must(t, m, sessions(opPut(&pb.PutRequest{IfRevision: first, Session: &pb.Session{
		Group: "g", Id: "s", Value: []byte("w"), Revision: 99, CreateRevision: 99,
	}}))).GetSessions()[0].GetRevision()
	x, found, err := m.Session("g", "s")
	if err != nil || !found || string(x.GetValue()) != "w" || x.GetRevision() != second || x.GetCreateRevision() != first {
		t.Errorf("session %v, %v, %v", x, found, err)
	}
	must(t, m, sessions(opDelete(&pb.DeleteRequest{Group: "g", Id: "s"})))
	conflict(&pb.PutRequest{IfRevision: second}, 0)
	if _, found, _ := m.Session("g", "s"); found {
		t.Error("deleted, and still there")
	}
	if r := must(t, m, sessions(opDelete(&pb.DeleteRequest{Group: "g", Id: "s", IfRevision: 1}))); r.GetSessions()[0].GetDeleted() {
		t.Error("deleted what was not there")
	}
}

func TestAppend(t *testing.T) {
	m := newMachine(t)
	do := func(offset uint64, data string, trim uint64) *pb.Result {
		t.Helper()
		return apply(t, m, sessions(opAppend(&pb.AppendRequest{Group: "g", Id: "s", Offset: offset, Data: []byte(data), TrimBefore: trim, TtlMs: 9})))
	}
	state := func(base uint64, value string) {
		t.Helper()
		if x, _, _ := m.Session("g", "s"); x.GetBaseOffset() != base || string(x.GetValue()) != value || x.GetTtlMs() != 9 {
			t.Errorf("session %v; want %q from %d", x, value, base)
		}
	}
	if r := want(t, do(3, "x", 0), codeConflict); r.GetCurrentOffset() != 0 {
		t.Errorf("append to nothing: %v", r)
	}
	want(t, do(0, "hello", 0), codeOK)
	revision := m.Revision()
	for _, again := range []struct {
		offset uint64
		data   string
	}{{0, "hello"}, {0, "he"}, {3, "lo"}, {2, ""}, {5, ""}} {
		r := want(t, do(again.offset, again.data, 0), codeOK)
		if s := r.GetSessions()[0]; s.GetEndOffset() != 5 || s.GetRevision() != revision || m.Revision() != revision {
			t.Errorf("the same again at %d: %v", again.offset, r)
		}
	}
	for _, bad := range []struct {
		offset uint64
		data   string
	}{{0, "help!"}, {3, "low"}, {6, "x"}, {4, "x"}} {
		if r := want(t, do(bad.offset, bad.data, 0), codeConflict); r.GetCurrentOffset() != 5 || r.GetCurrentRevision() != revision {
			t.Errorf("append at %d: %v", bad.offset, r)
		}
	}
	want(t, do(5, " world", 6), codeOK)
	state(6, "world")
	want(t, do(0, "hello", 0), codeConflict) // Trimmed: nobody knows what it was.
	want(t, do(11, "!!", 13), codeOK)
	state(13, "")
	want(t, do(13, "", 14), codeInvalid)
	want(t, do(13, "abc", 2), codeOK)
	state(13, "abc")
	want(t, do(16, "", 15), codeOK)
	state(15, "c")
}

func TestAppendCountsKeptBytes(t *testing.T) {
	m := newMachine(t)
	must(t, m, configure("g", &pb.GroupPolicy{SessionValueBytes: 10}))
	do := func(offset uint64, n int, trim uint64) *pb.Result {
		return apply(t, m, sessions(opAppend(&pb.AppendRequest{Group: "g", Id: "s", Offset: offset, Data: bytes.Repeat([]byte("x"), n), TrimBefore: trim})))
	}
	want(t, do(0, 10, 0), codeOK)
	if r := want(t, do(10, 1, 0), codeLimit); r.GetLimitMaximum() != 10 || r.GetLimitActual() != 11 {
		t.Errorf("limit: %v", r)
	}
	want(t, do(10, 1, 1), codeOK)
	want(t, do(11, 20, 21), codeOK)
}

func TestBatchIsAtomic(t *testing.T) {
	m := newMachine(t)
	must(t, m, put("g", "a", "1"))
	before, revision := hashOf(t, m), m.Revision()
	r := apply(t, m, sessions(
		opPut(&pb.PutRequest{Session: &pb.Session{Group: "g", Id: "a", Value: []byte("2")}}),
		opPut(&pb.PutRequest{Session: &pb.Session{Group: "g", Id: "b", Value: []byte("2")}}),
		opDelete(&pb.DeleteRequest{Group: "g", Id: "a"}),
		opAppend(&pb.AppendRequest{Group: "g", Id: "b", Offset: 7, Data: []byte("x")})))
	want(t, r, codeConflict)
	if r.GetConflictKey() != "g/b" || len(r.GetSessions()) != 0 || m.Revision() != revision || hashOf(t, m) != before {
		t.Errorf("a refused batch left something: %v", r)
	}
	if n := m.state.counts.sessions["g"]; n != 1 {
		t.Errorf("%d sessions counted", n)
	}
	r = must(t, m, sessions(
		opAppend(&pb.AppendRequest{Group: "g", Id: "b", Data: []byte("12")}),
		opAppend(&pb.AppendRequest{Group: "g", Id: "b", Offset: 2, Data: []byte("34")}),
		opDelete(&pb.DeleteRequest{Group: "g", Id: "a"})))
	if r.GetSessions()[1].GetEndOffset() != 4 || !r.GetSessions()[2].GetDeleted() || m.Revision() != revision+3 {
		t.Errorf("batch: %v", r)
	}
	want(t, apply(t, m, sessions()), codeInvalid)
	want(t, apply(t, m, sessions(opDelete(&pb.DeleteRequest{Group: "g", Id: "a"}), opDelete(&pb.DeleteRequest{Group: "h", Id: "a"}))), codeInvalid)
}

func TestTouch(t *testing.T) {
	m := newMachine(t)
	want(t, apply(t, m, sessions(opTouch(&pb.TouchRequest{Group: "g", Id: "s"}))), codeNotFound)
	must(t, m, put("g", "s", "v"))
	revision := m.Revision()
	must(t, m, sessions(opTouch(&pb.TouchRequest{Group: "g", Id: "s", TtlMs: 7})), sessions(opTouch(&pb.TouchRequest{Group: "g", Id: "s"})))
	if x, _, _ := m.Session("g", "s"); x.GetRevision() != revision+2 || x.GetTtlMs() != 7 || string(x.GetValue()) != "v" || x.GetCreateRevision() != revision {
		t.Errorf("session %v", x)
	}
}

func TestSessionLimits(t *testing.T) {
	long := strings.Repeat("x", 2000)
	full := map[string]string{}
	for i := range hastate.MaxMapEntries + 1 {
		full[fmt.Sprint(i)] = "v"
	}
	for name, tc := range map[string]struct {
		x    *pb.Session
		code pb.ResultCode
	}{
		"no session":         {nil, codeInvalid},
		"no group":           {&pb.Session{Id: "s"}, codeInvalid},
		"no id":              {&pb.Session{Group: "g"}, codeInvalid},
		"control character":  {&pb.Session{Group: "g", Id: "a\x00b"}, codeInvalid},
		"control in group":   {&pb.Session{Group: "g\n", Id: "a"}, codeInvalid},
		"long id":            {&pb.Session{Group: "g", Id: long}, codeLimit},
		"long group":         {&pb.Session{Group: long, Id: "s"}, codeLimit},
		"long owner":         {&pb.Session{Group: "g", Id: "s", Owner: long}, codeLimit},
		"long digest":        {&pb.Session{Group: "g", Id: "s", ModelDigest: long}, codeLimit},
		"long adapter":       {&pb.Session{Group: "g", Id: "s", Adapter: long}, codeLimit},
		"long label":         {&pb.Session{Group: "g", Id: "s", Labels: map[string]string{"a": long}}, codeLimit},
		"long pointer name":  {&pb.Session{Group: "g", Id: "s", Pointers: map[string]string{long: "u"}}, codeLimit},
		"empty pointer name": {&pb.Session{Group: "g", Id: "s", Pointers: map[string]string{"": "u"}}, codeInvalid},
		"many labels":        {&pb.Session{Group: "g", Id: "s", Labels: full}, codeLimit},
		"large value":        {&pb.Session{Group: "g", Id: "s", Value: make([]byte, hastate.DefaultSessionValueBytes+1)}, codeLimit},
		"huge offset":        {&pb.Session{Group: "g", Id: "s", BaseOffset: 1 << 63}, codeInvalid},
		"largest value":      {&pb.Session{Group: "g", Id: "s", Value: make([]byte, hastate.DefaultSessionValueBytes)}, codeOK},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			want(t, apply(t, m, sessions(opPut(&pb.PutRequest{Session: tc.x}))), tc.code)
			if tc.code != codeOK && m.Revision() != 0 {
				t.Error("a refused session changed the state")
			}
		})
	}
	m := newMachine(t)
	want(t, apply(t, m, sessions(opPut(&pb.PutRequest{IfAbsent: true, IfRevision: 1, Session: &pb.Session{Group: "g", Id: "s"}}))), codeInvalid)
	want(t, apply(t, m, configure("g", &pb.GroupPolicy{SessionValueBytes: hastate.MaxSessionValueBytes + 1})), codeLimit)
	must(t, m, configure("g", &pb.GroupPolicy{SessionValueBytes: hastate.MaxSessionValueBytes}))
	must(t, m, sessions(opPut(&pb.PutRequest{Session: &pb.Session{Group: "g", Id: "s", Value: make([]byte, hastate.MaxSessionValueBytes)}})))
	many := make([]*pb.SessionOp, hastate.MaxBatchOps+1)
	for i := range many {
		many[i] = opDelete(&pb.DeleteRequest{Group: "g", Id: "s"})
	}
	want(t, apply(t, m, sessions(many...)), codeLimit)
}

func TestCountLimits(t *testing.T) {
	m := newMachine(t)
	must(t, m, put("g", "s", "v"))
	m.state.counts.sessions["g"] = hastate.MaxSessionsPerGroup
	want(t, apply(t, m, put("g", "t", "v")), codeLimit)
	must(t, m, put("g", "s", "w")) // Not a new one.
	want(t, apply(t, m, sessions(opAppend(&pb.AppendRequest{Group: "g", Id: "t"}))), codeLimit)
	for i := range hastate.MaxGroups - 1 {
		m.state.counts.sessions[fmt.Sprint("x", i)] = 1
	}
	want(t, apply(t, m, put("h", "t", "v")), codeLimit)
	m.state.counts.tables[tableGroups] = hastate.MaxGroups
	want(t, apply(t, m, report("new", "n1")), codeLimit)
	want(t, apply(t, m, configure("new", nil)), codeLimit)
	m.state.counts.tables[tableInstances] = maxInstances
	want(t, apply(t, m, report("new", "n1")), codeLimit)
	m.state.counts.tables[tableMembers] = maxMembers
	want(t, apply(t, m, setMember("n1")), codeLimit)
	m.state.counts.tables[tableModels] = hastate.MaxModelVersions
	want(t, apply(t, m, registerModel("m", "1", digestA)), codeLimit)
}

func TestExpire(t *testing.T) {
	m := newMachine(t)
	must(t, m, put("g", "a", "v"), put("g", "b", "v")) // Revisions 1, 2.
	client := must(t, m, openClient("c")).GetClient()
	must(t, m, with(client, 4, 0, put("g", "c", "v")))
	must(t, m, sessions(opTouch(&pb.TouchRequest{Group: "g", Id: "b"})))
	item := func(id string, rev uint64) *pb.Expire_SessionItem {
		return &pb.Expire_SessionItem{Group: "g", Id: id, IfRevision: rev}
	}
	must(t, m, cmdExpire(&pb.Expire{
		Sessions: []*pb.Expire_SessionItem{item("a", 1), item("b", 2), item("zz", 9)},
		Clients:  []*pb.Expire_ClientItem{{Client: client, IfSeq: 3}, {Client: 999}},
	}))
	if _, found, _ := m.Session("g", "a"); found {
		t.Error("a is still there")
	}
	if _, found, _ := m.Session("g", "b"); !found {
		t.Error("b was touched and expired")
	}
	if r := apply(t, m, with(client, 5, 0, put("g", "c", "w"))); r.GetCode() != codeOK {
		t.Errorf("the client was written to and expired: %v", r)
	}
	must(t, m, cmdExpire(&pb.Expire{Clients: []*pb.Expire_ClientItem{{Client: client, IfSeq: 5}}}))
	want(t, apply(t, m, with(client, 6, 0, put("g", "c", "w"))), codeExpired)
	want(t, apply(t, m, cmdExpire(&pb.Expire{Sessions: make([]*pb.Expire_SessionItem, maxExpire+1)})), codeLimit)
}

func TestListPages(t *testing.T) {
	m := newMachine(t)
	for i := range 30 {
		must(t, m, put("g", fmt.Sprintf("u%02d", i), "v"), put("h", fmt.Sprintf("u%02d", i), "v"), put("g", fmt.Sprintf("w%02d", i), "v"))
		switch i {
		case 10:
			flush(t, m)
		case 20:
			flush(t, m)
			must(t, m, sessions(opDelete(&pb.DeleteRequest{Group: "g", Id: "u05"})))
		}
	}
	var got []string
	q := SessionQuery{Group: "g", Prefix: "u", Limit: 7, KeysOnly: true}
	for {
		page, err := m.Sessions(q)
		if err != nil || page.Revision != m.Revision() {
			t.Fatalf("page: %v, revision %d", err, page.Revision)
		}
		for _, x := range page.Sessions {
			got = append(got, x.GetId())
			if x.GetValue() != nil {
				t.Error("keys only, with a value")
			}
		}
		if page.Next == "" {
			break
		}
		q.After = page.Next
	}
	if len(got) != 29 || got[0] != "u00" || got[5] != "u06" || got[28] != "u29" {
		t.Errorf("ids %v", got)
	}
	if page, err := m.Sessions(SessionQuery{Group: "none"}); err != nil || len(page.Sessions) != 0 || page.Next != "" {
		t.Errorf("no sessions: %v, %v", page, err)
	}
}

func TestListPagesAreBoundedInBytes(t *testing.T) {
	m := newMachine(t)
	for i := range 50 {
		must(t, m, put("g", fmt.Sprintf("%02d", i), strings.Repeat("x", hastate.DefaultSessionValueBytes)))
	}
	for _, keysOnly := range []bool{false, true} { // values are read for both
		page, err := m.Sessions(SessionQuery{Group: "g", KeysOnly: keysOnly})
		if err != nil || len(page.Sessions) != maxPageBytes/hastate.DefaultSessionValueBytes || page.Next == "" {
			t.Errorf("keys only %v: %d sessions, next %q, %v", keysOnly, len(page.Sessions), page.Next, err)
		}
	}
}
