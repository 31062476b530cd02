// SPDX-License-Identifier: Apache-2.0

package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

// hasty is how seldom a write gets little time, and how little.
const hasty = 20

// worker is one client of the shared sessions. It belongs to its goroutine.
type worker struct {
	l       *Load
	id      int
	cluster cluster
	rng     *rand.Rand
	values  int // how many it has written
	// hurried: each of its operations gets little time.
	hurried bool

	chapter int
	// seen is what it knows of each session of the chapter.
	seen map[*key]seen
}

type seen struct{ revision, end uint64 }

func (l *Load) newWorker(c cluster) *worker {
	id := l.id()
	return &worker{l: l, id: id, cluster: c, rng: l.rng(id), seen: map[*key]seen{}}
}

func (w *worker) run() {
	for w.l.pause(w.l.o.Think/2 + time.Duration(w.rng.Int64N(int64(w.l.o.Think)))) {
		k, chapter := w.l.book.pick(w.rng)
		if chapter != w.chapter {
			w.chapter = chapter
			clear(w.seen)
		}
		w.once(k)
	}
}

// once does one operation on a session.
func (w *worker) once(k *key) {
	var op record.Op
	draw, knows := w.rng.IntN(100), w.seen[k]
	switch {
	case draw < 30:
		op = w.read(w.l.ctx, k)
	case k.stream && draw < 96:
		op = w.write(w.l.ctx, k, record.Op{Kind: record.Append, Offset: knows.end})
	case draw < 50 && !k.stream:
		op = w.write(w.l.ctx, k, record.Op{Kind: record.Put})
	case draw < 58 && !k.stream, draw < 86 && knows.revision == 0:
		op = w.write(w.l.ctx, k, record.Op{Kind: record.Create})
	case draw < 86:
		op = w.write(w.l.ctx, k, record.Op{Kind: record.CAS, IfRevision: knows.revision})
	case w.rng.IntN(2) == 0:
		op = w.write(w.l.ctx, k, record.Op{Kind: record.Delete, IfRevision: knows.revision})
	default:
		op = w.write(w.l.ctx, k, record.Op{Kind: record.Delete})
	}
	w.l.book.done(k, op)
	switch op.Outcome {
	case record.Unknown, record.Failed:
		delete(w.seen, k) // it has to look again; a stream is looked at by appending
	default:
		if op.Outcome == record.OK || op.Revision != 0 || op.Epoch == 0 {
			w.seen[k] = seen{op.Revision, op.EndOffset}
		}
	}
}

// epoch draws the condition of a write: none, the newest epoch, or an older one.
func (w *worker) epoch(group string) uint64 {
	newest, before := w.l.epochs.of(group)
	switch draw := w.rng.IntN(100); {
	case draw < 30:
		return newest
	case draw < 34:
		return before
	}
	return 0
}

// write does a write and records it. What is to be written and under which epoch
// is drawn; the kind and the conditions on the session are given.
func (w *worker) write(ctx context.Context, k *key, op record.Op) record.Op {
	w.values++
	op.Client, op.Group, op.Key = w.id, k.group, k.id
	if op.Kind != record.Delete {
		op.Value = fmt.Sprintf("w%d-%d", w.id, w.values)
	}
	if op.Kind == record.Append {
		op.Value += ";"
	}
	if w != w.l.finisher {
		op.Epoch = w.epoch(k.group)
	}
	ctx, cancel := context.WithTimeout(ctx, w.limit(true))
	defer cancel()
	return w.l.write(ctx, w.cluster.Sessions(k.group), op)
}

// limit draws how long an operation may take.
func (w *worker) limit(write bool) time.Duration {
	switch {
	case w.hurried:
		return hurry(w.rng)
	case write && w != w.l.finisher && w.rng.IntN(hasty) == 0:
		return w.l.o.OpTimeout / hasty
	}
	return w.l.o.OpTimeout
}

// write sends a write, and records how it ended.
func (l *Load) write(ctx context.Context, s sessions, op record.Op) record.Op {
	ctx, cancel := context.WithTimeout(ctx, l.o.OpTimeout)
	defer cancel()
	op.Call = l.o.Clock.Now()
	result, err := send(ctx, s, op)
	op.Return = l.o.Clock.Now()
	if err == nil {
		op.Revision, op.EndOffset, op.Found = result.GetRevision(), result.GetEndOffset(), result.GetDeleted()
	}
	if settle(&op, err) {
		l.strange.Add(1)
	}
	l.note(op)
	return op
}

func send(ctx context.Context, s sessions, op record.Op) (*pb.SessionOpResult, error) {
	switch op.Kind {
	case record.Append:
		return s.Append(ctx, &pb.AppendRequest{Id: op.Key, Offset: op.Offset, Data: []byte(op.Value), Epoch: op.Epoch})
	case record.Delete:
		return s.Delete(ctx, &pb.DeleteRequest{Id: op.Key, IfRevision: op.IfRevision, Epoch: op.Epoch})
	}
	return s.Put(ctx, &pb.PutRequest{
		Session:    &pb.Session{Id: op.Key, Value: []byte(op.Value), Epoch: op.Epoch},
		IfRevision: op.IfRevision, IfAbsent: op.Kind == record.Create,
	})
}

func (w *worker) read(ctx context.Context, k *key) record.Op {
	ctx, cancel := context.WithTimeout(ctx, w.limit(false))
	defer cancel()
	return w.l.read(ctx, w.cluster.Sessions(k.group), record.Op{Client: w.id, Group: k.group, Key: k.id})
}

// read reads a session linearizably, and records what it was told.
func (l *Load) read(ctx context.Context, s sessions, op record.Op) record.Op {
	ctx, cancel := context.WithTimeout(ctx, l.o.OpTimeout)
	defer cancel()
	op.Kind, op.Call = record.Get, l.o.Clock.Now()
	session, err := s.Get(ctx, op.Key, pb.ReadLevel_READ_LEVEL_LINEARIZABLE)
	op.Return = l.o.Clock.Now()
	if err == nil {
		found(&op, session)
	}
	settle(&op, err)
	l.note(op)
	return op
}
