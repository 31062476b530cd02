// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hastate/hastate/internal/proc"
)

// controlTimeout bounds one exchange with a control socket: a stopped process
// does not answer.
const controlTimeout = 2 * time.Second

// control is what the node's control was told. It is sent whole each time, and
// again when the node was started again.
type control struct {
	mu     sync.Mutex // held over each exchange: the last one counts
	fields map[string]json.RawMessage
	links  map[int]Policy // without root, by the index of the receiver
}

// linkCommand is a Policy as the control takes it.
type linkCommand struct {
	Cut      bool    `json:"cut,omitempty"`
	DelayMS  int64   `json:"delay_ms,omitempty"`
	JitterMS int64   `json:"jitter_ms,omitempty"`
	Loss     float64 `json:"loss,omitempty"`
	Reset    float64 `json:"reset,omitempty"`
}

// Control tells the node's control something: the fields of a JSON object replace
// those of the same name that it was told before, and all others stay. The object
// as it is then is kept and sent whole, now if the node is running, and after each
// start. What a running node refuses is not kept.
//
// A node that is stopped does not answer within 2 s, which is an error. It may
// still obey when it goes on, in any order: tell it once more then, {} is enough.
func (h *Host) Control(ctx context.Context, body []byte) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil {
		return fmt.Errorf("control of %s: %q is not a JSON object: %w", h.NodeID(), body, err)
	}
	h.control.mu.Lock()
	defer h.control.mu.Unlock()
	return h.tellControl(ctx, fields)
}

// tellControl adds fields and sends everything. The caller holds control.mu.
func (h *Host) tellControl(ctx context.Context, fields map[string]json.RawMessage) error {
	before := h.control.fields
	h.control.fields = map[string]json.RawMessage{}
	maps.Copy(h.control.fields, before)
	maps.Copy(h.control.fields, fields)
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	err := h.sendControl(ctx)
	if errors.As(err, new(refusedError)) {
		h.control.fields = before
	}
	return err
}

// resendControl tells a node that was just started what it has to know.
func (h *Host) resendControl(ctx context.Context) error {
	h.control.mu.Lock()
	defer h.control.mu.Unlock()
	if len(h.control.fields) == 0 {
		return nil
	}
	return h.sendControl(ctx)
}

// sendControl sends everything, and waits for the socket until ctx ends. The
// caller holds control.mu. A node that is not running is no error.
func (h *Host) sendControl(ctx context.Context) error {
	p := h.Node()
	if p == nil || !p.Running() {
		return nil
	}
	body, err := json.Marshal(h.control.fields)
	if err != nil {
		return fmt.Errorf("control of %s: %w", h.NodeID(), err)
	}
	if err := command(ctx, h.nodeSocket(), body, p); err != nil && p.Running() {
		return fmt.Errorf("control of %s: %w", h.NodeID(), err)
	}
	return nil
}

// ModelControl tells the control of the model server of a group something, as it
// is. It is not kept: a model server that is started again knows nothing of it.
func (h *Host) ModelControl(ctx context.Context, group string, body []byte) error {
	k, p := slices.Index(h.rig.options.Groups, group), h.Model(group)
	if k < 0 || p == nil || !p.Running() {
		return fmt.Errorf("control of the model server of %q on %s: it is not running", group, h.NodeID())
	}
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	if err := command(ctx, h.modelSocket(k), body, p); err != nil {
		return fmt.Errorf("control of the model server of %q on %s: %w", group, h.NodeID(), err)
	}
	return nil
}

// SetWallOffset moves the wall clock of the node against the machine's, in whole
// milliseconds, for its next starts as well. Its monotonic clock is not moved.
func (h *Host) SetWallOffset(ctx context.Context, d time.Duration) error {
	return h.Control(ctx, fmt.Appendf(nil, `{"wall_offset_ms":%d}`, d.Milliseconds()))
}

// tellLinks has the node act the policies of control.links out, without root. The
// caller holds control.mu.
func (h *Host) tellLinks(ctx context.Context) error {
	links := map[string]linkCommand{}
	for i, p := range h.control.links {
		links[h.rig.hosts[i].NodeID()] = linkCommand{p.Cut, milliseconds(p.Delay), milliseconds(p.Jitter), p.Loss, p.Reset}
	}
	body, err := json.Marshal(links)
	if err != nil {
		return fmt.Errorf("control of %s: %w", h.NodeID(), err)
	}
	return h.tellControl(ctx, map[string]json.RawMessage{"links": body})
}

// milliseconds rounds up: what is not 0 stays so.
func milliseconds(d time.Duration) int64 {
	return int64((d + time.Millisecond - 1) / time.Millisecond)
}

// command is an exchange with the control of a process. If that fails while the process
// ends, which closes its socket first, the error comes when it has ended: then Running
// tells the two apart. A refusal is an answer.
func command(ctx context.Context, socket string, body []byte, p *proc.Process) error {
	err := exchange(ctx, socket, body, p)
	if err == nil || errors.As(err, new(refusedError)) {
		return err
	}
	select {
	case <-p.Exited():
	case <-ctx.Done():
	}
	return err
}

// exchange sends one JSON object to a control socket and reads its answer. Until ctx
// ends it waits for the socket to be opened by the process.
func exchange(ctx context.Context, socket string, body []byte, p *proc.Process) error {
	conn, err := dialControl(ctx, socket, p)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // the answer says it all
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	if _, err := conn.Write(append(body, '\n')); err != nil {
		return fmt.Errorf("write command: %w", err)
	}
	if err := conn.CloseWrite(); err != nil {
		return fmt.Errorf("write command: %w", err)
	}
	var answer struct {
		Error string `json:"error"`
	}
	if err := json.NewDecoder(io.LimitReader(conn, 64<<10)).Decode(&answer); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if answer.Error != "" {
		return refusedError(answer.Error)
	}
	return nil
}

// refusedError is what a process answered that does not do what it was told.
type refusedError string

func (e refusedError) Error() string { return "refused: " + string(e) }

func dialControl(ctx context.Context, socket string, p *proc.Process) (*net.UnixConn, error) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", socket)
		if err == nil {
			return conn.(*net.UnixConn), nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("dial control socket: %w", err)
		case <-p.Exited():
			return nil, fmt.Errorf("dial control socket: the process has ended: %w", err)
		case <-tick.C:
		}
	}
}
