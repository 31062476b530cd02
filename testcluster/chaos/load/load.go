// SPDX-License-Identifier: Apache-2.0

package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

// Load are running clients. Its methods may be called from any goroutine.
type Load struct {
	o Options
	// ctx ends everything, quit only those that write and ask.
	ctx    context.Context
	cancel context.CancelFunc
	quit   chan struct{}
	// writing are the goroutines that end with quit, watching those with ctx.
	writing, watching sync.WaitGroup
	stop              sync.Once
	stopped           error

	book     *book
	epochs   *epochs
	clusters []cluster
	ids      int // of clients and watchers; only Start gives them out
	finisher *worker

	ops      *log[record.Op]
	requests *log[record.Request]
	sessions *log[record.SessionEvent]
	groups   *log[record.GroupEvent]
	// watchers are those that have to get to the end. tied and tiedWatchers are the
	// clients that are tied to one node, which may have left the cluster by the end.
	watchers, tiedWatchers []*watcher
	tied                   []*tied

	acked, strange atomic.Int64
	mu             sync.Mutex // guards all below
	// more is closed and replaced at every acknowledgement.
	more  chan struct{}
	final map[string]map[string]*pb.Session
}

// Start starts the clients. It does not wait for a cluster that answers. They run
// until Stop, or until ctx ends; Stop must be called in either case.
func Start(ctx context.Context, o Options) (*Load, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	l := &Load{o: o, quit: make(chan struct{}), book: newBook(o), epochs: newEpochs(), more: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancel(ctx)
	err := l.open()
	if err == nil {
		err = l.spawn()
	}
	if err != nil {
		l.halt()
		l.cancel()
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

// open makes the files.
func (l *Load) open() error {
	dir := filepath.Join(l.o.Dir, "records")
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // for people to look at
		return fmt.Errorf("make the folder of the records: %w", err)
	}
	var errs [4]error
	l.ops, errs[0] = newLog[record.Op](dir, "ops")
	l.requests, errs[1] = newLog[record.Request](dir, "requests")
	l.sessions, errs[2] = newLog[record.SessionEvent](dir, "session-events")
	l.groups, errs[3] = newLog[record.GroupEvent](dir, "group-events")
	return errors.Join(errs[:]...)
}

// spawn starts all goroutines; on an error, some.
func (l *Load) spawn() error {
	c, err := l.dial()
	if err != nil {
		return err
	}
	l.finisher = l.newWorker(c)
	all := c
	l.watching.Go(func() { l.watchGroups(all) })
	for range l.o.Workers {
		if c, err = l.dial(); err != nil {
			return err
		}
		w := l.newWorker(c)
		l.writing.Go(w.run)
	}
	for i := range l.o.Appenders {
		if c, err = l.dial(); err != nil {
			return err
		}
		a := l.newAppender(c, l.o.Groups[i%len(l.o.Groups)])
		l.writing.Go(a.run)
	}
	for _, endpoint := range l.o.Endpoints {
		if err := l.tie(endpoint); err != nil {
			return err
		}
	}
	for _, group := range l.o.Groups {
		if c, err = l.dial(); err != nil {
			return err
		}
		for _, resumes := range []bool{false, true} {
			w := l.newWatcher(c, group)
			w.resumes = resumes
			l.watchers = append(l.watchers, w)
			l.watching.Go(w.run)
		}
		if !l.o.NoCallers {
			k := newCaller(l, c, group)
			l.writing.Go(k.run)
		}
	}
	return nil
}

func (l *Load) dial() (cluster, error) {
	c, err := l.o.dial()
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	l.clusters = append(l.clusters, c)
	return c, nil
}

// id is for the next client or watcher.
func (l *Load) id() int {
	l.ids++
	return l.ids
}

func (l *Load) rng(id int) *rand.Rand { return rand.New(rand.NewPCG(l.o.Seed, uint64(id))) } //nolint:gosec // not a secret

// pause waits; false: it is time to end.
func (l *Load) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-l.quit:
	case <-l.ctx.Done():
	}
	return false
}

// note records an operation.
func (l *Load) note(op record.Op) {
	l.ops.add(op)
	if op.Outcome != record.OK || op.Kind == record.Get {
		return
	}
	l.acked.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.more)
	l.more = make(chan struct{})
}

// NextChapter leaves the shared sessions as they are and takes fresh ones, so that
// the histories stay short enough to be judged. It returns the number of the new
// chapter. Operations that are under way still end on the old ones, within
// Options.OpTimeout.
func (l *Load) NextChapter() int { return l.book.next() }

// Acked is how many writes were acknowledged.
func (l *Load) Acked() int { return int(l.acked.Load()) }

// Strange is how many writes ended with an error that clients are not prepared
// for; they count as of unknown outcome.
func (l *Load) Strange() int { return int(l.strange.Load()) }

// Progress waits until n more writes are acknowledged.
func (l *Load) Progress(ctx context.Context, n int) error {
	begun := l.Acked()
	for {
		l.mu.Lock()
		more := l.more
		l.mu.Unlock()
		got := l.Acked() - begun
		if got >= n {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d writes acknowledged: %w", got, n, context.Cause(ctx))
		case <-l.ctx.Done():
			return fmt.Errorf("%d of %d writes acknowledged, and the load has ended", got, n)
		}
	}
}

// Epochs are the newest epochs that were heard of, by group.
func (l *Load) Epochs() map[string]uint64 { return l.epochs.all() }

// Ops are copies of the operations that have ended, from an index on; the other
// accessors are alike.
func (l *Load) Ops(since int) []record.Op { return l.ops.since(since) }

// Requests are those to the primaries.
func (l *Load) Requests(since int) []record.Request { return l.requests.since(since) }

// SessionEvents are those of all session watches.
func (l *Load) SessionEvents(since int) []record.SessionEvent { return l.sessions.since(since) }

// GroupEvents are those of the watch of all groups.
func (l *Load) GroupEvents(since int) []record.GroupEvent { return l.groups.since(since) }

// Final are the sessions as they were read by Stop, by group and id; nil if they
// could not be read.
func (l *Load) Final() map[string]map[string]*pb.Session {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.final
}
