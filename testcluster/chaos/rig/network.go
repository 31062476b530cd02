// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// bridgeName is the bridge in the hub's namespace. One rig can be open at a time.
const bridgeName = "rig0"

// endpoint is a host or the hub, as an end of links.
type endpoint struct {
	name    string
	space   *namespace
	address netip.Addr
	routes  *router
	tun     *os.File
	device  int // index of the TUN device
}

// write lets a packet come out of the endpoint's TUN device. One that the kernel
// does not take is lost like any packet.
func (e *endpoint) write(packet []byte) { _, _ = e.tun.Write(packet) }

// network is the namespaces, the bridge and the faulty directions.
type network struct {
	ends []*endpoint // the hub, then the hosts
	// ways has one for each ordered pair of ends, by index; nil on the diagonal.
	ways   [][]*direction
	byAddr map[netip.Addr]int
	queue  *delayQueue
	cancel context.CancelFunc
	done   sync.WaitGroup // the readers and the delay queue
}

func hostAddress(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 77, 0, byte(i + 1)}) }
func hubAddress() netip.Addr       { return netip.AddrFrom4([4]byte{10, 77, 0, 254}) }

// openNetwork makes everything; all links are healthy.
func openNetwork(ctx context.Context, hosts int, seed uint64) (_ *network, err error) {
	n := &network{byAddr: map[netip.Addr]int{}, queue: newDelayQueue(), cancel: func() {}}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	hub, err := openHub()
	if err != nil {
		return nil, err
	}
	if err := n.addEnds(ctx, hub, hosts); err != nil {
		return nil, err
	}
	for i, from := range n.ends {
		n.byAddr[from.address] = i
		row := make([]*direction, len(n.ends))
		for j, to := range n.ends {
			if i != j {
				row[j] = &direction{from: from, to: to, queue: n.queue, rng: rand.New(rand.NewPCG(seed, uint64(i)<<32|uint64(j)))}
			}
		}
		n.ways = append(n.ways, row)
	}
	var inner context.Context
	inner, n.cancel = context.WithCancel(context.WithoutCancel(ctx))
	n.done.Go(func() { n.queue.run(inner) })
	for i := range n.ends {
		n.done.Go(func() { n.read(i) })
	}
	return n, nil
}

// addEnds makes the ends: bridge, namespaces, devices, addresses.
func (n *network) addEnds(ctx context.Context, hub *namespace, hosts int) error {
	n.ends = []*endpoint{{name: "the hub", space: hub, address: hubAddress()}}
	setup := []string{
		"link add " + bridgeName + " type bridge",
		"addr add " + hubAddress().String() + "/24 dev " + bridgeName,
		"link set " + bridgeName + " up",
	}
	for i := range hosts {
		space, err := hub.sub()
		if err != nil {
			return err
		}
		n.ends = append(n.ends, &endpoint{name: fmt.Sprintf("host %d", i), space: space, address: hostAddress(i)})
		setup = append(setup,
			fmt.Sprintf("link add h%d type veth peer name eth0 netns /proc/%d/fd/%d", i, os.Getpid(), space.file.Fd()),
			fmt.Sprintf("link set h%d master %s up", i, bridgeName))
	}
	for _, e := range n.ends {
		if err := e.space.in(quiet); err != nil {
			return err
		}
	}
	if err := hub.in(func() error { return ip(ctx, setup) }); err != nil {
		return err
	}
	for i, e := range n.ends {
		if err := e.space.in(func() error { return e.open(ctx, i > 0) }); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	return nil
}

// open makes what is inside an endpoint's namespace. The thread is in it.
func (e *endpoint) open(ctx context.Context, host bool) (err error) {
	if e.tun, err = openTun(); err != nil {
		return err
	}
	if e.device, err = deviceIndex(tunName); err != nil {
		return err
	}
	if e.routes, err = openRouter(); err != nil {
		return err
	}
	setup := []string{"link set " + tunName + " up"}
	if host {
		setup = append(setup, "addr add "+e.address.String()+"/24 dev eth0", "link set eth0 up")
	}
	return ip(ctx, setup)
}

// quiet sets what new devices of the thread's namespace take over: packets may
// come by another way than answers go, and nothing is sent unasked.
func quiet() error {
	for name, value := range map[string]string{
		"ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0",
		"ipv6/conf/all/disable_ipv6": "1", "ipv6/conf/default/disable_ipv6": "1",
	} {
		err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6
			return fmt.Errorf("set net/%s: %w", name, err)
		}
	}
	return nil
}

// ip runs commands of iproute2 in the thread's namespace.
func ip(ctx context.Context, commands []string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("ip -batch: %w: %s", err, strings.TrimSpace(out.String()))
	}
	return nil
}

// direction is the one from one end to another; the indexes are valid.
func (n *network) direction(from, to int) *direction { return n.ways[from-Hub][to-Hub] }

func (n *network) directions() []*direction {
	var all []*direction
	for i, row := range n.ways {
		all = append(all, row[:i]...)
		all = append(all, row[i+1:]...)
	}
	return all
}

// read takes the packets that an endpoint sends into its TUN device, until that
// is closed.
func (n *network) read(from int) {
	buf := make([]byte, packetSize+64)
	for {
		size, err := n.ends[from].tun.Read(buf)
		if err != nil {
			return // closed
		}
		to, ok := destination(buf[:size])
		if !ok {
			continue
		}
		if i, ok := n.byAddr[to]; ok && i != from {
			n.ways[from][i].forward(buf[:size], time.Now())
		}
	}
}

// close undoes everything. No process may be left in the namespaces.
func (n *network) close() error {
	n.cancel()
	var errs []error
	for _, e := range n.ends {
		if e.tun != nil {
			errs = append(errs, e.tun.Close())
		}
		if e.routes != nil {
			errs = append(errs, e.routes.close())
		}
	}
	n.done.Wait()
	if len(n.ends) > 0 {
		// Without their other end in the bridge, the devices of the hosts go too.
		errs = append(errs, n.ends[0].space.in(n.removeDevices))
	}
	for _, e := range n.ends {
		errs = append(errs, e.space.close())
	}
	return errors.Join(errs...)
}

// removeDevices removes what was made in the hub's namespace.
func (n *network) removeDevices() error {
	var commands []string
	if _, err := deviceIndex(bridgeName); err == nil {
		commands = append(commands, "link del "+bridgeName)
	}
	for i := range len(n.ends) - 1 {
		if name := fmt.Sprintf("h%d", i); linkExists(name) {
			commands = append(commands, "link del "+name)
		}
	}
	if len(commands) == 0 {
		return nil
	}
	return ip(context.Background(), commands)
}

func linkExists(name string) bool {
	_, err := deviceIndex(name)
	return err == nil
}
