// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"strings"
	"testing"
	"time"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

const (
	stDown    = pb.InstanceState_INSTANCE_STATE_DOWN
	stLoading = pb.InstanceState_INSTANCE_STATE_LOADING
	stLive    = pb.InstanceState_INSTANCE_STATE_LIVE
	stReady   = pb.InstanceState_INSTANCE_STATE_READY
)

func TestView(t *testing.T) {
	ready := event{kind: heard, status: Status{State: stReady}}
	slow, no, dead := event{kind: failed, reason: "slow"}, event{kind: unready, reason: "503"}, event{kind: gone, reason: "refused"}
	for _, tc := range []struct {
		name      string
		bySilence bool
		events    []event
		after     time.Duration // since the last event
		want      pb.InstanceState
		gone      bool
		reason    string
	}{
		{name: "nothing known", want: stDown, reason: "has not answered yet"},
		{name: "never answered", events: []event{slow}, want: stDown, reason: "slow"},
		{name: "ready", events: []event{ready}, want: stReady},
		{name: "one slow look", events: []event{ready, slow}, want: stReady, reason: "1 of 3"},
		{name: "two slow looks", events: []event{ready, slow, slow}, want: stReady, reason: "2 of 3"},
		{name: "three slow looks", events: []event{ready, slow, slow, slow}, want: stDown, reason: "3 looks"},
		{name: "not in a row", events: []event{ready, slow, slow, ready, slow, slow}, want: stReady, reason: "2 of 3"},
		{name: "gone at once", events: []event{ready, dead}, want: stDown, gone: true, reason: "refused"},
		{name: "gone, then slow", events: []event{ready, dead, slow}, want: stDown, reason: "slow"},
		{name: "loading", events: []event{no}, want: stLoading, reason: "503"},
		{name: "loading slowly", events: []event{no, slow, slow}, want: stLoading},
		{name: "503 after ready", events: []event{ready, no, no}, want: stReady, reason: "2 of 3"},
		{name: "503 for long after ready", events: []event{ready, no, no, no}, want: stDown},
		{name: "loading again after gone", events: []event{ready, dead, no}, want: stLoading},
		{name: "stream fresh", bySilence: true, events: []event{ready}, after: 20 * time.Millisecond, want: stReady},
		{name: "stream broke", bySilence: true, events: []event{ready, slow, slow, slow, slow, slow}, want: stReady, reason: "asking again: slow"},
		{name: "stream silent", bySilence: true, events: []event{ready}, after: 31 * time.Millisecond, want: stDown, reason: "silent for 31ms"},
		{name: "stream gone", bySilence: true, events: []event{ready, dead}, want: stDown, gone: true},
		{name: "lost its model", bySilence: true, events: []event{ready, no}, want: stLive, reason: "503"},
		{name: "grpc loading", bySilence: true, events: []event{no}, want: stLoading},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := &view{interval: 10 * time.Millisecond, failAfter: 3, bySilence: tc.bySilence}
			now := time.Now()
			for _, e := range tc.events {
				v.take(e, now)
			}
			st := v.status(now.Add(tc.after))
			if st.State != tc.want || st.Gone != tc.gone || !strings.Contains(st.Reason, tc.reason) {
				t.Fatalf("status is %+v, want %v gone %v reason %q", st, tc.want, tc.gone, tc.reason)
			}
		})
	}
	t.Run("silent before down", func(t *testing.T) {
		v := &view{interval: 10 * time.Millisecond, failAfter: 5, bySilence: true}
		now := time.Now()
		v.take(ready, now)
		if st := v.status(now.Add(35 * time.Millisecond)); st.State != stReady || !strings.Contains(st.Reason, "silent for 35ms") {
			t.Fatalf("status is %+v", st)
		}
		if st := v.status(now.Add(51 * time.Millisecond)); st.State != stDown || st.Gone {
			t.Fatalf("status is %+v", st)
		}
	})
}

func TestTail(t *testing.T) {
	out := &tail{limit: 8}
	for _, s := range []string{"abc", "defgh", "ij", strings.Repeat("x", 20) + "12345678"} {
		if n, err := out.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatal(n, err)
		}
		if len(out.buf) > 8 {
			t.Fatalf("%d bytes kept", len(out.buf))
		}
		if s == "ij" && out.String() != "cdefghij" {
			t.Fatalf("kept %q", out)
		}
	}
	if out.String() != "12345678" {
		t.Fatalf("kept %q", out)
	}
}

func TestText(t *testing.T) {
	if s := text(strings.Repeat("ä", 200)); len(s) > 256 || strings.Contains(s, "\ufffd") {
		t.Fatalf("%d bytes: %q", len(s), s)
	}
	if s := text("one\n\ttwo\x00"); s != "one  two " {
		t.Fatalf("%q", s)
	}
}
