// SPDX-License-Identifier: Apache-2.0

package system

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/hastate/hastate/internal/proc"
)

// zooKeeperJars is where Debian's packages put the server and what it needs.
const zooKeeperJars = "/usr/share/java"

// ZooKeeper is Debian's ZooKeeper at its defaults. Its clients are spread over the
// servers, each of which answers for its own.
type ZooKeeper struct{}

// Name is zookeeper.
func (ZooKeeper) Name() string { return "zookeeper" }

// Missing says which package is not there.
func (ZooKeeper) Missing() string {
	if _, err := exec.LookPath("java"); err != nil {
		return "java is not installed"
	}
	if _, err := os.Stat(filepath.Join(zooKeeperJars, "zookeeper.jar")); err != nil {
		return "ZooKeeper is not installed (apt-get install zookeeper)"
	}
	return ""
}

// Start starts three servers.
func (ZooKeeper) Start(ctx context.Context, dir string) (*Cluster, error) {
	all, err := addresses(3 * nodes)
	if err != nil {
		return nil, err
	}
	clients := all[:nodes]
	var servers strings.Builder
	for i := range nodes {
		_, election, _ := net.SplitHostPort(all[2*nodes+i]) // made by addresses
		fmt.Fprintf(&servers, "server.%d=%s:%s\n", i+1, all[nodes+i], election)
	}
	c := &Cluster{}
	for i := range nodes {
		config, err := zooKeeperFolder(filepath.Join(dir, "z"+strconv.Itoa(i+1)), i+1, clients[i], servers.String())
		if err == nil {
			err = c.run(proc.Spec{Name: "zookeeper " + strconv.Itoa(i+1), Path: "java", Args: []string{
				"-Xmx2g", "-cp", zooKeeperJars + "/*", "-Dzookeeper.admin.enableServer=false", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error",
				"org.apache.zookeeper.server.quorum.QuorumPeerMain", config,
			}})
		}
		if err != nil {
			return nil, c.fail(err)
		}
	}
	known := make([]atomic.Bool, maxKeys)
	c.Connect = func(ctx context.Context) (Conn, error) { return connectZooKeeper(ctx, clients, known) }
	return c.ready(ctx)
}

// zooKeeperFolder makes the folder of a server and returns its configuration.
func zooKeeperFolder(dir string, id int, client, servers string) (string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	host, port, err := net.SplitHostPort(client)
	if err != nil {
		return "", err
	}
	config := filepath.Join(dir, "zoo.cfg")
	text := fmt.Sprintf("tickTime=2000\ninitLimit=10\nsyncLimit=5\nmaxClientCnxns=0\ndataDir=%s\nclientPortAddress=%s\nclientPort=%s\n%s", dir, host, port, servers)
	return config, errors.Join(
		os.WriteFile(filepath.Join(dir, "myid"), []byte(strconv.Itoa(id)+"\n"), 0o600),
		os.WriteFile(config, []byte(text), 0o600),
	)
}

// maxKeys bounds the keys of a run.
const maxKeys = 4_000_000

// zooKeeperConn is one session.
type zooKeeperConn struct {
	conn *zk.Conn
	// known are the nodes that have been created, by any connection: a write is then
	// one request, as with the others, and not a failed one and another.
	known []atomic.Bool
}

// quiet drops what the client library logs.
type quiet struct{}

func (quiet) Printf(string, ...any) {}

func connectZooKeeper(ctx context.Context, servers []string, known []atomic.Bool) (Conn, error) {
	conn, events, err := zk.Connect(servers, opTimeout, zk.WithLogger(quiet{}))
	if err != nil {
		return nil, err
	}
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return nil, errors.New("the client gave up")
			}
			if e.State == zk.StateHasSession {
				go func() { // it ends when Close closes the channel
					for range events {
					}
				}()
				return zooKeeperConn{conn, known}, nil
			}
		case <-ctx.Done():
			conn.Close()
			return nil, context.Cause(ctx)
		}
	}
}

// Put takes no context: the library bounds a request by the session's timeout.
func (z zooKeeperConn) Put(_ context.Context, key int, value []byte) error {
	path := "/" + sessionID(key)
	if z.known[key].Load() {
		_, err := z.conn.Set(path, value, -1)
		return err
	}
	_, err := z.conn.Create(path, value, 0, zk.WorldACL(zk.PermAll))
	if errors.Is(err, zk.ErrNodeExists) {
		_, err = z.conn.Set(path, value, -1)
	}
	if err == nil {
		z.known[key].Store(true)
	}
	return err
}

// Get is linearizable as far as ZooKeeper can be: a sync, then a read.
func (z zooKeeperConn) Get(_ context.Context, key int) error {
	path := "/" + sessionID(key)
	if _, err := z.conn.Sync(path); err != nil {
		return err
	}
	_, _, err := z.conn.Get(path)
	if errors.Is(err, zk.ErrNoNode) {
		return nil
	}
	return err
}

func (z zooKeeperConn) Close() error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		z.conn.Close()
	}()
	select {
	case <-done:
		return nil
	case <-time.After(opTimeout):
		return errors.New("the session does not close")
	}
}
