// SPDX-License-Identifier: Apache-2.0

package fsm

import (
	"bufio"
	"encoding/hex"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

var update = flag.Bool("update", false, "write the golden files; only for records that were added")

// goldenCommands has one of each command, with every field set.
func goldenCommands() map[string]*pb.Command {
	ref := &pb.ModelRef{Name: "llama", Version: "3", Digest: digestA}
	return map[string]*pb.Command{
		"sessions": with(7, 8, 3, sessions(
			opPut(&pb.PutRequest{Session: &pb.Session{
				Group: "g", Id: "s", Owner: "n1", Value: []byte("v"), BaseOffset: 4, ModelDigest: digestA, Adapter: "lora",
				Pointers: map[string]string{"kv": "file:/x"}, Labels: map[string]string{"user": "u"}, Epoch: 5, TtlMs: 6,
			}, IfRevision: 9}),
			opPut(&pb.PutRequest{Session: &pb.Session{Group: "g", Id: "t"}, IfAbsent: true}),
			opAppend(&pb.AppendRequest{Group: "g", Id: "s", Offset: 5, Data: []byte("w"), Epoch: 5, TrimBefore: 1, Owner: "n2", TtlMs: 9}),
			opDelete(&pb.DeleteRequest{Group: "g", Id: "s", IfRevision: 3, Epoch: 5}),
			opTouch(&pb.TouchRequest{Group: "g", Id: "s", TtlMs: 3, Epoch: 5}))),
		"open_client": openClient("worker"),
		"expire": cmdExpire(&pb.Expire{
			Sessions: []*pb.Expire_SessionItem{{Group: "g", Id: "s", IfRevision: 3}},
			Clients:  []*pb.Expire_ClientItem{{Client: 7, IfSeq: 8}},
		}),
		"grant": cmdGrant(&pb.Grant{
			Group: "g", Holder: "n1", TtlMs: 1200, IfEpoch: 4, IfLastRenew: 5, Nomination: 6,
			Kind: pb.TransitionKind_TRANSITION_KIND_FAILOVER, Reason: "lease expired", DetectedBy: "n2", DetectMs: 7, GrantMs: 8,
		}),
		"renew":    renew("n1", renewal("g", 5), renewal("h", 6)),
		"release":  cmdRelease(&pb.Release{Group: "g", Holder: "n1", Epoch: 5, Reason: "exit", PromoteFailed: true, DetectMs: 6}),
		"handover": cmdHandover(&pb.Handover{Group: "g", From: "n1", IfEpoch: 5, To: "n2", TtlMs: 1200, Nomination: 6, Kind: 3, Reason: "r", GrantMs: 7}),
		"revoke":   cmdRevoke("g", 5),
		"serving": {Op: &pb.Command_Serving{Serving: &pb.Serving{
			Group: "g", Holder: "n1", Epoch: 5, PromoteMs: 6, Model: ref,
		}}},
		"configure_group": {Op: &pb.Command_ConfigureGroup{ConfigureGroup: &pb.ConfigureGroup{Group: "g", Policy: &pb.GroupPolicy{
			TtlMs: 1, MaxFailovers: 2, CalmMs: 3, MaxLag: 4, DrainMs: 5, PromoteTimeoutMs: 6, PreferredZone: "z", SessionValueBytes: 7,
		}, DesiredModel: ref, ClearDesiredModel: true}}},
		"pause_group":  {Op: &pb.Command_PauseGroup{PauseGroup: &pb.PauseGroup{Group: "g", Reason: "r"}}},
		"resume_group": {Op: &pb.Command_ResumeGroup{ResumeGroup: &pb.ResumeGroup{Group: "g"}}},
		"calm":         {Op: &pb.Command_Calm{Calm: &pb.Calm{Group: "g", IfEpoch: 5}}},
		"report_instance": {Op: &pb.Command_ReportInstance{ReportInstance: &pb.ReportInstance{Instance: &pb.Instance{
			Group: "g", NodeId: "n1", Address: "a:1", State: 5, Reason: "r", Model: ref,
			Tags: &pb.InstanceTags{NoFailover: true, Priority: -2, Zone: "z"}, Engine: "vllm",
		}}}},
		"remove_instance": {Op: &pb.Command_RemoveInstance{RemoveInstance: &pb.RemoveInstance{Group: "g", NodeId: "n1"}}},
		"register_model": {Op: &pb.Command_RegisterModel{RegisterModel: &pb.RegisterModel{Model: &pb.ModelVersion{
			Ref: ref, Uri: "hf:x", Engine: "vllm", ArgsDigest: "a", TokenizerDigest: "t", Adapters: map[string]string{"l": "d"},
			Labels: map[string]string{"k": "v"}, SizeBytes: 9, CreatedBy: "me",
		}}}},
		"set_model_alias":    setAlias("llama", "champion", "3", "2"),
		"delete_model_alias": {Op: &pb.Command_DeleteModelAlias{DeleteModelAlias: &pb.DeleteModelAlias{Name: "llama", Alias: "champion"}}},
		"init_cluster":       initCluster("c1"),
		"set_member":         setMember("n1"),
		"delete_member":      {Op: &pb.Command_DeleteMember{DeleteMember: &pb.DeleteMember{NodeId: "n1"}}},
	}
}

// goldenRecords is everything that logs and state files hold.
func goldenRecords(t *testing.T) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	add := func(name string, m proto.Message) {
		b, err := encodeRecord(m)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = b
	}
	for name, c := range goldenCommands() {
		add("entry "+name, &pb.Entry{WallUnixMs: 1_700_000_000_000, Commands: []*pb.Command{c}})
	}
	add("group", &pb.Group{
		Name: "g", Phase: serving, Holder: "n1", Epoch: 2, TtlMs: 3, LastRenew: 4, Revoked: true, Paused: true, PauseReason: "p", Held: true,
		FailoversSinceCalm: 5, Policy: &pb.GroupPolicy{TtlMs: 1}, DesiredModel: &pb.ModelRef{Name: "m"}, Nomination: 6, LastHolder: "n2",
		ReleaseReason: "r", Revision: 7, Transitions: 8, ReleasedUnixMs: 9, ReleaseDetectMs: 10,
	})
	add("transition", &pb.Transition{
		Group: "g", Number: 1, Kind: 2, Outcome: 3, From: "a", To: "b", EpochBefore: 4, Epoch: 5, Reason: "r", DetectedBy: "d",
		GrantedUnixMs: 6, EndedUnixMs: 7, DetectMs: 8, GrantMs: 9, PromoteMs: 10, ServeMs: 11, Detail: "x",
	})
	add("result", &pb.Result{
		Code: codeConflict, Message: "m", Revision: 1, Sessions: []*pb.SessionOpResult{{Revision: 1, EndOffset: 2, Deleted: true}}, Client: 2, Epoch: 3,
		Holder: "h", ConflictKey: "k", CurrentRevision: 4, CurrentOffset: 5, Limit: "l", LimitMaximum: 6, LimitActual: 7,
		Refused: []*pb.RenewRefusal{{Group: "g", NewestEpoch: 1, Holder: "h"}}, Index: 8,
	})
	w := &writer{number: 7, name: "w", ackedBelow: 2, highestSeq: 5, answered: []answer{{2, out["result"]}, {5, nil}}}
	out["client"] = w.encode()
	out["meta of format 2"] = (&meta{applied: 1, term: 2, revision: 3, clusterID: "c1", configuration: []byte("conf"), configurationIndex: 4, tally: tally{5, 6}}).encode()
	return out
}

// TestGoldenBytes: what was written once is read, and written, alike for ever.
func TestGoldenBytes(t *testing.T) {
	path := filepath.Join("testdata", "records.golden")
	records := goldenRecords(t)
	if *update {
		var b strings.Builder
		for _, name := range slices.Sorted(maps.Keys(records)) {
			fmt.Fprintf(&b, "%s: %s\n", name, hex.EncodeToString(records[name]))
		}
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	seen := 0
	for lines := bufio.NewScanner(f); lines.Scan(); seen++ {
		name, digits, _ := strings.Cut(lines.Text(), ": ")
		if got := hex.EncodeToString(records[name]); got != digits {
			t.Errorf("%s is encoded as\n%s, was\n%s", name, got, digits)
		}
		if kind, found := strings.CutPrefix(name, "entry "); found {
			b, err := hex.DecodeString(digits)
			if err != nil {
				t.Fatal(err)
			}
			e, err := decodeEntry(b)
			if err != nil || !proto.Equal(e.GetCommands()[0], goldenCommands()[kind]) {
				t.Errorf("%s is decoded as %v, %v", name, e, err)
			}
		}
	}
	if seen != len(records) {
		t.Errorf("%d golden records, want %d", seen, len(records))
	}
}

// TestGoldenHasEveryCommand: a new command needs a golden record.
func TestGoldenHasEveryCommand(t *testing.T) {
	have := map[string]bool{}
	for _, c := range goldenCommands() {
		have[reflect.TypeOf(c.GetOp()).String()] = true
	}
	ops := (&pb.Command{}).ProtoReflect().Descriptor().Oneofs().ByName("op").Fields()
	if len(have) != ops.Len() {
		t.Errorf("%d commands have golden records, there are %d", len(have), ops.Len())
	}
}
