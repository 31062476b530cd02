// SPDX-License-Identifier: Apache-2.0

package system

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"go.uber.org/zap"

	"github.com/hastate/hastate/internal/proc"
)

// EtcdVerb is the first argument with which this program becomes an etcd server, of the
// version of its module.
const EtcdVerb = "etcd"

// EtcdMain is an etcd server; it does not return.
func EtcdMain(args []string) { etcdmain.Main(append([]string{EtcdVerb}, args...)) }

// Etcd is etcd at its defaults, with room for the data. Its clients go to the leader:
// a follower would forward what they write.
type Etcd struct{}

// Name is etcd.
func (Etcd) Name() string { return "etcd" }

// Missing is empty: it is part of this program.
func (Etcd) Missing() string { return "" }

// Start starts three servers.
func (Etcd) Start(ctx context.Context, dir string) (*Cluster, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	all, err := addresses(2 * nodes)
	if err != nil {
		return nil, err
	}
	clients, peers := all[:nodes], all[nodes:]
	var members []string
	for i, peer := range peers {
		members = append(members, fmt.Sprintf("e%d=http://%s", i+1, peer))
	}
	c := &Cluster{}
	for i := range nodes {
		name := fmt.Sprintf("e%d", i+1)
		err := c.run(proc.Spec{Name: "etcd " + name, Path: self, Args: []string{
			EtcdVerb, "--name", name, "--data-dir", filepath.Join(dir, name), "--log-level", "error",
			"--listen-client-urls", "http://" + clients[i], "--advertise-client-urls", "http://" + clients[i],
			"--listen-peer-urls", "http://" + peers[i], "--initial-advertise-peer-urls", "http://" + peers[i],
			"--initial-cluster", strings.Join(members, ","), "--initial-cluster-state", "new",
			"--quota-backend-bytes", "8589934592",
		}})
		if err != nil {
			return nil, c.fail(err)
		}
	}
	c.Connect = func(ctx context.Context) (Conn, error) { return connectEtcd(ctx, clients) }
	return c.ready(ctx)
}

// etcdConn is a client of the leader.
type etcdConn struct{ client *clientv3.Client }

func connectEtcd(ctx context.Context, endpoints []string) (Conn, error) {
	c, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: opTimeout, Logger: zap.NewNop()})
	if err != nil {
		return nil, err
	}
	for _, endpoint := range endpoints {
		s, err := c.Status(ctx, endpoint)
		if err == nil && s.Leader == s.Header.GetMemberId() {
			c.SetEndpoints(endpoint)
			return etcdConn{c}, nil
		}
	}
	return nil, errors.Join(errors.New("etcd has no leader"), c.Close())
}

// key is the one that a session has too.
func (etcdConn) key(key int) string { return sessionID(key) }

func (e etcdConn) Put(ctx context.Context, key int, value []byte) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	_, err := e.client.Put(ctx, e.key(key), string(value))
	return err
}

func (e etcdConn) Get(ctx context.Context, key int) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	_, err := e.client.Get(ctx, e.key(key))
	return err
}

// Watch shares a stream with the other watches of the connection, as etcd's client does
// by itself.
func (e etcdConn) Watch(ctx context.Context, key int, told func()) error {
	for reply := range e.client.Watch(ctx, e.key(key), clientv3.WithCreatedNotify()) {
		if err := reply.Err(); err != nil {
			return err
		}
		if reply.Created {
			told()
		}
		for range reply.Events {
			told()
		}
	}
	return errors.New("etcd has ended the watch")
}

func (e etcdConn) Close() error { return e.client.Close() }
