// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/hastate/hastate"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// maxModels bounds the models of one status.
const maxModels = 16

// silentAfter is how many intervals without a message make a stream silent.
const silentAfter = 3

// event is one thing learnt of the server.
type event struct {
	kind eventKind
	// status is set with heard.
	status Status
	// reason is set with the others.
	reason string
}

type eventKind int

const (
	// heard: the server answered, with a status.
	heard eventKind = iota
	// unready: the server answered that it is not ready.
	unready
	// failed: no answer, or none that counts.
	failed
	// gone: its port refuses connections.
	gone
)

// view turns events into the status that is reported. It is pure: time enters
// as an argument.
type view struct {
	interval  time.Duration
	failAfter int
	// bySilence: DOWN after failAfter intervals without a word (grpc), not after
	// failAfter failures (http, tcp).
	bySilence bool

	last Status
	// known: the server has answered since the start or since it was gone.
	known bool
	// ready: it has been READY since then. Until that, "not ready" means that it
	// is loading.
	ready    bool
	gone     bool
	since    time.Time // of the last word
	failures int
	reason   string // of the last failure, empty after a word
}

// take learns an event.
func (v *view) take(e event, now time.Time) {
	if e.kind == unready {
		e = v.readUnready(e)
	}
	switch e.kind {
	case heard:
		v.last, v.known, v.gone, v.since = e.status, true, false, now
		v.failures, v.reason = 0, ""
		v.ready = v.ready || e.status.State == pb.InstanceState_INSTANCE_STATE_READY
	case gone:
		*v = view{interval: v.interval, failAfter: v.failAfter, bySilence: v.bySilence, gone: true, reason: e.reason}
	default:
		v.gone = false
		v.failures++
		v.reason = e.reason
	}
}

// readUnready decides what "not ready" means: loading if it never was ready;
// after that a server with a status call has lost its model, and a bare health
// URL counts as a failed look.
func (v *view) readUnready(e event) event {
	state := pb.InstanceState_INSTANCE_STATE_LOADING
	if v.ready {
		if !v.bySilence {
			return event{kind: failed, reason: e.reason}
		}
		state = pb.InstanceState_INSTANCE_STATE_LIVE
	}
	return event{kind: heard, status: Status{State: state, Reason: e.reason}}
}

// status is what to report at now.
func (v *view) status(now time.Time) Status {
	down := Status{State: pb.InstanceState_INSTANCE_STATE_DOWN, Gone: v.gone, Reason: v.reason}
	if !v.known {
		if v.reason == "" {
			down.Reason = "has not answered yet"
		}
		return down
	}
	st := v.last
	if v.bySilence {
		silence := now.Sub(v.since)
		if silence <= silentAfter*v.interval && silence <= time.Duration(v.failAfter)*v.interval {
			if v.reason != "" {
				st.Reason = text("asking again: " + v.reason)
			}
			return st
		}
		reason := text(strings.TrimSuffix(fmt.Sprintf("silent for %v: %s", silence.Round(time.Millisecond), v.reason), ": "))
		if silence > time.Duration(v.failAfter)*v.interval {
			down.Reason = reason
			return down
		}
		st.Reason = reason
		return st
	}
	if v.failures >= v.failAfter {
		down.Reason = text(fmt.Sprintf("%d looks in a row failed: %s", v.failures, v.reason))
		return down
	}
	if v.failures > 0 {
		st.Reason = text(fmt.Sprintf("%d of %d looks failed: %s", v.failures, v.failAfter, v.reason))
	}
	return st
}

// text bounds free text that came from outside.
func text(s string) string { return bounded(s, hastate.MaxTextBytes) }

// bounded makes one line of at most so many bytes of s.
func bounded(s string, maximum int) string {
	if len(s) > maximum {
		s = s[:maximum]
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, ""))
}
