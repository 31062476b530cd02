// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"net"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// wantText checks what came from a model server for the log, which refuses other.
func wantText(t *testing.T, s string, maximum int) {
	t.Helper()
	if len(s) > maximum || !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		t.Fatalf("%q, of %d bytes, is no text of at most %d", s, len(s), maximum)
	}
}

func wantStatus(t *testing.T, st Status) {
	t.Helper()
	wantText(t, st.Reason, hastate.MaxTextBytes)
	if _, known := pb.InstanceState_name[int32(st.State)]; !known || st.State == pb.InstanceState_INSTANCE_STATE_UNSPECIFIED {
		t.Fatalf("state %d", st.State)
	}
	if len(st.Models) > maxModels {
		t.Fatalf("%d models", len(st.Models))
	}
	for _, m := range append([]*pb.ModelRef{st.Model}, st.Models...) {
		wantText(t, m.GetName(), hastate.MaxNameBytes)
		wantText(t, m.GetVersion(), hastate.MaxNameBytes)
		wantText(t, m.GetDigest(), hastate.MaxTextBytes)
	}
}

// FuzzStatus takes any WatchStatus message of a model server: what is made of it can
// be written to the log, and is the same when it comes again.
func FuzzStatus(f *testing.F) {
	for _, m := range []*pb.WatchStatusResponse{
		{State: stReady, Role: pb.Role_ROLE_PRIMARY, Epoch: 3, Models: []*pb.ModelRef{{Name: "m", Version: "1"}}, StepsTotal: 9},
		{State: 77, Reason: "two\nlines\x1b[2J", Models: []*pb.ModelRef{{Name: strings.Repeat("m", 300), Version: "a\tb"}}},
		{State: stLive, Models: make([]*pb.ModelRef, 40)},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m := &pb.WatchStatusResponse{}
		if proto.Unmarshal(data, m) != nil {
			return
		}
		st := statusOf(m)
		wantStatus(t, st)
		v := &view{interval: time.Second, failAfter: 3, bySilence: true}
		now := time.Unix(100, 0)
		v.take(event{kind: heard, status: st}, now)
		if got := v.status(now); got.State != st.State || got.Reason != st.Reason {
			t.Fatalf("%+v is reported as %+v", st, got)
		}
	})
}

// FuzzText: whatever a server says becomes one short line, once.
func FuzzText(f *testing.F) {
	f.Add("plain")
	f.Add("two\r\nlines\x00\x1b[0m\x7f\u0085")
	f.Add(strings.Repeat("ä", hastate.MaxTextBytes))
	f.Add("\xff\xfe")
	f.Fuzz(func(t *testing.T, s string) {
		got := text(s)
		wantText(t, got, hastate.MaxTextBytes)
		if text(got) != got {
			t.Fatalf("%q becomes %q, and then %q", s, got, text(got))
		}
	})
}

// FuzzView gives a view any events at any times: what it reports can be written to
// the log, and a server that is gone is DOWN until it is heard.
func FuzzView(f *testing.F) {
	f.Add(true, []byte{0, 1, 1, 200, 3, 1, 2, 2})
	f.Add(false, []byte{2, 1, 2, 1, 2, 1, 0, 1, 1, 1})
	f.Fuzz(func(t *testing.T, bySilence bool, steps []byte) {
		v := &view{interval: time.Second, failAfter: 3, bySilence: bySilence}
		now := time.Unix(100, 0)
		for ; len(steps) >= 2; steps = steps[2:] {
			e := event{kind: eventKind(steps[0] % 4), reason: text(string(steps))}
			if e.kind == heard {
				e = event{kind: heard, status: statusOf(&pb.WatchStatusResponse{State: pb.InstanceState(steps[0] / 4), Reason: string(steps)})}
			}
			now = now.Add(time.Duration(steps[1]) * 50 * time.Millisecond)
			v.take(e, now)
			st := v.status(now)
			wantStatus(t, st)
			if e.kind == gone && (st.State != stDown || !st.Gone) || e.kind == heard && (st.State != e.status.State || st.Gone) {
				t.Fatalf("after %+v: %+v", e, st)
			}
		}
	})
}

// FuzzHealthAnswer lets a server answer a health probe with any bytes: the look ends
// in its time, healthy only after a status line with 200, and its reason is a text.
func FuzzHealthAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
	f.Add([]byte("HTTP/1.1 503 \x1b[2J\xff\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"))
	f.Add([]byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"))
	f.Add([]byte("\x00\x01\x02"))
	answers := make(chan []byte, 1)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		answerHealth(lis, answers)
	}()
	f.Cleanup(func() {
		_ = lis.Close()
		<-served
	})
	in, err := openProbed(Config{Kind: KindHTTP, Target: "http://" + lis.Addr().String() + "/health", Timeout: 5 * time.Second, Interval: time.Second, FailAfter: 3})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		answers <- answer
		e := in.probe(t.Context())
		in.free()
		select {
		case <-answers: // nobody asked
		default:
		}
		wantText(t, e.reason, hastate.MaxTextBytes)
		if e.kind == heard && !strings.Contains(string(answer), "200") || e.kind == gone {
			t.Fatalf("%q is taken for %+v", answer, e)
		}
		v := &view{interval: time.Second, failAfter: 3}
		v.take(e, time.Unix(1, 0))
		wantStatus(t, v.status(time.Unix(1, 0)))
	})
}

// answerHealth gives the next answer to whoever asks, until lis is closed.
func answerHealth(lis net.Listener, answers <-chan []byte) {
	for {
		conn, err := lis.Accept()
		if err != nil {
			return
		}
		_ = conn.SetDeadline(time.Now().Add(time.Second)) // of a test
		buf := make([]byte, 4096)
		if _, err := conn.Read(buf); err == nil { // nothing comes from a bare look at the port
			select {
			case a := <-answers:
				_, _ = conn.Write(a)
			default:
			}
		}
		_ = conn.Close()
	}
}
