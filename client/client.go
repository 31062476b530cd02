// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/hastate/hastate"
)

const (
	// DefaultAttemptTimeout is the default of Options.AttemptTimeout.
	DefaultAttemptTimeout = time.Second
	// DefaultTimeout bounds a call whose context has no deadline.
	DefaultTimeout = 10 * time.Second
	// silenceAttempts: a watch that has been silent for so many attempt timeouts
	// is given up. Nodes send a heartbeat several times in that time.
	silenceAttempts = 3
)

// ErrNoPrimary: the group has no instance that serves now. Wait with
// WatchPrimary, or ask again later.
var ErrNoPrimary = errors.New("no primary")

// Options say where the cluster is and how to reach it.
type Options struct {
	// Endpoints are addresses of nodes, host:port, tried in this order. At least
	// one; two or three survive the loss of a node.
	Endpoints []string
	// DialOptions are used for every connection, for example transport
	// credentials. Without credentials a connection is plaintext, and only to
	// this machine.
	DialOptions []grpc.DialOption
	// AllowPlaintext allows plaintext to other machines.
	AllowPlaintext bool
	// Logger gets what goes wrong and is retried; nil: nothing is logged.
	Logger *slog.Logger
	// AttemptTimeout is how long one endpoint may take before another is tried;
	// 0: DefaultAttemptTimeout.
	AttemptTimeout time.Duration
	// Name tells the operator who writes sessions.
	Name string
}

func (o *Options) validate() error {
	if len(o.Endpoints) == 0 {
		return fmt.Errorf("%w: no endpoints: give the host:port of at least one node", hastate.ErrInvalid)
	}
	for _, e := range o.Endpoints {
		if err := checkEndpoint(e); err != nil {
			return err
		}
		if len(o.DialOptions) == 0 && !o.AllowPlaintext && !looksLocal(e) {
			return fmt.Errorf("%w: plaintext to %s is refused: give TLS credentials in DialOptions, or set AllowPlaintext", hastate.ErrInvalid, e)
		}
	}
	if o.AttemptTimeout < 0 {
		return fmt.Errorf("%w: attempt timeout %v is negative", hastate.ErrInvalid, o.AttemptTimeout)
	}
	if len(o.Name) > hastate.MaxTextBytes {
		return &hastate.LimitError{Limit: "client name bytes", Maximum: hastate.MaxTextBytes, Actual: uint64(len(o.Name))}
	}
	return nil
}

// Client talks to one cluster.
type Client struct {
	opts     Options
	log      *slog.Logger
	pool     *pool
	identity *identity
	now      func() time.Duration
	writer   *writer
	// leaderless: the last node that said something about it knew no leader.
	leaderless atomic.Bool

	// ctx ends when the client is closed.
	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex // guards all below
	closed  bool
	wg      sync.WaitGroup // added to only under mu and while not closed
	groups  map[string]*groupCache
	writing bool // the writer's loop was started
}

// Dial makes a client. It does not connect: a cluster that cannot be reached is
// noticed by the first call.
func Dial(opts Options) (*Client, error) {
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	if opts.AttemptTimeout == 0 {
		opts.AttemptTimeout = DefaultAttemptTimeout
	}
	log := opts.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &Client{
		opts: opts, log: log, identity: &identity{}, now: now,
		ctx: ctx, cancel: cancel, groups: make(map[string]*groupCache),
	}
	c.writer = newWriter(c)
	p, err := newPool(opts.Endpoints, c.dial, log)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("dial: %w", err)
	}
	c.pool = p
	return c, nil
}

// dial makes the connection to one endpoint, without connecting.
func (c *Client) dial(addr string) (*grpc.ClientConn, error) {
	creds := newLocalPlaintext()
	if c.opts.AllowPlaintext {
		creds = insecure.NewCredentials()
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		// A lost node is avoided by trying another one, and must be noticed soon
		// when it is back.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           grpcbackoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: c.opts.AttemptTimeout,
		}),
		// A page of sessions may be somewhat larger than what may be sent.
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(2 * hastate.MaxMessageBytes)),
		grpc.WithDisableServiceConfig(),
		grpc.WithChainUnaryInterceptor(c.identity.unary),
		grpc.WithChainStreamInterceptor(c.identity.stream),
	}
	conn, err := grpc.NewClient(addr, append(options, c.opts.DialOptions...)...)
	if err != nil {
		return nil, fmt.Errorf("endpoint %s: %w", addr, err)
	}
	return conn, nil
}

// Close ends all calls and watches and waits for them. Writes that were not
// answered end with an OutcomeUnknownError.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.wg.Wait()
	if err := c.pool.close(); err != nil {
		return fmt.Errorf("close connections: %w", err)
	}
	return nil
}

// spawn starts a goroutine that Close waits for. run must return when c.ctx
// ends.
func (c *Client) spawn(run func()) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return fmt.Errorf("client: %w", hastate.ErrClosed)
	}
	c.wg.Go(run)
	return nil
}

// bind returns a context that ends with ctx or with the client.
func (c *Client) bind(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(c.ctx, func() { cancel(hastate.ErrClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// within is bind with the default deadline if ctx has none.
func (c *Client) within(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, unbind := c.bind(ctx)
	if _, ok := ctx.Deadline(); ok {
		return ctx, unbind
	}
	ctx, cancel := context.WithTimeout(ctx, DefaultTimeout)
	return ctx, func() {
		cancel()
		unbind()
	}
}

// checkGroup gives an empty group its default and checks the length.
func checkGroup(group string) (string, error) {
	if group == "" {
		return hastate.DefaultGroup, nil
	}
	if len(group) > hastate.MaxNameBytes {
		return "", &hastate.LimitError{Limit: "group name bytes", Maximum: hastate.MaxNameBytes, Actual: uint64(len(group))}
	}
	return group, nil
}
