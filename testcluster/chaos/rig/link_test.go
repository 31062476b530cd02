// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hastate/hastate/internal/wait"
)

// wires is a network without hosts on it: the test has sockets in its namespaces.
func wires(t *testing.T, hosts int) *Rig {
	t.Helper()
	needRoot(t)
	n, err := openNetwork(t.Context(), hosts, 7)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.close(); err != nil {
			t.Error(err)
		}
	})
	return &Rig{net: n, hosts: make([]*Host, hosts)}
}

func (r *Rig) space(i int) *namespace { return r.net.ends[i+1].space }

// must sets a policy.
func (r *Rig) must(t *testing.T, from, to int, p Policy) {
	t.Helper()
	if err := r.Link(from, to).Set(p); err != nil {
		t.Fatal(err)
	}
}

// connect is a TCP connection between two hosts, both its ends.
func (r *Rig) connect(t *testing.T, from, to int) (client, server net.Conn) {
	t.Helper()
	var l net.Listener
	if err := r.space(to).in(func() (err error) {
		l, err = net.Listen("tcp", "0.0.0.0:0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		defer close(accepted)
		if conn, err := l.Accept(); err == nil {
			accepted <- conn
		}
	}()
	client = dial(t, r.space(from), "tcp", fmt.Sprintf("%s:%d", r.net.ends[to+1].address, l.Addr().(*net.TCPAddr).Port))
	if server = <-accepted; server == nil {
		t.Fatal("not accepted")
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

// datagrams is two UDP sockets that are connected to each other.
func (r *Rig) datagrams(t *testing.T, a, b int) (onA, onB net.Conn) {
	t.Helper()
	// A pair of ports for each pair of ends.
	address := func(i int) *net.UDPAddr {
		return &net.UDPAddr{IP: r.net.ends[i+1].address.AsSlice(), Port: 5000 + 10*(a+b+2) + i + 1}
	}
	one := func(from, to int) (conn net.Conn) {
		if err := r.space(from).in(func() (err error) {
			conn, err = net.DialUDP("udp", address(from), address(to))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	return one(a, b), one(b, a)
}

func send(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	if _, err := conn.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, conn net.Conn) string {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

func (r *Rig) dropped(t *testing.T, from, to int, atLeast uint64) {
	t.Helper()
	wait.Until(t, 20*time.Second, func() error {
		if n := r.net.direction(from, to).droppedSoFar(); n < atLeast {
			return fmt.Errorf("%d of %d packets were dropped", n, atLeast)
		}
		return nil
	})
}

func TestLink_CutOneWay(t *testing.T) {
	r := wires(t, 3)
	for _, ends := range [][2]int{{0, 1}, {2, Hub}, {Hub, 1}} {
		a, b := r.datagrams(t, ends[0], ends[1])
		send(t, a, "1")
		if got := receive(t, b); got != "1" {
			t.Fatalf("healthy: %q", got)
		}
		r.must(t, ends[0], ends[1], Policy{Cut: true})
		send(t, a, "2")
		r.dropped(t, ends[0], ends[1], 1)
		send(t, b, "back")
		if got := receive(t, a); got != "back" {
			t.Fatalf("the other way: %q", got)
		}
		if err := r.HealLinks(); err != nil {
			t.Fatal(err)
		}
		send(t, a, "3")
		if got := receive(t, b); got != "3" {
			t.Fatalf("healed: %q", got)
		}
	}
}

// TestLink_Partial: two are cut from each other, and a third sees both.
func TestLink_Partial(t *testing.T) {
	r := wires(t, 3)
	ab, _ := r.datagrams(t, 0, 1)
	ac, ca := r.datagrams(t, 0, 2)
	r.must(t, 0, 1, Policy{Cut: true})
	r.must(t, 1, 0, Policy{Cut: true})
	send(t, ab, "no")
	send(t, ac, "yes")
	if got := receive(t, ca); got != "yes" {
		t.Fatal(got)
	}
	r.dropped(t, 0, 1, 1)
}

// TestLink_CutEstablished: a connection that exists is cut silently, and goes on
// when the link is healed.
func TestLink_CutEstablished(t *testing.T) {
	r := wires(t, 2)
	client, server := r.connect(t, 0, 1)
	send(t, client, "before")
	if got := receive(t, server); got != "before" {
		t.Fatal(got)
	}
	r.must(t, 0, 1, Policy{Cut: true})
	send(t, client, "during")
	got := make(chan string, 1)
	var reader sync.WaitGroup
	defer reader.Wait()
	reader.Go(func() { got <- receive(t, server) })
	r.dropped(t, 0, 1, 2) // it was sent again
	select {
	case text := <-got:
		t.Fatalf("%q came through", text)
	default:
	}
	r.must(t, 0, 1, Policy{})
	if text := <-got; text != "during" {
		t.Fatal(text)
	}
	send(t, server, "after")
	if text := receive(t, client); text != "after" {
		t.Fatal(text)
	}
}

func TestLink_Delay(t *testing.T) {
	r := wires(t, 2)
	client, server := r.connect(t, 0, 1)
	go func() { _, _ = io.Copy(server, server) }()
	healthy := ping(t, client)
	const delay, jitter = 40 * time.Millisecond, 10 * time.Millisecond
	r.must(t, 0, 1, Policy{Delay: delay})
	if rtt := ping(t, client); rtt < delay {
		t.Errorf("one way: %v", rtt)
	}
	r.must(t, 1, 0, Policy{Delay: delay, Jitter: jitter})
	slow := ping(t, client)
	if slow < 2*delay-jitter {
		t.Errorf("both ways: %v", slow)
	}
	t.Logf("healthy %v, slow %v", healthy, slow)
	server.Close()
}

// TestLink_DelayThenCut: what is under way does not arrive after the cut.
func TestLink_DelayThenCut(t *testing.T) {
	r := wires(t, 2)
	a, b := r.datagrams(t, 0, 1)
	r.must(t, 0, 1, Policy{Delay: 300 * time.Millisecond})
	send(t, a, "late")
	r.must(t, 0, 1, Policy{Cut: true})
	r.dropped(t, 0, 1, 1)
	r.must(t, 0, 1, Policy{})
	send(t, a, "next")
	if got := receive(t, b); got != "next" {
		t.Fatal(got)
	}
}

func TestLink_Loss(t *testing.T) {
	r := wires(t, 2)
	a, b := r.datagrams(t, 0, 1)
	r.must(t, 0, 1, Policy{Loss: 0.3})
	const all = 200
	for i := range all {
		send(t, a, fmt.Sprint(i))
	}
	for range 50 { // one of them comes through
		send(t, a, "end")
	}
	got := -1
	for text := ""; text != "end"; got++ {
		text = receive(t, b)
	}
	if lost := all - got; lost < all/10 || lost > all/2 {
		t.Fatalf("%d of %d lost", lost, all)
	}
	client, server := r.connect(t, 0, 1)
	go func() { _, _ = io.Copy(server, server) }()
	r.must(t, 0, 1, Policy{Loss: 0.3})
	ping(t, client) // TCP mends it
	server.Close()
}

func TestLink_Reorder(t *testing.T) {
	r := wires(t, 2)
	a, b := r.datagrams(t, 0, 1)
	for _, p := range []Policy{{Reorder: 0.5}, {Reorder: 0.2, Delay: 5 * time.Millisecond}, {Delay: 5 * time.Millisecond, Jitter: 5 * time.Millisecond}} {
		r.must(t, 0, 1, p)
		const all = 100
		for i := range all {
			send(t, a, fmt.Sprintf("%03d", i))
		}
		var got []string
		for range all {
			got = append(got, receive(t, b))
		}
		if slices.IsSorted(got) != (p.Reorder == 0) {
			t.Errorf("%+v: %v", p, got)
		}
		slices.Sort(got)
		if len(slices.Compact(got)) != all {
			t.Errorf("%+v: repeated: %v", p, got)
		}
	}
}

// TestLink_Reset: a connection is reset at both ends when it carries data, and a
// new one can be made.
func TestLink_Reset(t *testing.T) {
	r := wires(t, 2)
	for _, end := range []int{0, 1} {
		client, server := r.connect(t, 0, 1)
		conns := []net.Conn{client, server}
		send(t, client, "hello")
		receive(t, server)
		r.must(t, end, 1-end, Policy{Reset: 1})
		send(t, conns[end], "data")
		for i, conn := range conns {
			if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("data from %d: end %d: %v", end, i, err)
			}
		}
		r.must(t, end, 1-end, Policy{})
	}
}

func TestLink_Refuses(t *testing.T) {
	r := wires(t, 2)
	for _, p := range []Policy{{Loss: 1.1}, {Reset: -1}, {Delay: -1}, {Delay: MaxDelay, Jitter: 1}} {
		if err := r.Link(0, 1).Set(p); err == nil {
			t.Errorf("%+v was taken", p)
		}
	}
	for _, ends := range [][2]int{{0, 0}, {0, 2}, {-2, 0}} {
		if err := r.Link(ends[0], ends[1]).Set(Policy{}); err == nil || !strings.Contains(err.Error(), "no link") {
			t.Errorf("%v: %v", ends, err)
		}
	}
}

// BenchmarkLink_Forward is what a packet costs that passes through the program:
// a byte there and back by TCP, both directions faulty but harmless.
func BenchmarkLink_Forward(b *testing.B) {
	if !inside {
		b.Skip("namespaces need root")
	}
	n, err := openNetwork(b.Context(), 2, 1)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = n.close() }() // nothing is measured any more
	for _, name := range []string{"bridge", "tun"} {
		b.Run(name, func(b *testing.B) {
			if name == "tun" {
				for _, d := range n.directions() {
					if err := d.set(Policy{Loss: 1e-12}); err != nil {
						b.Fatal(err)
					}
				}
			}
			var l net.Listener
			var conn net.Conn
			if err := n.ends[2].space.in(func() (err error) { l, err = net.Listen("tcp", "10.77.0.2:0"); return err }); err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			go echo(l)
			if err := n.ends[1].space.in(func() (err error) { conn, err = net.Dial("tcp", l.Addr().String()); return err }); err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			var before, after syscall.Rusage
			if err := syscall.Getrusage(syscall.RUSAGE_SELF, &before); err != nil {
				b.Fatal(err)
			}
			buf := make([]byte, 1)
			for b.Loop() {
				if _, err := conn.Write(buf); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(conn, buf); err != nil {
					b.Fatal(err)
				}
			}
			if err := syscall.Getrusage(syscall.RUSAGE_SELF, &after); err != nil {
				b.Fatal(err)
			}
			spent := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
			b.ReportMetric(float64(spent.Nanoseconds())/float64(b.N), "cpu-ns/op")
		})
	}
}
