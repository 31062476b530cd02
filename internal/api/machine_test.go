// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/fsm"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// machineState gives a real state machine the form that the services need.
type machineState struct{ *fsm.Machine }

func (s machineState) Sessions(q SessionQuery) (SessionPage, error) {
	page, err := s.Machine.Sessions(fsm.SessionQuery(q))
	return SessionPage(page), err
}

func (s machineState) Subscribe(after uint64) (Feed, error) {
	f, err := s.Machine.Subscribe(after)
	if err != nil {
		return nil, err
	}
	return machineFeed{f}, nil
}

type machineFeed struct{ *fsm.Feed }

func (f machineFeed) Next(ctx context.Context) ([]Event, error) {
	events, err := f.Feed.Next(ctx)
	var out []Event
	for _, e := range events {
		out = append(out, Event{Revision: e.Revision, Group: e.Group, Transition: e.Transition, Instance: e.Instance, Session: e.Session})
	}
	return out, err
}

// direct applies commands to a state machine without a log.
type direct struct {
	*world
	m *fsm.Machine

	mu    sync.Mutex // guards index
	index uint64
}

func (d *direct) Propose(_ context.Context, cmd *pb.Command) (*pb.Result, error) {
	// As the batcher does: no command gets to the log that would halt the machine.
	if err := fsm.CheckCommand(cmd); err != nil {
		return nil, fmt.Errorf("%w: %w", hastate.ErrInvalid, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	data, err := proto.Marshal(&pb.Entry{Commands: []*pb.Command{cmd}})
	if err != nil {
		return nil, err
	}
	d.index++
	res, ok := d.m.Apply(&raft.Log{Index: d.index, Term: 1, Type: raft.LogCommand, Data: data}).([]*pb.Result)
	if !ok || len(res) != 1 {
		return nil, &hastate.OutcomeUnknownError{Reason: "no result"}
	}
	return res[0], nil
}

func (d *direct) ProposeAsync(cmd *pb.Command, done func(*pb.Result, error)) {
	done(d.Propose(context.Background(), cmd))
}

func newMachineRig(t testing.TB, change ...func(*Config)) *rig {
	t.Helper()
	m, err := fsm.Open(fsm.Options{Path: filepath.Join(t.TempDir(), "state.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return newRig(t, "n1", append(change, func(c *Config) {
		c.State, c.Proposer = machineState{m}, &direct{world: &world{}, m: m}
	})...)
}

func TestMachine_Sessions(t *testing.T) {
	c := pb.NewSessionServiceClient(newMachineRig(t).conn)
	ctx := timed(t)
	client, err := c.OpenClient(ctx, &pb.OpenClientRequest{Name: "t"})
	if err != nil {
		t.Fatal(err)
	}
	id := &pb.RequestId{Client: client.GetClient(), Seq: 1, AckedBelow: 1}
	watch, err := c.WatchSessions(ctx, &pb.WatchSessionsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	put := &pb.PutRequest{Request: id, Session: &pb.Session{Id: "s", Value: []byte("abc")}, IfAbsent: true}
	first, err := c.Put(ctx, proto.CloneOf(put))
	if err != nil {
		t.Fatal(err)
	}
	// The same request again is answered with the first result.
	again, err := c.Put(ctx, proto.CloneOf(put))
	if err != nil || again.GetRevision() != first.GetRevision() {
		t.Fatalf("retry: %v, %v", again, err)
	}
	put.Request = nil
	_, err = c.Put(ctx, put)
	wantIs(t, err, hastate.ErrConflict)
	add, err := c.Append(ctx, &pb.AppendRequest{Id: "s", Offset: 3, Data: []byte("def")})
	if err != nil || add.GetEndOffset() != 6 {
		t.Fatalf("%v, %v", add, err)
	}
	_, err = c.Append(ctx, &pb.AppendRequest{Id: "s", Offset: 99, Data: []byte("x")})
	var conflict *hastate.ConflictError
	if !errors.As(hastate.FromStatus(err), &conflict) || conflict.CurrentOffset != 6 {
		t.Fatalf("got %v", err)
	}
	_, err = c.Put(ctx, &pb.PutRequest{Session: &pb.Session{Id: "s", Epoch: 77}})
	wantIs(t, err, hastate.ErrFenced)
	_, err = c.Put(ctx, &pb.PutRequest{Session: &pb.Session{Id: "s", Value: bytes.Repeat([]byte("x"), hastate.DefaultSessionValueBytes+1)}})
	wantIs(t, err, hastate.ErrLimit)
	_, err = c.Put(ctx, &pb.PutRequest{Request: &pb.RequestId{Client: 4711, Seq: 1}, Session: &pb.Session{Id: "s"}})
	wantIs(t, err, hastate.ErrClientExpired)
	got, err := c.Get(ctx, &pb.GetRequest{Id: "s"})
	if err != nil || string(got.GetSession().GetValue()) != "abcdef" {
		t.Fatalf("%v, %v", got, err)
	}
	gone, err := c.Delete(ctx, &pb.DeleteRequest{Id: "s"})
	if err != nil || !gone.GetDeleted() {
		t.Fatalf("%v, %v", gone, err)
	}
	var seen []string
	for len(seen) == 0 || !strings.HasPrefix(seen[len(seen)-1], "gone") {
		res, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range res.GetEvents() {
			what := "value " + string(e.GetSession().GetValue())
			if e.GetDeleted() {
				what = "gone"
			}
			seen = append(seen, what)
		}
	}
	if len(seen) == 0 || seen[len(seen)-1] != "gone" {
		t.Fatalf("watched %v", seen)
	}
}

func TestMachine_GroupsAndModels(t *testing.T) {
	r := newMachineRig(t)
	ctx := timed(t)
	groups, models := pb.NewGroupServiceClient(r.conn), pb.NewModelServiceClient(r.conn)
	_, err := groups.Pause(ctx, &pb.PauseRequest{Group: "g"})
	wantIs(t, err, hastate.ErrNotFound)
	watch, err := groups.Watch(ctx, &pb.WatchRequest{Groups: []string{"g"}})
	if err != nil {
		t.Fatal(err)
	}
	made, err := groups.Configure(ctx, &pb.ConfigureRequest{Group: "g", Policy: &pb.GroupPolicy{MaxLag: 7}})
	if err != nil || made.GetGroup().GetPolicy().GetMaxLag() != 7 {
		t.Fatalf("%v, %v", made, err)
	}
	if got := nextChange(t, watch); got.GetGroup().GetPolicy().GetMaxLag() != 7 {
		t.Fatalf("watched %v", got)
	}
	ref := func(digit string) *pb.ModelVersion {
		return &pb.ModelVersion{Ref: &pb.ModelRef{Name: "m", Version: "1", Digest: "sha256:" + strings.Repeat(digit, 64)}}
	}
	stored, err := models.Register(ctx, &pb.RegisterRequest{Model: ref("a")})
	if err != nil || stored.GetModel().GetRevision() == 0 {
		t.Fatalf("%v, %v", stored, err)
	}
	if _, err := models.Register(ctx, &pb.RegisterRequest{Model: ref("a")}); err != nil {
		t.Fatalf("the same version again: %v", err)
	}
	_, err = models.Register(ctx, &pb.RegisterRequest{Model: ref("b")})
	wantIs(t, err, hastate.ErrAlreadyExists)
	if _, err := models.SetAlias(ctx, &pb.SetAliasRequest{Name: "m", Alias: "champion", Version: "1"}); err != nil {
		t.Fatal(err)
	}
	_, err = models.SetAlias(ctx, &pb.SetAliasRequest{Name: "m", Alias: "champion", Version: "1", IfVersion: "9"})
	wantIs(t, err, hastate.ErrConflict)
	found, err := models.GetModel(ctx, &pb.GetModelRequest{Name: "m", Alias: "champion"})
	if err != nil || fmt.Sprint(found.GetAliases()) != "[champion]" {
		t.Fatalf("%v, %v", found, err)
	}
	status, err := pb.NewClusterServiceClient(r.conn).Status(ctx, &pb.StatusRequest{})
	if err != nil || len(status.GetGroups()) != 1 || status.GetAppliedIndex() == 0 {
		t.Fatalf("%v, %v", status, err)
	}
}
