// SPDX-License-Identifier: Apache-2.0

package load

import (
	"fmt"

	"github.com/hastate/hastate/testcluster/chaos/record"
)

// appender appends numbered pieces to streams of its own, one after the other, at
// the end that it knows. It never sends a piece twice: after an unknown outcome it
// reads where it is and goes on with the next.
type appender struct {
	l        *Load
	id       int
	group    string
	sessions sessions

	streams, pieces int
	key             string
	end             uint64
	unknowns        int
}

func (l *Load) newAppender(c cluster, group string) *appender {
	a := &appender{l: l, id: l.id(), group: group, sessions: c.Sessions(group)}
	a.fresh()
	return a
}

// fresh begins another stream.
func (a *appender) fresh() {
	a.streams++
	a.key, a.end, a.unknowns = fmt.Sprintf("%sown-%d-%d", a.l.o.Prefix, a.id, a.streams), 0, 0
}

func (a *appender) run() {
	knows := true
	for a.l.pause(a.l.o.AppendEvery) {
		if !knows {
			if knows = a.look(); !knows {
				continue
			}
		}
		if a.end > maxOwnBytes || a.unknowns > maxUnknowns {
			a.look()
			a.fresh()
		}
		knows = a.append()
	}
}

// append adds one piece. False: the end is not known any more.
func (a *appender) append() bool {
	a.pieces++
	op := a.l.write(a.l.ctx, a.sessions, record.Op{
		Client: a.id, Group: a.group, Key: a.key, Kind: record.Append, Value: fmt.Sprintf("a%d-%d;", a.id, a.pieces), Offset: a.end,
	})
	switch op.Outcome {
	case record.OK:
		a.end = op.EndOffset
		return true
	case record.Unknown:
		a.unknowns++
	case record.Failed:
		return true
	}
	return false
}

// look reads where the stream ends.
func (a *appender) look() bool {
	op := a.l.read(a.l.ctx, a.sessions, record.Op{Client: a.id, Group: a.group, Key: a.key})
	if op.Outcome != record.OK {
		return false
	}
	a.end = op.EndOffset
	return true
}
