// SPDX-License-Identifier: Apache-2.0

//go:build process

package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// smallDisk mounts a file system of its own that a test can fill.
func smallDisk(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a small file system")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=48m"); err != nil {
		t.Skipf("cannot mount a small file system: %v", err)
	}
	// Registered before the processes are started, so that it runs after their end.
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// fill takes all the space that is left.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 64<<10)
	for size := len(block); size > 0; size /= 2 {
		for err == nil {
			_, err = f.Write(block[:size])
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		err = nil
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFullDisk(t *testing.T) {
	for _, name := range []string{"follower", "leader"} {
		t.Run(name, func(t *testing.T) { fullDisk(t, name == "leader") })
	}
}

// fullDisk: a node whose disk is full ends with an error that says so, the others
// go on, and it catches up when it has space again.
func fullDisk(t *testing.T, leads bool) {
	c := newCluster(t, options{dirs: []string{filepath.Join(smallDisk(t), "data")}})
	full := c.hosts[0]
	if got := c.leader(); (got == full) != leads {
		to := full
		if !leads {
			to = c.hosts[1]
		}
		eventually(t, "the transfer of leadership", func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			s, err := to.status(ctx)
			if err != nil || s.GetLeaderId() == to.id {
				return err
			}
			_, err = pb.NewClusterServiceClient(c.host(s.GetLeaderId()).conn).TransferLeadership(ctx, &pb.TransferLeadershipRequest{To: to.id})
			return err
		})
	}
	l := startLoad(t, c)
	l.progress(20)
	free := fill(t, filepath.Dir(full.dir))
	code := ended(t, full.node)
	tail := full.node.Tail()
	if code != exitFailed || !strings.Contains(tail, "hanode: ") || !strings.Contains(tail, "no space left on device") {
		t.Fatalf("exit code %d:\n%s", code, tail)
	}
	t.Logf("it ended with: %s", tail[strings.Index(tail, "hanode: "):])
	l.progress(50)

	// It does not start while there is no space, and says why.
	c.startNode(full)
	if code := ended(t, full.node); code != exitFailed || !strings.Contains(full.node.Tail(), "no space left on device") {
		t.Errorf("restarted with a full disk: exit code %d:\n%s", code, full.node.Tail())
	}
	l.progress(20)
	free()
	c.startNode(full)
	l.progress(20)
	acked := l.stop()
	c.leader()
	for id, want := range acked {
		eventually(t, "the node to catch up", func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			reply, err := pb.NewSessionServiceClient(full.conn).Get(ctx, &pb.GetRequest{Id: id, Level: pb.ReadLevel_READ_LEVEL_LOCAL})
			if err == nil && reply.GetSession().GetBaseOffset() < want {
				err = fmt.Errorf("%s: %d was acknowledged, %d is there", id, want, reply.GetSession().GetBaseOffset())
			}
			return err
		})
	}
}

// load writes into a few sessions for as long as a test goes on.
type load struct {
	t      *testing.T
	cancel context.CancelFunc
	done   sync.WaitGroup
	// mu guards acked: by session, the number that was acknowledged last.
	mu    sync.Mutex
	acked map[string]uint64
	total int
}

const loadWriters = 4

func startLoad(t *testing.T, c *cluster) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{t: t, cancel: cancel, acked: map[string]uint64{}}
	value := []byte(strings.Repeat("0123456789abcdef", 1024)) // fills a disk
	for i := range loadWriters {
		id := fmt.Sprintf("load-%d", i)
		l.done.Go(func() {
			for seq := uint64(1); ctx.Err() == nil; {
				_, err := c.client.Sessions("").Put(ctx, &pb.PutRequest{Session: &pb.Session{Id: id, Value: value, BaseOffset: seq}})
				if err != nil {
					continue // it may have been applied: the same number again does no harm
				}
				l.mu.Lock()
				l.acked[id] = seq
				l.total++
				l.mu.Unlock()
				seq++
			}
		})
	}
	t.Cleanup(func() { l.stop() })
	return l
}

// progress waits until so many more writes have been acknowledged.
func (l *load) progress(more int) {
	l.t.Helper()
	count := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.total
	}
	from := count()
	eventually(l.t, "writes to be acknowledged", func() error {
		if n := count() - from; n < more {
			return fmt.Errorf("%d of %d", n, more)
		}
		return nil
	})
}

// stop ends the load and returns what was acknowledged.
func (l *load) stop() map[string]uint64 {
	l.cancel()
	l.done.Wait()
	return l.acked
}
