// SPDX-License-Identifier: Apache-2.0

// Package control sets the fault state of a process from outside, over a unix
// socket. A connection carries one JSON object, the whole state, which replaces the
// one before; the answer is {"error":""}, or says why the state was refused and the
// one before is kept.
package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Limits of one exchange.
const (
	maxState  = 64 << 10
	maxConns  = 16
	timeLimit = 10 * time.Second
	// acceptPause follows a connection that could not be taken.
	acceptPause = 50 * time.Millisecond
	// maxPath is what fits into a socket's address.
	maxPath = 107
)

// answer is what the other side is told.
type answer struct {
	Error string `json:"error"`
}

// Server takes states until it is closed.
type Server[T any] struct {
	listener net.Listener
	apply    func(T) error
	// slots has a place for each connection.
	slots chan struct{}
	wg    sync.WaitGroup

	mu     sync.Mutex // guards conns and closed
	conns  map[net.Conn]struct{}
	closed bool
}

// Listen takes states at path until Close. A socket that a killed process has left
// there is removed; anything else in the way is an error. apply is called with one
// state at a time per connection, maybe by several goroutines; its error is the
// answer.
func Listen[T any](path string, apply func(T) error) (*Server[T], error) {
	if len(path) > maxPath {
		return nil, fmt.Errorf("control socket %s: its path has %d bytes, the limit is %d: use a shorter folder", path, len(path), maxPath)
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("control socket %s: there is a file that is no socket: name another path", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove the control socket of a former process: %w", err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w: check that its folder exists", err)
	}
	s := &Server[T]{listener: l, apply: apply, slots: make(chan struct{}, maxConns), conns: map[net.Conn]struct{}{}}
	s.wg.Go(s.accept)
	return s, nil
}

// Close ends the exchanges under way, waits for them and removes the socket.
func (s *Server[T]) Close() error {
	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		_ = c.Close() // its exchange notices
	}
	s.mu.Unlock()
	err := s.listener.Close()
	s.wg.Wait()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close control socket: %w", err)
	}
	return nil
}

func (s *Server[T]) accept() {
	for {
		s.slots <- struct{}{} // given back by every exchange within timeLimit
		conn, err := s.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no file descriptors, for example
			<-s.slots
			<-time.After(acceptPause)
			continue
		}
		if !s.keep(conn) {
			return
		}
		s.wg.Go(func() {
			defer func() { <-s.slots }()
			defer s.drop(conn)
			s.exchange(conn)
		})
	}
}

func (s *Server[T]) keep(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = c.Close() // it came too late
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

func (s *Server[T]) drop(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	_ = c.Close() // the answer was sent, or nobody waits for it
}

// exchange takes one state and answers.
func (s *Server[T]) exchange(conn net.Conn) {
	_ = conn.SetDeadline(time.Now().Add(timeLimit)) // fails only if it is closed
	var a answer
	state, err := decode[T](io.LimitReader(conn, maxState))
	if err == nil {
		err = s.apply(state)
	}
	if err != nil {
		a.Error = err.Error()
	}
	_ = json.NewEncoder(conn).Encode(a) // who does not listen is not told
}

// decode reads one object and refuses what it does not know.
func decode[T any](r io.Reader) (T, error) {
	var state T
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(&state); err != nil {
		return state, fmt.Errorf("read the fault state: %w: send one JSON object of at most %d bytes", err, maxState)
	}
	rest, err := io.ReadAll(d.Buffered())
	if err != nil {
		return state, fmt.Errorf("read the fault state: %w", err)
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return state, errors.New("more than one JSON object: send each over a connection of its own")
	}
	return state, nil
}

// Send replaces the fault state of the process that listens at path, and returns
// when that has been done. It waits for ctx, and never longer than ten seconds. The
// error says why the state was refused, or that nobody could be reached.
func Send(ctx context.Context, path string, state any) error {
	ctx, cancel := context.WithTimeout(ctx, timeLimit)
	defer cancel()
	body, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("encode the fault state: %w", err)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("reach the control socket: %w: is the process up?", err)
	}
	defer func() { _ = conn.Close() }() // the answer has been read
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if _, err := conn.Write(append(body, '\n')); err != nil {
		return fmt.Errorf("send the fault state: %w", errors.Join(ctx.Err(), err))
	}
	var a answer
	if err := json.NewDecoder(io.LimitReader(conn, maxState)).Decode(&a); err != nil {
		return fmt.Errorf("no answer from %s: %w", path, errors.Join(ctx.Err(), err))
	}
	if a.Error != "" {
		return fmt.Errorf("%s refuses the fault state: %s", path, a.Error)
	}
	return nil
}
