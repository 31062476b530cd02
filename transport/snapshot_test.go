// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/hashicorp/raft"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

func snapshotOf(size int) *raft.InstallSnapshotRequest {
	return &raft.InstallSnapshotRequest{
		RPCHeader: header("n1"), SnapshotVersion: 1, Term: 5, LastLogIndex: 9, LastLogTerm: 4,
		Configuration: raft.EncodeConfiguration(raft.Configuration{}), ConfigurationIndex: 2, Size: int64(size),
	}
}

// install plays a Raft node that reads a snapshot as raft does.
func install(got *bytes.Buffer) func(raft.RPC) {
	return func(rpc raft.RPC) {
		r := rpc.Command.(*raft.InstallSnapshotRequest)
		n, err := io.Copy(got, rpc.Reader)
		if err == nil && n != r.Size {
			err = fmt.Errorf("read %d of %d bytes", n, r.Size)
		}
		if rest, _ := io.Copy(io.Discard, rpc.Reader); rest != 0 {
			err = fmt.Errorf("%d bytes came after the end", rest)
		}
		rpc.Respond(&raft.InstallSnapshotResponse{Term: r.Term, Success: err == nil}, err)
	}
}

func TestInstallSnapshot(t *testing.T) {
	readers := map[string]func([]byte) io.Reader{
		"plain":                  func(b []byte) io.Reader { return bytes.NewReader(b) },
		"bytes come with io.EOF": func(b []byte) io.Reader { return iotest.DataErrReader(bytes.NewReader(b)) },
		"half of it":             func(b []byte) io.Reader { return iotest.HalfReader(bytes.NewReader(b)) },
	}
	for name, reader := range readers {
		for _, size := range []int{0, 1, MaxChunkBytes, 3*MaxChunkBytes + 7} {
			t.Run(fmt.Sprintf("%s %d", name, size), func(t *testing.T) {
				m := newMesh()
				a, b := m.add(t, "n1", nil), m.add(t, "n2", nil)
				var got bytes.Buffer
				answer(t, b, install(&got))
				a.Bind(&fakeRaft{state: raft.Leader, term: 5})
				data := bytes.Repeat([]byte("0123456"), size/7+1)[:size]
				var resp raft.InstallSnapshotResponse
				if err := a.InstallSnapshot("n2", "n2", snapshotOf(size), &resp, reader(data)); err != nil || !resp.Success || resp.Term != 5 {
					t.Fatalf("%+v, %v", resp, err)
				}
				if !bytes.Equal(got.Bytes(), data) {
					t.Fatalf("received %d bytes of %d, or others", got.Len(), size)
				}
				if _, ok := a.QuorumSentAt(5, []raft.ServerID{"n1", "n2"}); !ok {
					t.Error("the answer is no evidence")
				}
			})
		}
	}
}

func TestSnapshotReaderGivesDataAndEnd(t *testing.T) {
	parts := make(chan snapshotPart, 3)
	parts <- snapshotPart{msg: chunk("ab")}
	parts <- snapshotPart{msg: chunk("c")}
	parts <- snapshotPart{err: io.EOF}
	r := &snapshotReader{ctx: context.Background(), stop: context.Background(), parts: parts, idle: long, left: 3}
	if err := iotest.TestReader(r, []byte("abc")); err != nil {
		t.Fatal(err)
	}
}

func TestSnapshotReaderRefuses(t *testing.T) {
	end := snapshotPart{err: io.EOF}
	for name, parts := range map[string][]snapshotPart{
		"a clean end too early": {{msg: chunk("ab")}, end},
		"too much":              {{msg: chunk("abcd")}, end},
		"no data":               {{msg: chunk("abc")}, {msg: chunk("")}},
		"a second header":       {{msg: &pb.InstallSnapshotRequest{Part: &pb.InstallSnapshotRequest_Header{}}}},
		"a large part":          {{msg: chunk(strings.Repeat("x", MaxChunkBytes+1))}},
		"a broken stream":       {{msg: chunk("abc")}, {err: errors.New("broken")}},
	} {
		in := make(chan snapshotPart, 3)
		for _, p := range parts {
			in <- p
		}
		r := &snapshotReader{ctx: context.Background(), stop: context.Background(), parts: in, idle: long, left: 3}
		_, err := io.ReadAll(r)
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, again := r.Read(make([]byte, 1)); !errors.Is(again, err) {
			t.Errorf("%s: after %v came %v", name, err, again)
		}
	}
}

// A snapshot waits for a peer that is away, like an append.
func TestSnapshotWaitsForThePeer(t *testing.T) {
	m := newMesh()
	m.move("n2", "down")
	a := m.add(t, "n1", func(o *Options) { o.Heartbeat = 20 * time.Millisecond })
	b := m.add(t, "n2", nil)
	var got bytes.Buffer
	answer(t, b, install(&got))
	done := make(chan error, 1)
	go func() {
		done <- a.InstallSnapshot("n2", "n2", snapshotOf(3), &raft.InstallSnapshotResponse{}, strings.NewReader("abc"))
	}()
	waitParked(t, a, done)
	m.move("n2", "n2")
	select {
	case err := <-done:
		if err != nil || got.String() != "abc" {
			t.Fatalf("%q, %v", got.String(), err)
		}
	case <-time.After(long):
		t.Fatal("the snapshot still waits")
	}
}

func chunk(s string) *pb.InstallSnapshotRequest {
	return &pb.InstallSnapshotRequest{Part: &pb.InstallSnapshotRequest_Chunk{Chunk: []byte(s)}}
}

// A snapshot that is not whole never looks whole to the receiver.
func TestSnapshotIsWholeOrFails(t *testing.T) {
	for name, c := range map[string]struct {
		announced int
		data      io.Reader
	}{
		"short":      {10, strings.NewReader("short")},
		"long":       {3, strings.NewReader("longer")},
		"read error": {10, io.MultiReader(strings.NewReader("start"), iotest.ErrReader(errors.New("bad sector")))},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMesh()
			a, b := m.add(t, "n1", nil), m.add(t, "n2", nil)
			received := make(chan error, 1)
			answer(t, b, func(rpc raft.RPC) {
				_, err := io.Copy(io.Discard, rpc.Reader)
				received <- err
				rpc.Respond(&raft.InstallSnapshotResponse{Term: 5, Success: err == nil}, err)
			})
			var resp raft.InstallSnapshotResponse
			if err := a.InstallSnapshot("n2", "n2", snapshotOf(c.announced), &resp, c.data); err == nil {
				t.Errorf("got %+v", resp)
			}
			select {
			case err := <-received:
				if err == nil {
					t.Error("the receiver saw a whole snapshot")
				}
			case <-time.After(50 * time.Millisecond): // it may have seen nothing of it
			}
		})
	}
}

// A sender that stops does not freeze the receiver's main loop.
func TestSnapshotReaderHasAnIdleTimeout(t *testing.T) {
	m := newMesh()
	a := m.add(t, "n1", nil)
	b := m.add(t, "n2", func(o *Options) { o.SnapshotIdle = 50 * time.Millisecond })
	received := make(chan error, 1)
	answer(t, b, func(rpc raft.RPC) {
		_, err := io.Copy(io.Discard, rpc.Reader)
		_, _ = io.Copy(io.Discard, rpc.Reader) // raft drains it again: must not wait again
		received <- err
		rpc.Respond(nil, err)
	})
	conn, err := a.Conn("n2")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), long)
	defer cancel()
	stream, err := pb.NewRaftServiceClient(conn).InstallSnapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&pb.InstallSnapshotRequest{Part: &pb.InstallSnapshotRequest_Header{Header: snapshotRequestToProto(snapshotOf(10))}}); err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(chunk("abc")); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-received:
		if err == nil || !strings.Contains(err.Error(), "no part") {
			t.Errorf("the reader ended with %v", err)
		}
	case <-time.After(long):
		t.Fatal("the receiver is frozen")
	}
	if err := stream.RecvMsg(&pb.InstallSnapshotResponse{}); err == nil || ctx.Err() != nil {
		t.Errorf("the sender got %v", err)
	}
}

// The deadline is on progress: a snapshot may take longer in all.
func TestSnapshotDeadlineIsOnProgress(t *testing.T) {
	m := newMesh()
	idle := 1500 * time.Millisecond
	a := m.add(t, "n1", func(o *Options) { o.SnapshotIdle = idle })
	b := m.add(t, "n2", nil)
	answer(t, b, func(rpc raft.RPC) {
		// The receiver is the slow one: longer in all than the deadline.
		n, err := io.Copy(io.Discard, io.TeeReader(rpc.Reader, &pauses{}))
		rpc.Respond(&raft.InstallSnapshotResponse{Term: 5, Success: n == 40*MaxChunkBytes}, err)
	})
	began := time.Now()
	var resp raft.InstallSnapshotResponse
	data := io.LimitReader(endless{}, 40*MaxChunkBytes)
	if err := a.InstallSnapshot("n2", "n2", snapshotOf(40*MaxChunkBytes), &resp, data); err != nil || !resp.Success {
		t.Fatalf("%+v, %v", resp, err)
	}
	if took := time.Since(began); took < idle {
		t.Fatalf("it took only %v: the test shows nothing", took)
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

// pauses pauses after each mebibyte: so much the sender must get through in time.
type pauses struct{ n int }

func (p *pauses) Write(b []byte) (int, error) {
	if p.n += len(b); p.n >= 1<<20 {
		p.n = 0
		<-time.After(200 * time.Millisecond)
	}
	return len(b), nil
}

func TestSnapshotSenderGivesUp(t *testing.T) {
	cases := map[string]struct {
		change func(*Options)
		end    func(a *Transport, r *fakeRaft)
		want   error
	}{
		"no progress": {change: func(o *Options) { o.SnapshotIdle = 50 * time.Millisecond }, want: errNoProgress},
		"new term":    {end: func(_ *Transport, r *fakeRaft) { r.set(raft.Leader, 6) }, want: errNotLeading},
		"closed":      {end: func(a *Transport, _ *fakeRaft) { _ = a.Close() }, want: errClosed},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			m := newMesh()
			a := m.add(t, "n1", c.change)
			m.add(t, "n2", nil) // its Raft node takes nothing
			r := &fakeRaft{state: raft.Leader, term: 5}
			a.Bind(r)
			done := make(chan error, 1)
			go func() {
				done <- a.InstallSnapshot("n2", "n2", snapshotOf(1<<30), &raft.InstallSnapshotResponse{}, endless{})
			}()
			if c.end != nil {
				c.end(a, r)
			}
			select {
			case err := <-done:
				if !errors.Is(err, c.want) {
					t.Errorf("got %v, want %v", err, c.want)
				}
			case <-time.After(long):
				t.Fatal("the sender hangs")
			}
		})
	}
	t.Run("restore", func(t *testing.T) {
		m := newMesh()
		a := m.add(t, "n1", func(o *Options) { o.SnapshotRestore = 50 * time.Millisecond })
		m.add(t, "n2", nil)
		err := a.InstallSnapshot("n2", "n2", snapshotOf(3), &raft.InstallSnapshotResponse{}, strings.NewReader("abc"))
		if !errors.Is(err, errNoProgress) {
			t.Errorf("got %v", err)
		}
	})
}
