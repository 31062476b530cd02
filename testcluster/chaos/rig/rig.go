// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/hastate/hastate/internal/proc"
)

// ErrUnsupported is returned for what cannot be done without root.
var ErrUnsupported = errors.New("not supported here")

// Options says what to make.
type Options struct {
	// Hosts is how many there are, 1 to 64. The first Voters of them found the
	// cluster (see Founding); 0: all.
	Hosts, Voters int
	// Groups each have a model server on each host.
	Groups []string
	// Dir is the run folder; it exists, and keeps everything when the rig is
	// closed: logs, records, configurations, disk images.
	Dir string
	// Hanode is the program, built with the tag chaos.
	Hanode string
	// Model is the program and the first arguments of the model server.
	Model []string
	// Profile of the timeouts: fast, lan or wan; empty: lan.
	Profile string
	// Root: namespaces and disks. The program is inside (see Enter).
	Root bool
	// Folders: with Root, hosts have folders in Dir instead of disks, so that no disk
	// can be filled or lose its power. A disk is a loop device: its kernel threads wait
	// for a core like any process, several times for each fsync, which no node would
	// that has a real disk. Where cores are kept busy that is what would be measured.
	Folders bool
	// Images is the folder of the disk images, which exists; empty: in Dir. What a
	// disk has been told to make durable is in its image, wherever that is: in
	// memory the machine's own disk is not in the way.
	Images string
	// DiskMiB is the size of each disk, 0: 192. At least 16.
	DiskMiB int
	// Seed of what links draw.
	Seed uint64
	// NodeArgs are more arguments of each node, Env more environment of each
	// process.
	NodeArgs, Env []string
}

// Rig is the hosts. Its methods and those of its hosts may be called from any
// goroutine, but what is done to one host is done by one at a time.
type Rig struct {
	options Options
	hosts   []*Host
	// net is nil without root; guard as well.
	net   *network
	guard *guard
	// sockets is the folder of the control sockets.
	sockets, temporary string
	logs               sync.WaitGroup // goroutines that close log files of ended processes
	closed             bool
}

// Open makes the hosts and starts nothing. With Root it takes about 0.2 s per
// host. Close it.
func Open(ctx context.Context, o Options) (_ *Rig, err error) {
	if o.Voters == 0 {
		o.Voters = o.Hosts
	}
	if o.DiskMiB == 0 {
		o.DiskMiB = 192
	}
	if o.Profile == "" {
		o.Profile = "lan"
	}
	if o.Images == "" {
		o.Images = filepath.Join(o.Dir, "disks")
	}
	if err := o.validate(); err != nil {
		return nil, err
	}
	r := &Rig{options: o}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	for _, name := range []string{"logs", "records", "config", "disks"} {
		if err := os.MkdirAll(filepath.Join(o.Dir, name), 0o755); err != nil {
			return nil, fmt.Errorf("make run folder: %w", err)
		}
	}
	if err := r.makeSockets(); err != nil {
		return nil, err
	}
	if !o.Root {
		return r, r.openLoopback()
	}
	if r.net, err = openNetwork(ctx, o.Hosts, o.Seed); err != nil {
		return nil, err
	}
	var folders []string
	for i := range o.Hosts {
		name := filepath.Join(o.Dir, "disks", fmt.Sprintf("h%d", i+1))
		h := newHost(r, i, hostAddress(i).String(), "127.0.0.1", "")
		h.space = r.net.ends[i+1].space
		r.hosts = append(r.hosts, h)
		if o.Folders {
			if err := h.makeFolder(name); err != nil {
				return nil, err
			}
			continue
		}
		if h.disk, err = newDisk(ctx, filepath.Join(o.Images, fmt.Sprintf("h%d.img", i+1)), name, o.DiskMiB); err != nil {
			return nil, err
		}
		h.data = h.disk.data
		folders = append(folders, name)
	}
	if len(folders) > 0 {
		r.guard, err = startGuard(folders)
	}
	return r, err
}

func (o Options) validate() error {
	switch info, err := os.Stat(o.Dir); {
	case o.Hosts < 1 || o.Hosts > 64:
		return fmt.Errorf("%d hosts: from 1 to 64 can be made", o.Hosts)
	case o.Voters < 1 || o.Voters > o.Hosts:
		return fmt.Errorf("%d voters of %d hosts: give 1 to %d", o.Voters, o.Hosts, o.Hosts)
	case !filepath.IsAbs(o.Dir):
		return fmt.Errorf("run folder %q: give an absolute path", o.Dir)
	case err != nil:
		return fmt.Errorf("run folder: %w", err)
	case !info.IsDir():
		return fmt.Errorf("run folder %s is not a folder", o.Dir)
	case o.Hanode == "":
		return errors.New("no hanode program is given")
	case len(o.Groups) > 0 && len(o.Model) == 0:
		return errors.New("there are groups, but no model server program is given")
	case len(slices.Compact(slices.Sorted(slices.Values(o.Groups)))) != len(o.Groups):
		return fmt.Errorf("groups %v: each once", o.Groups)
	case o.DiskMiB < 16:
		return fmt.Errorf("disks of %d MiB: at least 16 MiB are needed", o.DiskMiB)
	case o.Root && !inside:
		return errors.New("the program is not inside namespaces of its own: call Enter first of all")
	}
	return nil
}

// maxSocketPath is the longest path of a unix socket, without its end mark.
const maxSocketPath = 107

// makeSockets makes the folder of the control sockets: in the run folder, or in
// one with a short name if their paths would be too long.
func (r *Rig) makeSockets() error {
	r.sockets = filepath.Join(r.options.Dir, "s")
	if len(filepath.Join(r.sockets, "h99-m99")) > maxSocketPath {
		dir, err := os.MkdirTemp("", "rig-")
		if err != nil {
			return fmt.Errorf("make folder of control sockets: %w", err)
		}
		r.sockets, r.temporary = dir, dir
		return nil
	}
	if err := os.MkdirAll(r.sockets, 0o755); err != nil {
		return fmt.Errorf("make folder of control sockets: %w", err)
	}
	return nil
}

// Hosts are all hosts, by index.
func (r *Rig) Hosts() []*Host { return slices.Clone(r.hosts) }

// Host finds a host by the id of its node.
func (r *Rig) Host(nodeID string) (*Host, bool) {
	for _, h := range r.hosts {
		if h.NodeID() == nodeID {
			return h, true
		}
	}
	return nil, false
}

// Endpoints are the gRPC addresses of all hosts' nodes.
func (r *Rig) Endpoints() []string {
	var all []string
	for _, h := range r.hosts {
		all = append(all, h.GRPC())
	}
	return all
}

// Founding is how the node of a host is started for the first time, when the
// voters found the cluster together: the hosts after them join as replicas that
// become voters.
func (r *Rig) Founding(h *Host) NodeStart {
	s := NodeStart{Join: r.Endpoints()[:r.options.Voters]}
	if h.index < r.options.Voters {
		s.Expect = r.options.Voters
	}
	return s
}

// Close kills all processes and undoes everything but the run folder. It may be
// called twice.
func (r *Rig) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	var errs []error
	var processes []*proc.Process
	for _, h := range r.hosts {
		if h.disk != nil {
			// A process that waits for a frozen disk cannot be killed.
			errs = append(errs, h.disk.thaw())
		}
		processes = append(processes, h.processes()...)
	}
	errs = append(errs, kill(processes))
	r.logs.Wait()
	for _, h := range r.hosts {
		if h.disk != nil {
			errs = append(errs, h.disk.close())
		}
	}
	if r.net != nil {
		errs = append(errs, r.net.close())
	}
	if r.guard != nil {
		errs = append(errs, r.guard.close())
	}
	if r.temporary != "" {
		errs = append(errs, os.RemoveAll(r.temporary))
	}
	return errors.Join(errs...)
}
