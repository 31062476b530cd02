// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os/exec"
	"strconv"
	"time"

	"google.golang.org/grpc"

	"github.com/hastate/hastate"
)

// The kinds of attachment.
const (
	// KindGRPC: the server implements InstanceService.
	KindGRPC = "grpc"
	// KindHTTP: an unmodified server with a health URL.
	KindHTTP = "http"
	// KindTCP: an unmodified server of which only the port is known.
	KindTCP = "tcp"
)

// Defaults and bounds of Config.
const (
	DefaultInterval  = 500 * time.Millisecond
	DefaultTimeout   = 2 * time.Second
	DefaultFailAfter = 3

	MinInterval  = 10 * time.Millisecond
	MaxInterval  = time.Minute
	MaxTimeout   = 10 * time.Minute
	MaxFailAfter = 1000

	// DefaultPromoteTimeout and DefaultDemoteTimeout bound calls whose caller
	// gave no deadline.
	DefaultPromoteTimeout = 30 * time.Second
	DefaultDemoteTimeout  = 10 * time.Second
	// DefaultLoadTimeout bounds Load: large models take minutes.
	DefaultLoadTimeout = 10 * time.Minute
)

// Config says where the model server is and how it is looked after.
type Config struct {
	// Kind is KindGRPC, KindHTTP or KindTCP.
	Kind string
	// Target is host:port, for KindHTTP the URL that answers 200 when healthy.
	Target string
	// Interval between two looks; 0: DefaultInterval.
	Interval time.Duration
	// Timeout of one look; 0: DefaultTimeout.
	Timeout time.Duration
	// FailAfter is how many looks in a row must fail, or for KindGRPC how many
	// intervals must pass in silence, until the instance is DOWN; 0:
	// DefaultFailAfter. A refused connection does not wait for it.
	FailAfter int
	// Hooks are for KindHTTP and KindTCP.
	Hooks Hooks
	// Dial are the options of the gRPC connection, for KindGRPC. They must bring
	// transport credentials; empty: none, which is allowed to loopback only.
	Dial []grpc.DialOption
	// Logger; nil: none.
	Logger *slog.Logger
}

// Hooks are commands that promote and demote the server, as argument vectors;
// empty: there is none. See runHook for what they are given.
type Hooks struct {
	Promote, Demote []string
}

// withDefaults fills in what was left out.
func (c Config) withDefaults() Config {
	if c.Interval == 0 {
		c.Interval = DefaultInterval
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.FailAfter == 0 {
		c.FailAfter = DefaultFailAfter
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Validate says all that is wrong with the configuration. It does no I/O. The
// error matches hastate.ErrInvalid.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	need(c.Interval >= MinInterval && c.Interval <= MaxInterval, "interval %v must be between %v and %v", c.Interval, MinInterval, MaxInterval)
	need(c.Timeout >= MinInterval && c.Timeout <= MaxTimeout, "timeout %v must be between %v and %v", c.Timeout, MinInterval, MaxTimeout)
	need(c.FailAfter >= 1 && c.FailAfter <= MaxFailAfter, "fail-after %d must be between 1 and %d", c.FailAfter, MaxFailAfter)
	hooks := len(c.Hooks.Promote)+len(c.Hooks.Demote) > 0
	switch c.Kind {
	case KindGRPC:
		need(!hooks, "kind grpc is promoted and demoted over gRPC: leave the hooks out, or use kind http or tcp")
		errs = append(errs, c.validateGRPC())
	case KindHTTP, KindTCP:
		need(len(c.Dial) == 0, "dial options are for kind grpc, not %s", c.Kind)
		need(len(c.Hooks.Promote) == 0 || c.Hooks.Promote[0] != "", "the promote hook has an empty command")
		need(len(c.Hooks.Demote) == 0 || c.Hooks.Demote[0] != "", "the demote hook has an empty command")
		_, err := c.address()
		errs = append(errs, err)
	default:
		errs = append(errs, fmt.Errorf("kind %q is not known: use grpc, http or tcp", c.Kind))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w: instance: %w", hastate.ErrInvalid, err)
	}
	return nil
}

func (c Config) validateGRPC() error {
	addr, err := c.address()
	if err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if len(c.Dial) == 0 && !isLoopback(host) {
		return fmt.Errorf("target %q is not on this machine: give transport credentials in the dial options", c.Target)
	}
	return nil
}

// address is the host:port behind the target.
func (c Config) address() (string, error) {
	if c.Kind != KindHTTP {
		return c.Target, validateHostPort(c.Target)
	}
	u, err := url.Parse(c.Target)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" {
		return "", fmt.Errorf("target %q must be a health URL such as http://127.0.0.1:8000/health", c.Target)
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	addr := net.JoinHostPort(u.Hostname(), port)
	return addr, validateHostPort(addr)
}

func validateHostPort(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" {
		return fmt.Errorf("target %q must be host:port such as 127.0.0.1:9001", addr)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("port of target %q must be between 1 and 65535", addr)
	}
	return nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

// Open makes the adapter. It does not talk to the server yet.
func Open(cfg Config) (Instance, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	for _, argv := range [][]string{cfg.Hooks.Promote, cfg.Hooks.Demote} {
		if len(argv) == 0 {
			continue
		}
		if _, err := exec.LookPath(argv[0]); err != nil {
			return nil, fmt.Errorf("%w: instance: hook: %w", hastate.ErrInvalid, err)
		}
	}
	if cfg.Kind == KindGRPC {
		return openGRPC(cfg), nil
	}
	return openProbed(cfg)
}
