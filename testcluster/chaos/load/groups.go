// SPDX-License-Identifier: Apache-2.0

package load

import (
	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

// groupWatch records what is told of all groups. It belongs to its goroutine.
type groupWatch struct {
	l      *Load
	stream int
	// anew: what comes next begins a stream.
	anew bool
	// listing: the current state is being told. It has no revision, so that a watch
	// that breaks off in the middle of it begins anew: listed tells the two apart.
	listing bool
	listed  map[string]bool
}

func (l *Load) watchGroups(c cluster) {
	w := &groupWatch{l: l, listed: map[string]bool{}}
	for l.ctx.Err() == nil {
		w.anew = true
		_ = c.WatchGroups(l.ctx, nil, 0, func(resp *pb.WatchResponse) error { // it ends with ctx
			w.on(resp)
			return nil
		})
		after(l.ctx, retryEvery)
	}
}

func (w *groupWatch) on(resp *pb.WatchResponse) {
	g := resp.GetGroup()
	if g == nil { // a heartbeat, which also ends the current state
		w.listing = false
		return
	}
	current := resp.GetRevision() == 0
	if w.anew || current && (!w.listing || w.listed[g.GetName()]) {
		w.stream++
		w.anew = false
		clear(w.listed)
	}
	w.listing = current
	if current {
		w.listed[g.GetName()] = true
	}
	e := record.GroupEvent{
		Stream: w.stream, At: w.l.o.Clock.Now(), Revision: resp.GetRevision(), Group: g, Transition: resp.GetTransition(),
	}
	if current {
		e.Revision = g.GetRevision()
	}
	w.l.groups.add(e)
	w.l.epochs.see(g.GetName(), g.GetEpoch())
}
