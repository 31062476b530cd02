// SPDX-License-Identifier: Apache-2.0

package seglog

import (
	"fmt"
)

// keepSpare keeps a file ready for the segment that comes next, so that no append
// waits for one, and gets rid of what nothing lies in any more. It runs until stop.
func (l *Log) keepSpare() {
	defer close(l.done)
	for {
		select {
		case <-l.stop:
			return
		case <-l.prepare:
		}
		if err := l.tidy(); err != nil {
			// The append that needs the file tries again, and says so.
			l.logger.Warn("the log cannot make a segment ahead of time", "folder", l.dir, "error", err)
		}
	}
}

func (l *Log) wakePreparer() {
	select {
	case l.prepare <- struct{}{}:
	default: // it has been told
	}
}

// retire takes the oldest segments out of the log that nothing lies in. Not the one that is
// written to. Their files are used again, oldest first.
func (l *Log) retire() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.segments) > 1 && l.segments[0].live == 0 {
		l.dead = append(l.dead, l.segments[0])
		l.segments = l.segments[1:]
	}
	if len(l.dead) > 0 {
		l.wakePreparer()
	}
}

// tidy makes a spare if there is none, and removes the dead that are not needed for one.
func (l *Log) tidy() error {
	l.preparing.Lock()
	defer l.preparing.Unlock()
	l.mu.RLock()
	have, next := len(l.spares), l.segments[len(l.segments)-1].number+1
	l.mu.RUnlock()
	if have == 0 {
		if err := l.makeSpare(next); err != nil {
			return err
		}
	}
	for {
		s := l.takeDead()
		if s == nil {
			return nil
		}
		if err := s.remove(l.dir); err != nil {
			l.putBack(s)
			return fmt.Errorf("remove segment %d: %w", s.number, err)
		}
	}
}

// putBack returns a dead segment whose file is still there. It is the next that is tried:
// if a later one went first, a start would find one missing in between. Called with
// preparing held.
func (l *Log) putBack(s *segment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dead = append([]*segment{s}, l.dead...)
}

// takeDead takes the oldest segment that nothing lies in, nil if there is none.
func (l *Log) takeDead() *segment {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.dead) == 0 {
		return nil
	}
	s := l.dead[0]
	l.dead = l.dead[1:]
	return s
}

// makeSpare makes the file of a segment, of a dead one if there is one. Called with
// preparing held.
func (l *Log) makeSpare(number uint32) error {
	var (
		made *segment
		err  error
	)
	if old := l.takeDead(); old != nil && int64(old.capacity)*sectorBytes == l.size {
		if made, err = old.recycle(l.dir, number); err != nil {
			l.putBack(old)
		}
	} else {
		if old != nil {
			if err := old.remove(l.dir); err != nil {
				l.putBack(old)
				return fmt.Errorf("remove segment %d: %w", old.number, err)
			}
		}
		made, err = createSegment(l.dir, number, l.size)
	}
	if err != nil {
		return fmt.Errorf("make segment %d: %w", number, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spares = append(l.spares, made)
	return nil
}

// spare returns the file of the segment that comes next. It stays among the spares.
// Called with writing held, so that nothing else uses one.
func (l *Log) spare(number uint32) (*segment, error) {
	l.preparing.Lock()
	defer l.preparing.Unlock()
	l.mu.RLock()
	have := len(l.spares)
	l.mu.RUnlock()
	if have == 0 {
		if err := l.makeSpare(number); err != nil {
			return nil, err
		}
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	if s := l.spares[0]; s.number == number {
		return s, nil
	}
	return nil, fmt.Errorf("the file that is ready is of segment %d, needed is %d", l.spares[0].number, number)
}
