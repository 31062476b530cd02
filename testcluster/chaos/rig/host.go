// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hastate/hastate/internal/proc"
)

// The ports of each host; group number k has modelGRPC+k and modelHTTP+k.
const (
	nodeGRPC, nodeWeb    = 7001, 7101
	modelGRPC, modelHTTP = 9001, 8001
)

// Host is one node and its model servers.
type Host struct {
	rig   *Rig
	index int
	// address is where others reach it, local where the node reaches the model
	// servers, any what they listen on for their clients.
	address, local, any string
	space               *namespace // nil without root
	disk                *disk      // nil without root, and with Folders
	data                string

	mu     sync.Mutex // guards the rest
	id     string
	rate   float64
	node   *proc.Process
	models map[string]*proc.Process
	// starts counts by the name of what is started.
	starts map[string]int

	control control
}

func newHost(r *Rig, index int, address, local, anyAddress string) *Host {
	return &Host{
		rig: r, index: index, address: address, local: local, any: anyAddress,
		id: fmt.Sprintf("n%d", index+1), rate: 1, models: map[string]*proc.Process{}, starts: map[string]int{},
	}
}

// Index is the number of the host, as Link takes it.
func (h *Host) Index() int { return h.index }

// NodeID is the id of the host's node: n1 for the first host, until Rename.
func (h *Host) NodeID() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.id
}

// DataDir is the data folder of the node. Who writes to it while it is frozen
// waits, too.
func (h *Host) DataDir() string { return h.data }

// GRPC is the address of the node.
func (h *Host) GRPC() string { return net.JoinHostPort(h.address, strconv.Itoa(nodeGRPC)) }

// Web is the address of the node's HTTP port.
func (h *Host) Web() string { return net.JoinHostPort(h.address, strconv.Itoa(nodeWeb)) }

// ModelAddress is where clients reach the model server of a group by HTTP; empty
// if there is no such group.
func (h *Host) ModelAddress(group string) string {
	k := slices.Index(h.rig.options.Groups, group)
	if k < 0 {
		return ""
	}
	return net.JoinHostPort(h.address, strconv.Itoa(modelHTTP+k))
}

// Node is the process that was started last, running or not; nil if none was.
func (h *Host) Node() *proc.Process {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.node
}

// Model is the model server of a group that was started last, running or not; nil
// if none was.
func (h *Host) Model(group string) *proc.Process {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.models[group]
}

// processes are the node and the model servers that were started.
func (h *Host) processes() []*proc.Process {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []*proc.Process
	if h.node != nil {
		all = append(all, h.node)
	}
	for _, p := range h.models {
		all = append(all, p)
	}
	return all
}

// Kill kills the node and the model servers at once with SIGKILL, and waits until
// they are gone, for 10 s at most: a process that writes to a frozen disk does not
// end before Thaw.
func (h *Host) Kill() error { return kill(h.processes()) }

// SetClockRate sets how fast the clocks of the processes run that are started
// from now on; 1 is right, 1.01 is 1 % fast.
func (h *Host) SetClockRate(rate float64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rate = rate
}

// Rename gives the host's node another id. All its processes must be down, and
// Wipe comes with it: a dead machine is replaced by a new one at its address.
// Heal its links first: without root they are known by the ids.
func (h *Host) Rename(id string) error {
	if err := h.down("rename"); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.id = id
	return nil
}

// down says what is to be done if a process is running.
func (h *Host) down(what string) error {
	for _, p := range h.processes() {
		if p.Running() {
			return fmt.Errorf("%s %s: its %s is running: kill it first", what, h.NodeID(), p.Spec.Name)
		}
	}
	return nil
}

// NodeStart says how to start a node.
type NodeStart struct {
	// Expect, Join and Replica are the node's bootstrap_expect, join and replica.
	Expect  int
	Join    []string
	Replica bool
	// WatchdogOff takes away its stall watchdog.
	WatchdogOff bool
	// Binary is another program than Options.Hanode; empty: that one.
	Binary string
	// Args are more arguments, after Options.NodeArgs.
	Args []string
}

// Start starts the model servers that are not running, and the node.
func (h *Host) Start(s NodeStart) error {
	for _, group := range h.rig.options.Groups {
		if p := h.Model(group); p != nil && p.Running() {
			continue
		}
		if err := h.StartModel(group); err != nil {
			return err
		}
	}
	return h.StartNode(s)
}

// StartNode starts the node. It does not wait until the node is ready, but until
// it has taken over what its control was told last, if that was anything.
func (h *Host) StartNode(s NodeStart) error {
	if p := h.Node(); p != nil && p.Running() {
		return fmt.Errorf("start %s: it is running: kill it first", h.NodeID())
	}
	id, rate := h.NodeID(), h.clockRate()
	n := h.count(id)
	config, err := h.writeConfig(id, s)
	if err != nil {
		return err
	}
	socket := h.nodeSocket()
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove old control socket: %w", err)
	}
	spec := proc.Spec{
		Name: "node " + id, Path: h.rig.options.Hanode,
		Args: slices.Concat([]string{"run", "--config", config}, h.rig.options.NodeArgs, s.Args),
		Env: slices.Concat(h.rig.options.Env, []string{
			"HANODE_CHAOS_SOCKET=" + socket,
			// One file for all starts: a node that comes back within its lease may give
			// it up early, which ends what the process before has written.
			"HANODE_CHAOS_LEASES=" + h.record("leases-"+id),
			"HANODE_CHAOS_RATE=" + rate,
		}),
	}
	if s.Binary != "" {
		spec.Path = s.Binary
	}
	if s.WatchdogOff {
		spec.Env = append(spec.Env, "HANODE_CHAOS_WATCHDOG_OFF=1")
	}
	p, err := h.start(spec, fmt.Sprintf("%s.%d.log", id, n))
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.node = p
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	return h.resendControl(ctx)
}

// startTimeout bounds how long a started node may take to open its control socket.
const startTimeout = 20 * time.Second

// StartModel starts the model server of a group.
func (h *Host) StartModel(group string) error {
	k := slices.Index(h.rig.options.Groups, group)
	if k < 0 {
		return fmt.Errorf("start model server of %q: there is no such group", group)
	}
	if p := h.Model(group); p != nil && p.Running() {
		return fmt.Errorf("start model server of %q on %s: it is running: kill it first", group, h.NodeID())
	}
	id, rate := h.NodeID(), h.clockRate()
	name := id + "-" + group
	n := h.count(name)
	socket := h.modelSocket(k)
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove old control socket: %w", err)
	}
	p, err := h.start(proc.Spec{
		Name: "model server " + name, Path: h.rig.options.Model[0], Env: h.rig.options.Env,
		Args: append(slices.Clone(h.rig.options.Model[1:]),
			"--node", id, "--group", group, "--grpc", h.modelTarget(k), "--http", net.JoinHostPort(h.any, strconv.Itoa(modelHTTP+k)),
			"--control", socket, "--served", h.record(fmt.Sprintf("served-%s-%d", name, n)),
			"--promotions", h.record(fmt.Sprintf("promotions-%s-%d", name, n)), "--clock-rate", rate),
	}, fmt.Sprintf("%s.%d.log", name, n))
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.models[group] = p
	return nil
}

// start starts a process on the host, whose output goes to a file of its own.
func (h *Host) start(spec proc.Spec, logName string) (p *proc.Process, err error) {
	log, err := os.Create(filepath.Join(h.rig.options.Dir, "logs", logName))
	if err != nil {
		return nil, fmt.Errorf("make log file: %w", err)
	}
	spec.Output = log
	err = h.space.in(func() error {
		p, err = proc.Start(spec)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	h.rig.logs.Go(func() {
		<-p.Exited()
		_ = log.Close() // it is for people
	})
	return p, nil
}

// count is the number of this start of what has a name, from 1.
func (h *Host) count(name string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.starts[name]++
	return h.starts[name]
}

func (h *Host) clockRate() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strconv.FormatFloat(h.rate, 'g', -1, 64)
}

func (h *Host) record(name string) string {
	return filepath.Join(h.rig.options.Dir, "records", name+".jsonl")
}

// modelTarget is where the node reaches the model server of group number k.
func (h *Host) modelTarget(k int) string {
	return net.JoinHostPort(h.local, strconv.Itoa(modelGRPC+k))
}

func (h *Host) nodeSocket() string {
	return filepath.Join(h.rig.sockets, fmt.Sprintf("h%d", h.index+1))
}

func (h *Host) modelSocket(k int) string {
	return filepath.Join(h.rig.sockets, fmt.Sprintf("h%d-m%d", h.index+1, k+1))
}
