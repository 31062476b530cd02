// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strconv"
)

// openLoopback makes hosts without root: addresses of the loopback network and
// plain folders.
func (r *Rig) openLoopback() error {
	// Not from the seed: two runs of one seed must not meet.
	for range 20 {
		if x := rand.IntN(256); r.free(x) {
			for i := range r.options.Hosts {
				address := loopbackAddress(x, i)
				h := newHost(r, i, address, address, address)
				if err := h.makeFolder(filepath.Join(r.options.Dir, "disks", fmt.Sprintf("h%d", i+1))); err != nil {
					return err
				}
				r.hosts = append(r.hosts, h)
			}
			return nil
		}
	}
	return errors.New("no free addresses on loopback: end other runs first")
}

func loopbackAddress(x, i int) string { return fmt.Sprintf("127.77.%d.%d", x, i+1) }

// free reports whether all ports are free on all addresses.
func (r *Rig) free(x int) bool {
	ports := []int{nodeGRPC, nodeWeb}
	for k := range r.options.Groups {
		ports = append(ports, modelGRPC+k, modelHTTP+k)
	}
	for i := range r.options.Hosts {
		for _, port := range ports {
			l, err := net.Listen("tcp", net.JoinHostPort(loopbackAddress(x, i), strconv.Itoa(port)))
			if err != nil {
				return false
			}
			_ = l.Close() // nobody has dialled
		}
	}
	return true
}

// setLoopbackLink has the sender act the policy out.
func (r *Rig) setLoopbackLink(from, to int, p Policy) error {
	if from == Hub || to == Hub {
		return fmt.Errorf("%w: faulty links with the hub need root", ErrUnsupported)
	}
	if p.Reorder > 0 {
		return fmt.Errorf("%w: reordering needs root", ErrUnsupported)
	}
	h := r.hosts[from]
	h.control.mu.Lock()
	defer h.control.mu.Unlock()
	if h.control.links == nil {
		h.control.links = map[int]Policy{}
	}
	if h.control.links[to] = p; p == (Policy{}) {
		delete(h.control.links, to)
	}
	return h.tellLinks(context.Background())
}

func (r *Rig) healLoopbackLinks() error {
	var errs []error
	for _, h := range r.hosts {
		errs = append(errs, h.healLoopbackLinks())
	}
	return errors.Join(errs...)
}

func (h *Host) healLoopbackLinks() error {
	h.control.mu.Lock()
	defer h.control.mu.Unlock()
	h.control.links = nil
	if _, told := h.control.fields["links"]; !told {
		return nil
	}
	return h.tellLinks(context.Background())
}
