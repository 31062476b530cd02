// SPDX-License-Identifier: Apache-2.0

package textserver

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/hastate/hastate"
	"github.com/hastate/hastate/internal/clock"
)

// Defaults.
const (
	DefaultHTTP  = "127.0.0.1:9000"
	DefaultGRPC  = "127.0.0.1:9001"
	DefaultDelay = 20 * time.Millisecond
	DefaultDrain = 10 * time.Second
	maxDelay     = 10 * time.Second
	maxDrain     = 10 * time.Minute
	maxEndpoints = 16
	// maxRequests bounds the requests under way.
	maxRequests = 256
)

// Config says how a server runs.
type Config struct {
	// HTTP is where clients reach it, GRPC where its node does.
	HTTP, GRPC string
	// Hastate are nodes of the cluster that keeps the sessions; empty: they are
	// kept in memory and end with the process.
	Hastate []string
	// HastateDial are the options of the connections to them; empty: plaintext,
	// to loopback only.
	HastateDial []grpc.DialOption
	// Group is the hastate group; empty: "default".
	Group string
	// Name is the owner of the sessions that it works on; empty: the HTTP address.
	Name string
	// Seed is what answers begin from when the request has none.
	Seed uint64
	// TokenDelay is the pace: the time for one token. 0 is as fast as it can.
	TokenDelay time.Duration
	// Drain is how long running requests may take at a graceful end.
	Drain time.Duration
	// AllowFaults enables POST /fault/hang and /fault/clear.
	AllowFaults bool

	// Store keeps the sessions in place of Hastate; it is not closed.
	Store SessionStore
	// Clock is that of the lease; nil: clock.Boot.
	Clock clock.Clock
	// Logger; nil: none.
	Logger *slog.Logger
}

// withDefaults fills in what was left out. Durations stay as they are.
func (c Config) withDefaults() Config {
	if c.Group == "" {
		c.Group = hastate.DefaultGroup
	}
	if c.Name == "" {
		c.Name = "textserver " + c.HTTP
	}
	if c.Clock == nil {
		c.Clock = clock.Boot{}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Validate says all that is wrong. The error matches hastate.ErrInvalid.
func (c Config) Validate() error {
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	for flagName, addr := range map[string]string{"http": c.HTTP, "grpc": c.GRPC} {
		_, _, err := net.SplitHostPort(addr)
		need(err == nil, "--%s %q must be host:port such as 127.0.0.1:9000", flagName, addr)
	}
	need(len(c.Group) <= hastate.MaxNameBytes, "--group has %d bytes, at most %d are allowed", len(c.Group), hastate.MaxNameBytes)
	need(len(c.Name) <= hastate.MaxTextBytes, "--name has %d bytes, at most %d are allowed", len(c.Name), hastate.MaxTextBytes)
	need(c.TokenDelay >= 0 && c.TokenDelay <= maxDelay, "--token-delay %v must be between 0 and %v", c.TokenDelay, maxDelay)
	need(c.Drain >= 0 && c.Drain <= maxDrain, "--drain %v must be between 0 and %v", c.Drain, maxDrain)
	need(len(c.Hastate) <= maxEndpoints, "--hastate names %d nodes, at most %d are allowed", len(c.Hastate), maxEndpoints)
	need(c.Store == nil || len(c.Hastate) == 0, "a session store and hastate nodes are both given: give one")
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w: textserver: %w", hastate.ErrInvalid, err)
	}
	return nil
}

// Parse reads command-line arguments, without the name of the program.
// flag.ErrHelp if they ask for help, which is written to out.
func Parse(args []string, out io.Writer) (Config, error) {
	var (
		cfg           Config
		nodes         string
		ca, cert, key string
	)
	flags := flag.NewFlagSet("textserver", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.StringVar(&cfg.HTTP, "http", DefaultHTTP, "address for clients, OpenAI-compatible `host:port`")
	flags.StringVar(&cfg.GRPC, "grpc", DefaultGRPC, "address for the hastate node beside this server, `host:port`")
	flags.StringVar(&nodes, "hastate", "", "hastate nodes that keep the sessions, `host:port,host:port`; empty: in memory")
	flags.StringVar(&ca, "hastate-ca", "", "`file` with the CA of the nodes; needed unless they are on this machine")
	flags.StringVar(&cert, "hastate-cert", "", "`file` with the client certificate for the nodes")
	flags.StringVar(&key, "hastate-key", "", "`file` with the key of that certificate")
	flags.StringVar(&cfg.Group, "group", hastate.DefaultGroup, "hastate group")
	flags.StringVar(&cfg.Name, "name", "", "name that is put on the sessions (default the HTTP address)")
	flags.Uint64Var(&cfg.Seed, "seed", 1, "seed of answers whose request has none")
	flags.DurationVar(&cfg.TokenDelay, "token-delay", DefaultDelay, "time for one token; 0: as fast as it can")
	flags.DurationVar(&cfg.Drain, "drain", DefaultDrain, "how long running requests may take after SIGTERM")
	flags.BoolVar(&cfg.AllowFaults, "allow-faults", false, "enable POST /fault/hang and /fault/clear, for drills")
	if err := flags.Parse(args); err != nil {
		return Config{}, err
	}
	if flags.NArg() > 0 {
		return Config{}, fmt.Errorf("%w: unexpected argument %q: all settings are flags", hastate.ErrInvalid, flags.Arg(0))
	}
	for _, n := range strings.Split(nodes, ",") {
		if n = strings.TrimSpace(n); n != "" {
			cfg.Hastate = append(cfg.Hastate, n)
		}
	}
	opt, err := tlsOption(ca, cert, key)
	if err != nil {
		return Config{}, err
	}
	cfg.HastateDial = opt
	return cfg, cfg.Validate()
}

// tlsOption is none without files.
func tlsOption(ca, cert, key string) ([]grpc.DialOption, error) {
	if ca == "" && cert == "" && key == "" {
		return nil, nil
	}
	if ca == "" || (cert == "") != (key == "") {
		return nil, fmt.Errorf("%w: give --hastate-ca, and --hastate-cert and --hastate-key together or not at all", hastate.ErrInvalid)
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, fmt.Errorf("%w: read CA: %w", hastate.ErrInvalid, err)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: x509.NewCertPool()}
	if !conf.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%w: %s has no PEM certificate", hastate.ErrInvalid, ca)
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("%w: load client certificate: %w", hastate.ErrInvalid, err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(conf))}, nil
}
