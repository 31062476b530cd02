// SPDX-License-Identifier: Apache-2.0

package load

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	pb "github.com/hastate/hastate/proto/hastate/v1"
	"github.com/hastate/hastate/testcluster/chaos/record"
)

// retryEvery is between two attempts at what must be done before the end.
const retryEvery = 50 * time.Millisecond

// Stop ends the writers, lets the watches come to the end of what was written,
// reads every session once more, which is recorded like any other read, and ends
// all. The cluster has to answer for that until ctx ends: an error says what could
// not be done, and that a watch did not get to its end is a fault of the cluster.
// Members are the addresses of the nodes that have to be at the end too, as the
// watches that keep to them tell. A second call returns the same.
func (l *Load) Stop(ctx context.Context, members ...string) error {
	l.stop.Do(func() { l.stopped = l.finish(ctx, members) })
	return l.stopped
}

// halt ends those who write and ask, and waits for them.
func (l *Load) halt() {
	close(l.quit)
	l.writing.Wait()
}

func (l *Load) finish(ctx context.Context, members []string) error {
	l.halt()
	var errs []error
	for _, group := range l.o.Groups {
		errs = append(errs, l.drain(ctx, group, members))
	}
	final, err := l.readAll(ctx)
	l.mu.Lock()
	l.final = final
	l.mu.Unlock()
	l.cancel()
	l.watching.Wait()
	l.sweep(ctx)
	return errors.Join(append(errs, err, l.close())...)
}

// close waits for what has been told to end, and closes all.
func (l *Load) close() error {
	l.watching.Wait()
	var errs []error
	for _, c := range l.clusters {
		errs = append(errs, c.Close())
	}
	if l.ops != nil {
		errs = append(errs, l.ops.close())
	}
	if l.requests != nil {
		errs = append(errs, l.requests.close())
	}
	if l.sessions != nil {
		errs = append(errs, l.sessions.close())
	}
	if l.groups != nil {
		errs = append(errs, l.groups.close())
	}
	return errors.Join(errs...)
}

// retry calls do until it succeeds or ctx ends.
func (l *Load) retry(ctx context.Context, do func(ctx context.Context) error) error {
	for {
		err := do(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (last: %w)", context.Cause(ctx), err)
		case <-l.ctx.Done():
			return fmt.Errorf("the load was ended (last: %w)", err)
		case <-time.After(retryEvery):
		}
	}
}

// drain writes a last session into a group and waits until its watches have told
// of it. A watch that just then begins anew may tell of it without being up to
// date: then another one is written.
func (l *Load) drain(ctx context.Context, group string, members []string) error {
	attempt := 0
	return l.retry(ctx, func(ctx context.Context) error {
		attempt++
		tied, err := l.mark(ctx, group, fmt.Sprintf("%s!end-%d", l.tiedPrefix(), attempt))
		if err != nil {
			return err
		}
		// The last: the watches of the whole group are to tell of the other one too. And
		// before all others in order of id, so that no list of the sessions ends with it.
		all, err := l.mark(ctx, group, fmt.Sprintf("%s!end-%d", l.o.Prefix, attempt))
		if err != nil {
			return err
		}
		short, cancel := context.WithTimeout(ctx, l.o.OpTimeout)
		defer cancel()
		return errors.Join(l.arrived(short, l.watchers, group, all), l.arrived(short, l.tiedTo(members), group, tied))
	})
}

// mark writes a session that shows the end, and returns its revision.
func (l *Load) mark(ctx context.Context, group, id string) (uint64, error) {
	op := l.finisher.write(ctx, &key{group: group, id: id}, record.Op{Kind: record.Put})
	if op.Outcome != record.OK {
		return 0, fmt.Errorf("mark the end of group %s: %s: %s", group, op.Outcome, op.Error)
	}
	return op.Revision, nil
}

// tiedTo are the watches that keep to one of some nodes.
func (l *Load) tiedTo(endpoints []string) []*watcher {
	return slices.DeleteFunc(slices.Clone(l.tiedWatchers), func(w *watcher) bool { return !slices.Contains(endpoints, w.endpoint) })
}

// arrived waits until those of the watches that are of a group are complete up to a
// revision.
func (l *Load) arrived(ctx context.Context, watchers []*watcher, group string, revision uint64) error {
	for _, w := range watchers {
		if w.group != group {
			continue
		}
		err := l.retry(ctx, func(context.Context) error {
			if at := w.reached.Load(); at < revision {
				return fmt.Errorf("it is at revision %d", at)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("watch %d of group %s%s did not get to revision %d: %w", w.id, group, w.where(), revision, err)
		}
	}
	return nil
}

// readAll reads all sessions, and records that as a read of each session that was
// ever used. A list is read page by page, each linearizably, so that each read lies
// somewhere between the beginning and the end of the whole.
func (l *Load) readAll(ctx context.Context) (map[string]map[string]*pb.Session, error) {
	final := map[string]map[string]*pb.Session{}
	for _, group := range l.o.Groups {
		call := l.o.Clock.Now()
		err := l.retry(ctx, func(ctx context.Context) error {
			call = l.o.Clock.Now()
			list, err := l.finisher.cluster.Sessions(group).List(ctx)
			if err != nil {
				return err
			}
			final[group] = map[string]*pb.Session{}
			for _, s := range list {
				final[group][s.GetId()] = s
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("read the sessions of group %s at the end: %w", group, err)
		}
		l.noteAll(group, final[group], record.Op{
			Client: l.finisher.id, Group: group, Kind: record.Get, Call: call, Return: l.o.Clock.Now(), Outcome: record.OK,
		})
	}
	return final, nil
}

func (l *Load) noteAll(group string, there map[string]*pb.Session, op record.Op) {
	noted := map[string]bool{}
	for _, was := range l.Ops(0) {
		if was.Group != group || noted[was.Key] {
			continue
		}
		noted[was.Key] = true
		read := op
		read.Key = was.Key
		if s := there[was.Key]; s != nil {
			found(&read, s)
		}
		l.note(read)
	}
}

// found writes what was read into op.
func found(op *record.Op, s *pb.Session) {
	op.Found, op.Value, op.Revision, op.Base = true, string(s.GetValue()), s.GetRevision(), s.GetBaseOffset()
	op.EndOffset = op.Base + uint64(len(op.Value))
}
