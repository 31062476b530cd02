// SPDX-License-Identifier: Apache-2.0

package system

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/client"
	"github.com/hastate/hastate/internal/proc"
	pb "github.com/hastate/hastate/proto/hastate/v1"
)

// Hastate is this project. Without Program the command is built from the module.
type Hastate struct {
	// Program is the hanode to measure.
	Program string
	// LogStore is how the nodes keep the Raft log: bolt or segments.
	LogStore string
	// Unary clients make one call per operation, to the leader, in place of the
	// client library's stream.
	Unary bool
}

// Name is hastate, with what differs from the defaults.
func (h Hastate) Name() string {
	name := "hastate-" + h.LogStore
	if h.Unary {
		name += "-unary"
	}
	return name
}

// Missing is empty: it is always there.
func (h Hastate) Missing() string { return "" }

// Build builds hanode into a folder and returns its path. It is built in its own module,
// with the versions of its dependencies that are released with it.
func Build(ctx context.Context, dir string) (string, error) {
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/hastate/hastate").Output()
	if err != nil {
		return "", fmt.Errorf("find the module of hanode: %w: run it in the folder bench, or name a program with -hanode", err)
	}
	path := filepath.Join(dir, "hanode")
	build := exec.CommandContext(ctx, "go", "build", "-o", path, "./cmd/hanode")
	build.Dir = strings.TrimSpace(string(root))
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build hanode: %w: %s", err, out)
	}
	return path, nil
}

// Start starts three nodes at their default settings.
func (h Hastate) Start(ctx context.Context, dir string) (*Cluster, error) {
	endpoints, err := addresses(nodes)
	if err != nil {
		return nil, err
	}
	c := &Cluster{}
	for i, endpoint := range endpoints {
		id := fmt.Sprintf("n%d", i+1)
		err := c.run(proc.Spec{Name: "hanode " + id, Path: h.Program, Args: []string{
			"run", "--node-id", id, "--data-dir", filepath.Join(dir, id), "--listen", endpoint, "--http-listen", "",
			"--bootstrap-expect", strconv.Itoa(nodes), "--join", strings.Join(endpoints, ","), "--log-store", h.LogStore,
		}})
		if err != nil {
			return nil, c.fail(err)
		}
	}
	c.Connect = func(ctx context.Context) (Conn, error) { return h.connect(ctx, endpoints) }
	return c.ready(ctx)
}

func (h Hastate) connect(ctx context.Context, endpoints []string) (Conn, error) {
	if h.Unary {
		leader, err := leaderOf(ctx, endpoints)
		if err != nil {
			return nil, err
		}
		conn, err := dial(leader)
		if err != nil {
			return nil, err
		}
		return unary{conn, pb.NewSessionServiceClient(conn)}, nil
	}
	c, err := client.Dial(client.Options{Endpoints: endpoints, Name: "bench"})
	if err != nil {
		return nil, err
	}
	return streaming{c, c.Sessions(hastate.DefaultGroup)}, nil
}

func dial(address string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// leaderOf asks the nodes who leads.
func leaderOf(ctx context.Context, endpoints []string) (string, error) {
	var last error
	for _, endpoint := range endpoints {
		conn, err := dial(endpoint)
		if err != nil {
			return "", err
		}
		s, err := pb.NewClusterServiceClient(conn).Status(ctx, &pb.StatusRequest{})
		_ = conn.Close() // only read from
		if err == nil && s.GetLeaderAddress() != "" {
			return s.GetLeaderAddress(), nil
		}
		last = err
	}
	return "", errors.Join(errors.New("no node knows a leader"), last)
}

// sessionID is the id of a key.
func sessionID(key int) string { return fmt.Sprintf("bench-%08d", key) }

// streaming writes through the client library.
type streaming struct {
	client   *client.Client
	sessions *client.Sessions
}

func (s streaming) Put(ctx context.Context, key int, value []byte) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	_, err := s.sessions.Put(ctx, &pb.PutRequest{Session: &pb.Session{Id: sessionID(key), Value: value}})
	return err
}

func (s streaming) Get(ctx context.Context, key int) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	_, err := s.sessions.Get(ctx, sessionID(key), pb.ReadLevel_READ_LEVEL_LINEARIZABLE)
	if errors.Is(err, hastate.ErrNotFound) {
		return nil
	}
	return err
}

// Watch begins with the current value.
func (s streaming) Watch(ctx context.Context, key int, told func()) error {
	return s.sessions.Watch(ctx, sessionID(key), 0, func(c client.SessionChange) error {
		if c.Event != nil {
			told()
		}
		return nil
	})
}

func (s streaming) Close() error { return s.client.Close() }

// unary makes one call per operation.
type unary struct {
	conn     *grpc.ClientConn
	sessions pb.SessionServiceClient
}

func (u unary) Put(ctx context.Context, key int, value []byte) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	_, err := u.sessions.Put(ctx, &pb.PutRequest{Session: &pb.Session{Group: hastate.DefaultGroup, Id: sessionID(key), Value: value}})
	return err
}

func (u unary) Get(ctx context.Context, key int) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	_, err := u.sessions.Get(ctx, &pb.GetRequest{Group: hastate.DefaultGroup, Id: sessionID(key), Level: pb.ReadLevel_READ_LEVEL_LINEARIZABLE})
	if errors.Is(hastate.FromStatus(err), hastate.ErrNotFound) {
		return nil
	}
	return err
}

func (u unary) Close() error { return u.conn.Close() }
