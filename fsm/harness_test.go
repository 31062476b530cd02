// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	codeOK       = pb.ResultCode_RESULT_CODE_OK
	codeConflict = pb.ResultCode_RESULT_CODE_CONFLICT
	codeFenced   = pb.ResultCode_RESULT_CODE_FENCED
	codeNotFound = pb.ResultCode_RESULT_CODE_NOT_FOUND
	codeExists   = pb.ResultCode_RESULT_CODE_ALREADY_EXISTS
	codeLimit    = pb.ResultCode_RESULT_CODE_LIMIT
	codeInvalid  = pb.ResultCode_RESULT_CODE_INVALID
	codeExpired  = pb.ResultCode_RESULT_CODE_CLIENT_EXPIRED
	codeAcked    = pb.ResultCode_RESULT_CODE_ALREADY_ACKED
)

// tb is what testing.TB and *rapid.T share.
type tb interface {
	Helper()
	Errorf(string, ...any)
	Fatalf(string, ...any)
}

// quiet options flush only when a test asks for it.
func quiet(path string) Options {
	return Options{Path: path, FlushInterval: time.Hour}
}

func open(t tb, o Options) *Machine {
	t.Helper()
	m, err := Open(o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return m
}

func closeMachine(t tb, m *Machine) {
	t.Helper()
	if err := m.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

// newMachine opens a Machine in a directory of its own.
func newMachine(t *testing.T) *Machine {
	t.Helper()
	m := open(t, quiet(filepath.Join(t.TempDir(), "state.db")))
	t.Cleanup(func() { closeMachine(t, m) })
	return m
}

func logOf(t tb, index uint64, cmds ...*pb.Command) *raft.Log {
	t.Helper()
	data, err := proto.Marshal(&pb.Entry{WallUnixMs: int64(1000 * index), Commands: cmds})
	if err != nil {
		t.Fatalf("encode entry: %v", err)
	}
	return &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: data}
}

// applyAt applies commands as one entry.
func applyAt(t tb, m *Machine, index uint64, cmds ...*pb.Command) []*pb.Result {
	t.Helper()
	rs, isResults := m.Apply(logOf(t, index, cmds...)).([]*pb.Result)
	if !isResults || len(rs) != len(cmds) {
		t.Fatalf("apply entry %d: no results", index)
	}
	return rs
}

// apply applies commands as the next entry and returns the last result.
func apply(t tb, m *Machine, cmds ...*pb.Command) *pb.Result {
	t.Helper()
	applied, _ := m.Applied()
	rs := applyAt(t, m, applied+1, cmds...)
	return rs[len(rs)-1]
}

func want(t tb, r *pb.Result, code pb.ResultCode) *pb.Result {
	t.Helper()
	if r.GetCode() != code {
		t.Fatalf("result %v, want code %v", r, code)
	}
	return r
}

func must(t tb, m *Machine, cmds ...*pb.Command) *pb.Result {
	t.Helper()
	return want(t, apply(t, m, cmds...), codeOK)
}

func hashOf(t tb, m *Machine) [32]byte {
	t.Helper()
	applied, _ := m.Applied()
	index, sum := m.Hash()
	if index != applied {
		t.Fatalf("hash is of entry %d, applied is %d", index, applied)
	}
	return sum
}

func flush(t tb, m *Machine) {
	t.Helper()
	if err := m.flush(); err != nil {
		t.Fatalf("flush: %v", err)
	}
}

func copyFile(t tb, from, to string) {
	t.Helper()
	src, err := os.Open(from)
	if err != nil {
		t.Fatalf("copy: %v", err)
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		t.Fatalf("copy: %v", err)
	}
	if _, err := io.Copy(dst, src); err != nil {
		t.Fatalf("copy: %v", err)
	}
	if err := dst.Close(); err != nil {
		t.Fatalf("copy: %v", err)
	}
}

// Commands.

func sessions(ops ...*pb.SessionOp) *pb.Command {
	return &pb.Command{Op: &pb.Command_Sessions{Sessions: &pb.SessionOps{Ops: ops}}}
}

func opPut(r *pb.PutRequest) *pb.SessionOp { return &pb.SessionOp{Op: &pb.SessionOp_Put{Put: r}} }

func opAppend(r *pb.AppendRequest) *pb.SessionOp {
	return &pb.SessionOp{Op: &pb.SessionOp_Append{Append: r}}
}

func opDelete(r *pb.DeleteRequest) *pb.SessionOp {
	return &pb.SessionOp{Op: &pb.SessionOp_Delete{Delete: r}}
}

func opTouch(r *pb.TouchRequest) *pb.SessionOp {
	return &pb.SessionOp{Op: &pb.SessionOp_Touch{Touch: r}}
}

func put(group, id, value string) *pb.Command {
	return sessions(opPut(&pb.PutRequest{Session: &pb.Session{Group: group, Id: id, Value: []byte(value)}}))
}

func with(client, seq, acked uint64, c *pb.Command) *pb.Command {
	c.Request = &pb.RequestId{Client: client, Seq: seq, AckedBelow: acked}
	return c
}

func openClient(name string) *pb.Command {
	return &pb.Command{Op: &pb.Command_OpenClient{OpenClient: &pb.OpenClient{Name: name}}}
}

func report(group, node string) *pb.Command {
	return &pb.Command{Op: &pb.Command_ReportInstance{ReportInstance: &pb.ReportInstance{Instance: &pb.Instance{
		Group: group, NodeId: node, Address: node + ":80", State: pb.InstanceState_INSTANCE_STATE_READY,
	}}}}
}

func cmdGrant(g *pb.Grant) *pb.Command {
	if g.TtlMs == 0 {
		g.TtlMs = 1200
	}
	if g.Kind == 0 {
		g.Kind = pb.TransitionKind_TRANSITION_KIND_FAILOVER
	}
	return &pb.Command{Op: &pb.Command_Grant{Grant: g}}
}

func renew(holder string, items ...*pb.RenewBatch_Item) *pb.Command {
	return &pb.Command{Op: &pb.Command_Renew{Renew: &pb.RenewBatch{Holder: holder, Items: items}}}
}

func renewal(group string, epoch uint64) *pb.RenewBatch_Item {
	return &pb.RenewBatch_Item{Group: group, Epoch: epoch}
}

func cmdRelease(r *pb.Release) *pb.Command {
	return &pb.Command{Op: &pb.Command_Release{Release: r}}
}

func cmdHandover(h *pb.Handover) *pb.Command {
	if h.TtlMs == 0 {
		h.TtlMs = 1200
	}
	if h.Kind == 0 {
		h.Kind = pb.TransitionKind_TRANSITION_KIND_SWITCHOVER
	}
	return &pb.Command{Op: &pb.Command_Handover{Handover: h}}
}

func cmdRevoke(group string, epoch uint64) *pb.Command {
	return &pb.Command{Op: &pb.Command_Revoke{Revoke: &pb.Revoke{Group: group, IfEpoch: epoch, Reason: "operator"}}}
}

func cmdServing(group, holder string, epoch, ms uint64) *pb.Command {
	return &pb.Command{Op: &pb.Command_Serving{Serving: &pb.Serving{Group: group, Holder: holder, Epoch: epoch, PromoteMs: ms, ServeMs: ms / 10}}}
}

func configure(group string, p *pb.GroupPolicy) *pb.Command {
	return &pb.Command{Op: &pb.Command_ConfigureGroup{ConfigureGroup: &pb.ConfigureGroup{Group: group, Policy: p}}}
}

func cmdExpire(e *pb.Expire) *pb.Command {
	return &pb.Command{Op: &pb.Command_Expire{Expire: e}}
}

func initCluster(id string) *pb.Command {
	return &pb.Command{Op: &pb.Command_InitCluster{InitCluster: &pb.InitCluster{ClusterId: id}}}
}

func setMember(id string) *pb.Command {
	return &pb.Command{Op: &pb.Command_SetMember{SetMember: &pb.SetMember{Member: &pb.Member{
		NodeId: id, Address: id + ":7000", Role: pb.MemberRole_MEMBER_ROLE_VOTER,
	}}}}
}

func deletion(group, id string) *pb.DeleteRequest { return &pb.DeleteRequest{Group: group, Id: id} }
