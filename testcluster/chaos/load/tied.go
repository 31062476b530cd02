// SPDX-License-Identifier: Apache-2.0

package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hastate/hastate/testcluster/chaos/record"
)

const (
	// tiedRead and tiedWrite are the pauses of a tied reader and writer, on average.
	tiedRead, tiedWrite = 80 * time.Millisecond, 150 * time.Millisecond
	// minHurry and maxHurry are how long a tied client waits for its answer: about as
	// long as it takes to elect a leader.
	minHurry, maxHurry = 100 * time.Millisecond, 600 * time.Millisecond
	// tiedIdle is after how long without a change a tied watch asks again.
	tiedIdle = 400 * time.Millisecond
	// maxTied bounds the sessions that one tied writer leaves while it runs.
	maxTied = 250
	// sweepTimeout bounds the deletion of what they have left.
	sweepTimeout = 5 * time.Second
)

// tied is a writer that keeps to one node, as do the reader and the watches beside
// it: clients with an address of one node, or behind a balancer. What a node says
// while it is deposed, cut off, or behind is heard by them alone: all others go
// elsewhere at the first sign of trouble.
//
// It writes every session once, so that no later write covers one that was lost, or
// done although it was told as not done.
type tied struct {
	l        *Load
	id       int
	group    string
	sessions sessions
	rng      *rand.Rand
	written  int
	// kept are the sessions that may be there, oldest first.
	kept []string
}

// tie starts the clients that keep to one node.
func (l *Load) tie(endpoint string) error {
	c, err := l.o.dialNode(endpoint)
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	l.clusters = append(l.clusters, c)
	worker, reader := l.newWorker(c), l.newWorker(c)
	worker.hurried, reader.hurried = true, true
	l.writing.Go(worker.run)
	l.writing.Go(reader.reads)
	id, group := l.id(), l.o.Groups[len(l.tied)%len(l.o.Groups)]
	t := &tied{l: l, id: id, group: group, sessions: c.Sessions(group), rng: l.rng(id)}
	l.tied = append(l.tied, t)
	l.writing.Go(t.run)
	for _, group := range l.o.Groups {
		w := l.newWatcher(c, group)
		w.prefix, w.idle, w.endpoint = l.tiedPrefix(), tiedIdle, endpoint
		l.tiedWatchers = append(l.tiedWatchers, w)
		l.watching.Go(w.run)
	}
	return nil
}

// tiedPrefix is of the ids of what tied writers write.
func (l *Load) tiedPrefix() string { return l.o.Prefix + "once-" }

// hurry is a short time.
func hurry(rng *rand.Rand) time.Duration {
	return minHurry + time.Duration(rng.Int64N(int64(maxHurry-minHurry)))
}

// reads reads the shared sessions until the load's end.
func (w *worker) reads() {
	for w.l.pause(tiedRead/2 + time.Duration(w.rng.Int64N(int64(tiedRead)))) {
		k, _ := w.l.book.pick(w.rng)
		if op := w.read(w.l.ctx, k); op.Outcome == record.OK {
			w.l.book.done(k, op)
		}
	}
}

func (t *tied) run() {
	for t.l.pause(tiedWrite/2 + time.Duration(t.rng.Int64N(int64(tiedWrite)))) {
		op := record.Op{Kind: record.Create, Key: t.fresh(), Value: fmt.Sprintf("t%d-%d", t.id, t.written)}
		if len(t.kept) >= maxTied {
			op = record.Op{Kind: record.Delete, Key: t.kept[0]}
			t.kept = t.kept[1:]
		}
		op.Client, op.Group = t.id, t.group
		ctx, cancel := context.WithTimeout(t.l.ctx, hurry(t.rng))
		t.l.write(ctx, t.sessions, op)
		cancel()
		if op.Kind == record.Create { // whatever was told: it may be there
			t.kept = append(t.kept, op.Key)
		}
	}
}

// fresh is the id of another session. It is before all others of the writer: the
// list with which a watch begins ends with the first change that is in front of it.
func (t *tied) fresh() string {
	t.written++
	return fmt.Sprintf("%s%08d-%d", t.l.tiedPrefix(), 99_999_999-t.written, t.id)
}

// sweep deletes what tied writers have left, as far as that can be done: the load of
// the next chapter has sessions of its own. Nothing is recorded any more.
func (l *Load) sweep(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	var all sync.WaitGroup
	for _, t := range l.tied {
		s := l.finisher.cluster.Sessions(t.group)
		all.Go(func() {
			for _, id := range t.kept {
				if _, err := send(ctx, s, record.Op{Kind: record.Delete, Key: id}); err != nil {
					return
				}
			}
		})
	}
	all.Wait()
}
